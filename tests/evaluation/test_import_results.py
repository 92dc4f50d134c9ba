"""Files laid out as the public SARE and FineR code writes them (made up here, key by key) become predictions that our scorer scores."""

import json

import numpy as np
import pytest

import fgvr
from fgvr import cli, modes
from fgvr.errors import StoreError
from fgvr.evaluation import compare, metrics, records, scoring_protocols
from scripts import import_results

FAST = {
    "predicted_category": "conflict",
    "predicted_fast": "Sooty_Tern",
    "confidence": 0.17,
    "fused_top1": "Sooty_Tern",
    "fused_top1_prob": 0.12,
    "need_slow_thinking": True,
    "img_category": "Sooty_Tern",
    "text_category": "Elegant_Tern",
}
SURE = FAST | {"predicted_category": "Elegant_Tern", "predicted_fast": "Elegant_Tern", "fused_top1": "Elegant_Tern", "confidence": 0.4}


def row(label, said, file, fast=SURE, slow=None):
    slow_result = {"predicted_category": slow, "confidence": 0.12, "reasoning": "It has a beak."} if slow else {}
    path = f"./datasets/CUB/images/{file}"
    return {"label": label, "prediction": said, "is_correct": True, "fast_result": fast, "slow_result": slow_result, "image_path": path,
            "confidence": 0.85}  # fmt: skip


ROWS = [
    row("Sooty Tern", "Elegant Tern", "001.Sooty_Tern/a.jpg", FAST, "Elegant Tern"),  # its own scorer calls this right: similar spelling
    row("Sooty Tern", "Sooty_Tern", "001.Sooty_Tern/b.jpg", FAST | {"fused_top1": "Elegant_Tern"}, "Sooty Tern"),
    row("Elegant Tern", "Elegant_Tern", "002.Elegant_Tern/c.jpg"),
    row("Le Conte's Gull", "Common Gull (Larus canus)", "003.Gull/d.jpg", FAST, "Common Gull (Larus canus)"),
]


def written(tmp_path, name, body):
    (tmp_path / name).write_text(json.dumps(body))
    return tmp_path / name


def test_sare_results_are_read_and_its_own_score_is_put_beside_ours(tmp_path, home):
    file = written(tmp_path, "classify_result.json", {"dataset": "bird200", "metadata": {"accuracy": 1.0}, "results": ROWS})
    found = import_results.read_results(file)
    assert found.claimed == 1.0 and list(found.classes.values()) == ["Sooty Tern", "Elegant Tern", "Le Conte's Gull"]
    first = found.predictions[0]
    assert (first.image, first.by, first.correct, first.slow.rationale) == ("001.Sooty_Tern/a.jpg", "slow", False, "It has a beak.")
    assert [p.correct for p in found.predictions] == [False, True, True, False]
    seen = records.outcomes(found.predictions)
    assert seen.fixed.tolist() == [False, True, False, False] and seen.broken.tolist() == [True, False, False, False]
    scores = scoring_protocols.score(seen, ["exact", "sare_fuzzy@0.3"])
    assert scores["exact"] == 0.5 and scores["sare_fuzzy@0.3"] > 0.7, "what a lenient scorer makes of the same answers"

    assert import_results.main([str(file), "--out", str(tmp_path / "them")]) == 0
    words = (f"predictions={tmp_path / 'them'}", f"paths.home={home}", "evaluation.protocols=[exact,cacc,sare_fuzzy@0.3]")
    report = fgvr.load_config("mode=replay", *words)
    report = modes.perform(report)
    assert report.top1 == 0.5 and report.protocols["sare_fuzzy@0.3"] == scores["sare_fuzzy@0.3"]
    assert any("claims an accuracy of 1.000; by class identity it is 0.500" in note for note in report.notes)
    kept = records.read(report.path / "predictions.jsonl", report.classes)
    assert [p.category for p in kept] == [p.category for p in found.predictions]


def test_the_last_of_appended_results_counts_and_a_doubt_is_no_answer(tmp_path):
    def detailed(truth, final, fast, slow):
        return {"query_image": f"./x/{truth}/1.jpg", "true_category": truth, "final_prediction": final, "final_confidence": 0.9,
                "used_slow_thinking": slow is not None, "decision_path": "slow", "is_correct": True, "fast_prediction": fast,
                "fast_confidence": 0.4, "slow_prediction": slow, "slow_confidence": 0.8 if slow else None}  # fmt: skip

    old = {"summary": {"accuracy": 0.1}, "detailed_results": [detailed("1.Old", "Old", "Old", None)]}
    new = {
        "summary": {"accuracy": 0.5},
        "detailed_results": [
            detailed("010.Red_winged Crow", "Red-winged crow", "conflict", "Red-winged crow"),
            detailed("2.Jay", "Crow", "Jay", None),
        ],
    }
    found = import_results.read_results(written(tmp_path, "classification_results.json", [old, new]))
    assert found.claimed == 0.5 and [p.correct for p in found.predictions] == [True, False]
    assert found.predictions[0].fast.top.category == "(not recorded)" and found.predictions[1].fast.top.category == "jay"
    assert any("not recorded for 1 of 2" in note for note in found.notes) and any("2 results" in note for note in found.notes)


