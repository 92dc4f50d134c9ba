"""The modes end to end, on models without weights: what is built, resumed, refused and reported."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

import fgvr
from fgvr import modes
from fgvr.modes import runs
from fgvr.runtime import timeline
from fgvr.runtime.loaders.fake import FakeEncoder, FakeMLLM
from fgvr.runtime.pool import close_shared
from fgvr.types import Reply

SMALL = ("models=fake", "dataset.genera=[3,3]", "dataset.test_per_class=4", "dataset.calibration=1", "evaluation.batch_size=5")


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


def load(*overrides: str):
    return fgvr.load_config(*SMALL, *overrides)


def rows(report: fgvr.Report) -> list[dict]:
    """Predictions without their timings."""
    found = [json.loads(line) for line in (report.path / runs.PREDICTIONS).read_text().splitlines()]
    for row in found:
        del row["cost"]["seconds"]
    return found


class Interrupting:
    """Wraps a model's method: the n-th call stops the process as Ctrl-C would."""

    def __init__(self, intercept, kind: type, method: str, *, at: int) -> None:
        self.calls, self._at = 0, at

        def call(original, model, *args, **kwargs):
            self.calls += 1
            if self.calls == self._at:
                raise KeyboardInterrupt
            return original(model, *args, **kwargs)

        self.until = intercept(kind, method, call)


# --- the knowledge base ------------------------------------------------------------------------------------------------------


def test_a_base_is_built_once_and_found_again():
    base = fgvr.build_knowledge_base(load())
    assert len(base.classes) == 6 and len(base.support) == 24 and not base.failed
    assert base.manifest is not None and base.manifest.counts["described"] == 6
    before = dict(fgvr.shared_pool().loads)
    again = fgvr.build_knowledge_base(load())
    assert again.path == base.path and again.manifest == base.manifest
    assert dict(fgvr.shared_pool().loads) == before
    assert "6 classes" in repr(base)