def test_a_folder_of_inferences_answers_by_the_system_that_was_asked(tmp_path):
    ranked = FAST | {"fused_results": [["Sooty Tern", 0.3], ["Elegant Tern", 0.2]]}
    base = {"query_image": "./x/001.Sooty_Tern/a.jpg", "true_category": "001.Sooty Tern", "fast_result": ranked, "mllm_judge_result": None}
    slow = {"predicted_category": "Elegant Tern", "confidence": 0.85, "reasoning": "r", "fast_result": ranked}
    written(tmp_path, "1.json", base | {"need_slow_thinking": True, "slow_result": slow})
    written(tmp_path, "2.json", base | {"need_slow_thinking": False, "slow_result": None, "query_image": "./x/001.Sooty_Tern/b.jpg"})
    written(tmp_path, "3.json", base | {"need_slow_thinking": True, "slow_result": slow | {"predicted_category": None}})
    found = import_results.read_results(tmp_path)
    assert [(p.by, p.correct) for p in found.predictions] == [("slow", False), ("fast", True), ("slow", False)]
    assert [c.category for c in found.predictions[0].fast.candidates] == ["sooty tern", "elegant tern"]
    assert found.predictions[2].slow.status == "unreadable" and found.predictions[2].category == ""
    assert records.outcomes(found.predictions).place.tolist() == [2, 1, 2]


def test_finer_lists_are_scored_as_clusters(tmp_path, home):
    rng = np.random.default_rng(0)
    truth = [f"Breed {i % 4}" for i in range(40)]
    said = [f"Guess {i % 4}" if rng.random() < 0.8 else "Pug" for i in range(40)]
    body = {"total_img_paths": [f"/d/{t}/{i}.jpg" for i, t in enumerate(truth)], "total_label_names": truth, "total_pred_names": said}
    found = import_results.read_results(written(tmp_path, "finer.json", body))
    scores = scoring_protocols.score(records.outcomes(found.predictions), ["exact", "cacc"])
    assert scores["exact"] == 0 and scores["cacc"] == metrics.clustering_accuracy(said, truth) > 0.6
    body["total_pred_names"] = truth
    pair = []
    for file in (tmp_path / "finer.json", written(tmp_path, "better.json", body)):
        assert import_results.main([str(file), "--out", str(tmp_path / file.stem)]) == 0
        words = ("mode=replay", f"predictions={tmp_path / file.stem}/predictions.jsonl", f"paths.home={home}")
        pair.append(modes.perform(fgvr.load_config(*words)).path)
    [difference] = compare.compare(pair).differences
    assert difference.n == 40


@pytest.mark.parametrize(
    ("body", "says"),
    [(["Pug", "Boxer"], "no answer about any image"), ({"a": 1}, "no known form"), ({"results": []}, "holds no answer"),
     ({"results": [{"label": "a"}]}, r"line 1 \(row 1\): image_path is missing"),
     ({"total_img_paths": [], "total_label_names": [], "total_pred_names": ["a"]}, "1 tot")],
)  # fmt: skip
def test_what_cannot_be_read_is_said(tmp_path, body, says):
    with pytest.raises(StoreError, match=says):
        import_results.read_results(written(tmp_path, "x.json", body))


def test_a_broken_file_and_an_empty_folder_are_errors(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(StoreError, match="as JSON"):
        import_results.read_results(tmp_path / "x.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"no \.json"):
        import_results.read_results(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": 3}, "label is 3; write a class name"),
        ({"confidence": "98%"}, 'confidence is "98%"; write a number from 0 to 1'),
        ({"confidence": 98}, "confidence is 98; write"),
        ({"confidence": float("nan")}, "confidence is NaN; write"),
        ({"prediction": ["a"]}, "prediction is"),
        ({"image_path": None}, "image_path is null; write the path"),
        ({"fast_result": "Jay"}, 'fast_result is "Jay", not an object'),
        ({"fast_result": SURE | {"fused_results": [["Jay"]]}}, "fused_results holds"),
        ({"slow_result": {"predicted_category": 7}}, "predicted_category is 7"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path, capsys, change, says):
    file = tmp_path / "classify_result.json"
    file.write_text(json.dumps({"metadata": {"accuracy": 1.0}, "results": [ROWS[0], ROWS[1] | change]}, indent=1))
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if text == "  {" and n > 6)
    assert import_results.main([str(file), "--out", str(tmp_path / "out")]) == 3
    told = capsys.readouterr().err
    assert f"line {line} (row 2): {says}" in told and "1 row is wrong" in told and not (tmp_path / "out").exists()
    file.with_suffix(".jsonl").write_text(f"{json.dumps(ROWS[0])}\n{json.dumps(ROWS[1] | change)}\n")
    with pytest.raises(StoreError, match="line 2: ") as error:
        import_results.read_results(file.with_suffix(".jsonl"))
    assert says in str(error.value)


def test_many_wrong_rows_are_counted_and_rows_may_stand_one_a_line(tmp_path):
    file = written(tmp_path, "x.json", {"results": [ROWS[0] | {"label": n} for n in range(8)]})
    with pytest.raises(StoreError, match="8 rows are wrong") as error:
        import_results.read_results(file)
    assert "row 5" in str(error.value) and "row 6" not in str(error.value) and "and 3 more" in str(error.value)
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ROWS))
    assert [p.correct for p in import_results.read_results(tmp_path / "x.jsonl").predictions] == [False, True, True, False]


@pytest.mark.parametrize(("metadata", "says"), [(None, "metadata is null"), ({}, None)])
def test_a_file_may_claim_no_accuracy(tmp_path, metadata, says):
    found = import_results.read_results(written(tmp_path, "x.json", {"metadata": metadata, "results": ROWS}))
    assert found.claimed is None and any(str(says) in note for note in found.notes) == bool(says)


@pytest.mark.parametrize(("metadata", "says"), [([], "write an object"), ({"accuracy": "98%"}, 'accuracy is "98%"')])
def test_a_claim_that_is_none_is_named(tmp_path, metadata, says):
    with pytest.raises(StoreError, match=says):
        import_results.read_results(written(tmp_path, "x.json", {"metadata": metadata or [1], "results": ROWS}))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.json", b"", "is empty"),
        ("x.jsonl", b"\n \n", "is empty"),
        ("x.json", b'{"results":\n["\xe9"]}', "line 2: byte 0xe9 is not UTF-8"),
        ("x.json", '{"results": []}'.encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
        ("x.jsonl", json.dumps(ROWS[0]).encode() + b"\nno JSON\n", "line 2 cannot be read as JSON"),
        ("x.json", json.dumps(ROWS[0]).encode() + b"\n" + json.dumps(ROWS[0]).encode(), "a file named .jsonl"),
        ("x.jsonl", b"{}", "no row of SARE"),
        ("x.json", b"[" * 100_000, "cannot be read as JSON"),
        ("x.json", b"[" + b"9" * 5000 + b"]", "cannot be read as JSON"),
        ("x.json", b"[[]]", "no known form"),
    ],
)
def test_a_file_that_is_no_results_is_named(tmp_path, capsys, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert import_results.main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 3
    assert says in (told := capsys.readouterr().err) and name in told


def test_a_byte_order_mark_does_not_matter_and_the_folder_may_not_be_a_file(tmp_path, capsys):
    (tmp_path / "x.json").write_text(json.dumps({"results": ROWS}), encoding="utf-8-sig")
    assert import_results.main([str(tmp_path / "x.json"), "--out", str(tmp_path / "x.json")]) == 3
    assert "cannot be written" in capsys.readouterr().err
    assert import_results.main([str(tmp_path / "x.json"), "--out", str(tmp_path / "out")]) == 0
    assert f"mode=replay predictions={tmp_path / 'out'}" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["x.json", "infer", "foreign.jsonl"])
def test_replay_names_the_script_for_results_of_others(tmp_path, home, capsys, given):
    (tmp_path / "infer").mkdir()
    for name in ("x.json", "infer/1.json", "foreign.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROWS[0]))
    assert cli.main(["mode=replay", f"predictions={tmp_path / given}"]) == 3
    assert f"python scripts/import_results.py {tmp_path / given}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "mark", "says"),
    [
        (b'{"label": 3}', "{}", "imported.json cannot be read"),
        (b"[]", None, "line 1 is not a prediction"),
        (b"\xe9", None, "line 1 is not a prediction"),
        (b"", None, "predictions.jsonl is empty"),
    ],
)
def test_damaged_imports_are_named(tmp_path, home, capsys, rows, mark, says):
    file = written(tmp_path, "classify_result.json", {"results": ROWS})
    assert import_results.main([str(file), "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "out/predictions.jsonl").write_bytes(rows)
    if mark:
        (tmp_path / "out/imported.json").write_text(mark)
    assert cli.main(["mode=replay", f"predictions={tmp_path / 'out'}"]) == 3
    assert says in capsys.readouterr().err