def test_building_costs_one_forward_per_image_and_three_descriptions_and_one_leave_one_out_answer_each():
    fgvr.build_knowledge_base(load())
    work = fgvr.shared_pool().counters.snapshot()
    assert work.encoder_forwards == 24
    assert work.mllm_calls == 3 * 6 + 24
    assert dict(fgvr.shared_pool().loads) == {"mllm": 1, "encoder": 1, "joint": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """What a base that nothing interrupted holds."""
    return fgvr.build_knowledge_base(load(f"paths.home={tmp_path_factory.mktemp('whole')}")).manifest.content_hash


@pytest.mark.parametrize("method,at", [("generate", 1), ("generate", 2), ("score", 1), ("score", 3)])
def test_an_interrupted_build_goes_on_where_it_was_and_ends_the_same(intercept, whole, tmp_path, method, at):
    with Interrupting(intercept, FakeMLLM, method, at=at).until:
        with pytest.raises(KeyboardInterrupt):
            fgvr.build_knowledge_base(load("store.enabled=false"))
        assert not list((tmp_path / "home" / "knowledge" / "birds").glob("*/manifest.json")), "readers must not see half a base"
    before = fgvr.shared_pool().counters.snapshot()
    resumed = fgvr.build_knowledge_base(load("store.enabled=false"))
    after = fgvr.shared_pool().counters.snapshot()
    assert resumed.manifest.content_hash == whole
    assert after.encoder_forwards == before.encoder_forwards, "images encoded before the interruption are not encoded again"
    repeated = after.mllm_calls - before.mllm_calls
    assert repeated == 42 - 8 * (at - 1) - (18 if method == "score" else 0)


def test_another_seed_is_another_base():
    assert fgvr.build_knowledge_base(load()).path != fgvr.build_knowledge_base(load("dataset.split_seed=1")).path


def test_how_it_will_be_tested_does_not_change_a_base():
    assert fgvr.build_knowledge_base(load()).path == fgvr.build_knowledge_base(load("dataset.test_per_class=2")).path


def test_a_base_that_may_not_be_built_is_an_error_with_the_command_to_run():
    with pytest.raises(fgvr.KnowledgeError, match="fgvr build_knowledge_base"):
        fgvr.build_recognizer(load("knowledge.build=never"))


def test_a_base_of_another_encoder_is_refused_and_both_are_named():
    base = fgvr.build_knowledge_base(load())
    other = load("models.encoder.source='other 9MiB'", f"knowledge.path={base.path}")
    with pytest.raises(fgvr.KnowledgeError, match=base.origin.models["encoder"]):
        fgvr.build_recognizer(other)


@pytest.mark.parametrize("name", ["prototypes.safetensors", "classes.parquet", "splits.json"])
def test_a_damaged_base_is_refused_and_rebuilding_mends_it(name):
    base = fgvr.build_knowledge_base(load())
    (base.path / name).write_bytes(b"damaged")
    with pytest.raises(fgvr.KnowledgeError, match=f"{name}.*knowledge.build=always"):
        fgvr.build_recognizer(load())
    mended = fgvr.build_knowledge_base(load("knowledge.build=always"))
    assert mended.manifest.content_hash == base.manifest.content_hash


def test_a_base_of_another_schema_is_refused():
    base = fgvr.build_knowledge_base(load())
    manifest = json.loads((base.path / "manifest.json").read_text()) | {"schema": 99}
    (base.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(fgvr.KnowledgeError, match="schema 99"):
        fgvr.build_recognizer(load())


def test_a_failed_rebuild_leaves_the_old_base_intact(intercept):
    base = fgvr.build_knowledge_base(load())
    Interrupting(intercept, FakeMLLM, "score", at=1)
    with pytest.raises(KeyboardInterrupt):
        fgvr.build_knowledge_base(load("knowledge.build=always", "store.enabled=false"))
    assert fgvr.build_knowledge_base(load()).manifest == base.manifest


def test_a_crash_between_the_two_renames_is_mended():
    base = fgvr.build_knowledge_base(load())
    base.path.rename(base.path.with_name(base.path.name + ".old"))
    assert fgvr.build_knowledge_base(load()).manifest.content_hash == base.manifest.content_hash


def test_a_description_that_failed_is_written_by_the_next_build(intercept):
    from fgvr.types import Reply

    with intercept(FakeMLLM, "generate", lambda generate, *a, **k: [Reply("") if i == 0 else r for i, r in enumerate(generate(*a, **k))]):
        base = fgvr.build_knowledge_base(load())
    assert len(base.failed) == 3 and base.described == 5, "one class's own description, and one of a half of two others"
    assert fgvr.build_recognizer(load()) is not None, "one class without words stops nothing"
    mended = fgvr.build_knowledge_base(load())
    assert mended.failed == () and mended.described == 6
    assert all(d.status == "described" for record in mended.classes for d in record.fold_descriptions)


# --- recognition -------------------------------------------------------------------------------------------------------------


def test_building_a_recognizer_loads_no_weights():
    fgvr.build_knowledge_base(load())
    close_shared()
    fgvr.build_recognizer(load())
    assert sum(fgvr.shared_pool().loads.values()) == 0


def test_a_picture_may_be_a_path_a_pil_image_an_array_or_a_sample(tmp_path):
    import numpy as np

    recognizer = fgvr.build_recognizer(load())
    picture = Image.new("RGB", (30, 20), "navy")
    picture.save(tmp_path / "a bird.png")
    answers = recognizer.batch([tmp_path / "a bird.png", str(tmp_path / "a bird.png"), picture, np.asarray(picture)])
    assert len({answer.category for answer in answers}) == 1
    assert recognizer(fgvr.Sample(picture, key="mine", label="0")).image == "mine"
    assert answers[0]._repr_html_().startswith("<div>")


def test_evaluation_loads_each_model_once_and_those_unused_never():
    fgvr.build_knowledge_base(load())
    close_shared()
    first = fgvr.evaluate(load("trigger=never"))
    assert dict(first.model_loads) == {"encoder": 1, "mllm": 0, "joint": 0}
    assert first.slow_rate == 0 and first.cost["mllm_calls"] == 0
    second = fgvr.evaluate(load("trigger=always"))
    assert dict(second.model_loads) == {"encoder": 1, "mllm": 1, "joint": 0}
    assert second.slow_rate == 1 and second.cost["mllm_calls"] == 24 and second.cost["encoder_forwards"] == 0


def test_a_complete_run_is_shown_again_without_work():
    first = fgvr.evaluate(load())
    before = fgvr.shared_pool().counters.snapshot()
    again = fgvr.evaluate(load())
    assert again.top1 == first.top1 and again.path == first.path
    assert fgvr.shared_pool().counters.snapshot() == before


@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupted_evaluation_ends_with_the_same_bytes(intercept, tmp_path, at):
    fgvr.build_knowledge_base(load())
    whole = fgvr.evaluate(load("trigger=always", f"paths.home={tmp_path / 'whole'}"))
    with Interrupting(intercept, FakeEncoder, "encode", at=at).until, pytest.raises(KeyboardInterrupt):
        fgvr.evaluate(load("trigger=always", "store.enabled=false"))
    before = fgvr.shared_pool().counters.snapshot()
    resumed = fgvr.evaluate(load("trigger=always", "store.enabled=false"))
    assert rows(resumed) == rows(whole)
    assert fgvr.shared_pool().counters.snapshot().encoder_forwards - before.encoder_forwards == 24 - 5 * (at - 1)


def test_recording_every_slow_answer_changes_no_prediction():
    needed = rows(fgvr.evaluate(load()))
    recorded = rows(fgvr.evaluate(load("evaluation.record=all")))
    assert all(row["slow"] for row in recorded) and not all(row["slow"] for row in needed)
    assert [row["prediction"] for row in needed] == [row["prediction"] for row in recorded]


def test_costs_in_the_report_are_what_the_models_counted_and_routers_stand_side_by_side():
    fgvr.build_knowledge_base(load())
    before = fgvr.shared_pool().counters.snapshot()
    recorded = fgvr.evaluate(load("evaluation.record=all", "store.enabled=false"))
    after = fgvr.shared_pool().counters.snapshot()
    for kind in ("mllm_calls", "encoder_forwards", "prompt_tokens", "new_tokens"):
        assert recorded.cost[kind] == getattr(after, kind) - getattr(before, kind), kind
    assert recorded.cost["mllm_calls"] > 24 and recorded.cost["new_tokens"] == 0, "scoring generates nothing"
    side = json.loads((recorded.path / "report.json").read_text())["routers"]
    always, never, random, oracle = (fgvr.evaluate(load(f"trigger={t}")) for t in ("always", "never", "random", "oracle"))
    assert (side["never"], side["always"], side["ours"]) == pytest.approx((never.top1, always.top1, recorded.top1))
    assert side["slow_rate"] == recorded.slow_rate and side["ours"] <= side["oracle"] <= oracle.top1
    assert min(side["never"], side["always"]) <= side["random"] <= max(side["never"], side["always"])
    assert json.loads((random.path / "report.json").read_text())["routers"] is None, "nobody knows what was not asked"


def test_the_oracle_is_refused_where_nobody_knows_the_labels(tmp_path):
    told = "trigger=oracle decides by the labels.* write trigger=calibrated"
    for words in (("mode=classify", f"image={tmp_path}"), ("mode=serve",), ("mode=discover", f"images={tmp_path}")):
        with pytest.raises(fgvr.ConfigError, match=told):
            load(*words, "trigger=oracle")
    with pytest.raises(fgvr.ConfigError, match=told):
        fgvr.build_recognizer(load("trigger=oracle"))


def test_the_oracle_is_the_ceiling():
    always, never, oracle = (fgvr.evaluate(load(f"trigger={t}")) for t in ("always", "never", "oracle"))
    assert oracle.top1 >= max(always.top1, never.top1)
    assert oracle.broken == 0 and oracle.fixed == round(oracle.slow_rate * oracle.n)


def test_the_store_can_be_switched_off_and_results_stay_the_same(tmp_path):
    kept = rows(fgvr.evaluate(load("trigger=always")))
    assert rows(fgvr.evaluate(load("trigger=always", "store.enabled=false", f"paths.home={tmp_path / 'other'}"))) == kept


def test_a_run_leaves_what_its_models_held():
    report = fgvr.evaluate(load("trigger=always", "runtime.max_models=1", "evaluation.batch_size=12"))
    [session] = timeline.read(report.path / timeline.FILE).sessions
    kinds = [event.kind for event in session.events]
    assert kinds.count("loaded") == sum(report.model_loads.values()) > 2, "what the run built first is in it, too"
    assert kinds.count("lease") == kinds.count("return") and session.ended
    assert all(sample.ledger <= sample.limit and sample.uss for sample in session.samples)
    assert "Memory timeline" in (report.path / "report.html").read_text()
    built = fgvr.build_knowledge_base(load("knowledge.build=always"))
    [run] = (built.path.parents[2] / "runs" / "build_knowledge_base").iterdir()
    assert {timeline.FILE, "config.yaml", "log.txt"} <= {file.name for file in run.iterdir()}


def test_the_report_says_first_what_a_reader_must_know():
    report = fgvr.evaluate(load())
    assert report.notes[0] == "these models are fakes; their numbers mean nothing"
    assert any("leave-one-out estimate" in note for note in report.notes)
    assert (report.path / "report.html").read_text().count("<html")


# --- folders, leaks, single images -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three kinds of noise, six pictures each."""
    import numpy as np

    rng = np.random.default_rng(0)
    for kind, colour in {"Rot": (200, 30, 30), "Grün": (30, 200, 30), "Blau": (30, 30, 200)}.items():
        for i in range(6):
            path = tmp_path / "my pictures" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 40, (24, 24, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype("uint8")).save(path)
    return tmp_path / "my pictures"


def test_any_folder_of_class_named_folders_becomes_a_recognizer(folder):
    recognizer = fgvr.fit(folder, "models=fake", "dataset.shots=3", "trigger=never")
    assert recognizer(folder / "Grün" / "0.png").name in {"Rot", "Grün", "Blau"}


def test_a_test_image_that_built_the_base_is_left_out_or_refused_by_name(folder):
    shutil.copytree(folder, folder.parent / "split" / "train")
    (folder.parent / "split" / "test" / "Rot").mkdir(parents=True)
    (folder.parent / "split" / "test" / "Grün").mkdir()
    (folder.parent / "split" / "test" / "Blau").mkdir()
    for kind in ("Rot", "Grün", "Blau"):
        shutil.copy(folder / kind / "0.png", folder.parent / "split" / "test" / kind / "copy.png")
    words = ("models=fake", "dataset=folder", f"dataset.root={folder.parent / 'split'}", "dataset.shots=6", "trigger=never")
    for refused in ("evaluation.on_overlap=error", "evaluation.allow_overlap=false", "evaluation.on_overlap=drop"):
        with pytest.raises(fgvr.LeakError, match=r"3 of 3 test images resemble(.|\n)*on_overlap"):
            fgvr.evaluate(fgvr.load_config(*words, refused))
    assert not list(Path(os.environ["FGVR_HOME"]).glob("knowledge/*/*/manifest.json")), "looked at before anything was built"
    for allowed in ("evaluation.on_overlap=allow", "evaluation.allow_overlap=true"):
        report = fgvr.evaluate(fgvr.load_config(*words, allowed))
        assert report.n == 3 and report.notes[0].startswith("3 of 3 test images resemble")


def test_a_re_encoded_support_image_is_left_out_and_the_report_says_so_first(tmp_path):
    from fgvr.data import birds

    world = birds.make_world(seed=9000, genera=(2, 2))
    for species in range(4):
        for part, count in (("train", 2), ("test", 2)):
            (tmp_path / "set" / part / str(species)).mkdir(parents=True)
            for i in range(count):
                birds.render(world, species, part, i).save(tmp_path / "set" / part / str(species) / f"{i}.png")
    birds.render(world, 0, "train", 1).save(tmp_path / "set" / "test" / "0" / "saved again.jpg", quality=30)
    words = ("models=fake", "dataset=folder", f"dataset.root={tmp_path / 'set'}", "dataset.shots=2", "trigger=never")
    with pytest.raises(fgvr.LeakError, match=r"1 of 9 test images(.|\n)*saved again.jpg \(looks like support: train/0/1.png\)"):
        fgvr.evaluate(fgvr.load_config(*words, "evaluation.on_overlap=error"))
    report = fgvr.evaluate(fgvr.load_config(*words))
    assert report.n == 8 and report.skipped == 0 and "left out" in report.notes[0]
    assert report.notes[0].startswith("1 of 9 test images resemble")
    assert any("mirror images are not looked for" in note for note in report.notes)


def test_classify_answers_every_readable_image_and_names_the_others(folder, caplog):
    (folder / "Rot" / "broken.png").write_bytes(b"no picture")
    cfg = load("mode=classify", f"image={folder}")
    with caplog.at_level("ERROR", logger="fgvr"):
        answers = modes.perform(cfg)
    assert len(answers) == 18
    assert "broken.png" in caplog.text


def test_classify_of_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(fgvr.ImageError, match="x.png"):
        modes.perform(load("mode=classify", f"image={tmp_path / 'x.png'}"))
    with pytest.raises(fgvr.ImageError, match="does not exist"):
        modes.perform(load("mode=classify", f"image={tmp_path / 'nowhere.png'}"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(fgvr.DatasetError, match="holds no images"):
        modes.perform(load("mode=classify", f"image={tmp_path / 'empty'}"))


def test_a_plan_loads_nothing():
    plan = modes.perform(load("mode=plan"))
    assert plan.fits and plan.needed > 0
    assert sum(fgvr.shared_pool().loads.values()) == 0


def test_the_doctor_names_what_is_missing_with_its_cure(tmp_path):
    found = modes.perform(load("mode=doctor")).findings
    assert all(finding.well for finding in found), [f for f in found if not f.well]
    (joint,) = (finding.detail for finding in found if finding.topic == "joint files")
    assert joint.startswith("not loaded unless asked for: ")
    absent = load("mode=doctor", "models/joint=blip_itm_base", f"models.joint.source={tmp_path / 'none'}")
    (joint,) = (finding for finding in modes.perform(absent).findings if finding.topic == "joint files")
    assert joint.well and "models.joint.source=FOLDER" in joint.detail
    fewer_bits = load("mode=doctor", "models.mllm.quantization=nf4")
    (bits,) = (finding for finding in modes.perform(fewer_bits).findings if finding.topic == "mllm quantization")
    assert "bitsandbytes" in bits.detail and (bits.well or "fgvr[quant]" in bits.cure)
    missing = load("mode=doctor", "models/mllm=qwen2_5_vl_7b", f"models.mllm.source={tmp_path / 'nowhere'}")
    ill = [finding for finding in modes.perform(missing).findings if not finding.well]
    assert [finding.topic for finding in ill] == ["mllm files"]
    assert "nowhere" in ill[0].detail and ill[0].cure
    assert sum(fgvr.shared_pool().loads.values()) == 0


@pytest.mark.parametrize(
    "words",
    ["slow=reason", "slow=analyse", "slow=reason slow.exemplars=true", "slow.target=letter slow.exemplars=true", "slow.answer_fusion=mllm"],
)
def test_every_way_of_system_2_answers_within_the_shortlist(words):
    report = fgvr.evaluate(load("mode=evaluate", "trigger=always", *words.split()))
    found = rows(report)
    assert len(found) == 24 and all(row["by"] == "slow" for row in found)
    assert all(set(row["slow"]["probabilities"]) <= {c["category"] for c in row["fast"]["candidates"]} for row in found)


# --- experience --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ready_to_reflect(intercept):
    """A fake MLLM that states a rule when it is shown a mistake."""

    def generate(original, model, images, prompts, **settings):
        replies = original(model, images, prompts, **settings)
        return [Reply("Rule: look twice.") if "was taken for" in prompt else reply for prompt, reply in zip(prompts, replies, strict=True)]

    intercept(FakeMLLM, "generate", generate)


LEARN = ("mode=build_experience_base", "trigger=always", "dataset.shots=4")


def test_a_base_gains_rules_with_their_evidence_and_keeps_everything_else(ready_to_reflect):
    plain = fgvr.build_knowledge_base(load("dataset.shots=4"))
    learned = modes.perform(load(*LEARN))
    assert learned.path == plain.path and plain.experience == ()
    assert learned.experience and all(rule.rule == "look twice." and rule.p is not None for rule in learned.experience)
    assert {k: v for k, v in learned.manifest.files.items() if k != "experience.jsonl"} == {
        k: v for k, v in plain.manifest.files.items() if k != "experience.jsonl"
    }
    assert not list(learned.path.parent.glob("*.partial"))
    again = modes.perform(load(*LEARN))
    assert again.experience == learned.experience


def test_an_interrupted_study_leaves_the_base_as_it_was_and_goes_on(ready_to_reflect, intercept, tmp_path):
    whole = modes.perform(load(*LEARN, f"paths.home={tmp_path / 'whole'}"))
    plain = fgvr.build_knowledge_base(load("dataset.shots=4", "store.enabled=false"))
    with Interrupting(intercept, FakeMLLM, "score", at=3).until, pytest.raises(KeyboardInterrupt):
        modes.perform(load(*LEARN, "store.enabled=false"))
    assert fgvr.build_knowledge_base(load("dataset.shots=4")).manifest == plain.manifest
    assert modes.perform(load(*LEARN, "store.enabled=false")).experience == whole.experience


def test_a_finished_run_is_made_anew_when_the_base_has_gained_rules(ready_to_reflect, caplog):
    cfg = load("mode=evaluate", "trigger=always", "dataset.shots=4")
    fgvr.evaluate(cfg)
    with caplog.at_level("INFO", logger="fgvr"):
        fgvr.evaluate(cfg)
        assert "complete already" in caplog.text
        modes.perform(load(*LEARN))
        caplog.clear()
        fgvr.evaluate(cfg)
    assert "complete already" not in caplog.text and "starting anew" in caplog.text


# --- configuration -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override,message",
    [
        ("runtime.budget=banana", "GiB"),
        ("knowledge.build=sometimes", "missing, never, always"),
        ("slow.weight=2", "fitted"),
        ("slow.candidates=none", "slow.candidates"),
        ("trigger.target=fast", "slow_rate:0.45"),
        ("dataset.shots=0", "from 1 up"),
        ("evaluation.batch_size=many", "from 1 up"),
    ],
)
def test_a_value_that_means_nothing_is_refused_with_what_would(override, message):
    with pytest.raises(fgvr.ConfigError, match=message):
        fgvr.build_recognizer(fgvr.load_config(*SMALL, override))


@pytest.mark.parametrize("mode,trigger", [("fastonly", "sare"), ("slowonly", "never"), ("fast_slow", "always")])
def test_a_preset_pins_its_trigger(mode, trigger):
    assert fgvr.load_config(f"mode={mode}").trigger_name in ("never", "always", "calibrated")
    with pytest.raises(fgvr.ConfigError, match=f"mode=evaluate trigger={trigger}"):
        fgvr.load_config(f"mode={mode}", f"trigger={trigger}")


def test_an_evaluation_leaves_its_course_and_a_finished_one_adds_nothing():
    report = fgvr.evaluate(load("trigger=always"))
    lines = (report.path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [5, 10, 15, 20, 24, 24] and json.loads(lines[-1])["final/top1"] == report.top1
    fgvr.evaluate(load("trigger=always"))
    assert (report.path / "metrics.jsonl").read_text().splitlines() == lines
