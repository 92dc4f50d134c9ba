"""mode=discover and fgvr.discover: a folder of unlabelled birds becomes names, files and a recognizer."""

import csv
import json

import pytest
from PIL import Image

import fgvr
from fgvr.data import birds
from fgvr.errors import ConfigError

SPECIES, EACH = 4, 5


@pytest.fixture
def flock(tmp_path):
    """Clean pictures of four species of four genera, all in one folder under names that say nothing."""
    world = birds.make_world(9011, genera=(1,) * SPECIES, difficulty=0.2)
    (tmp_path / "flock").mkdir()
    truth = {}
    for number in range(SPECIES * EACH):
        name = f"{(7 * number) % (SPECIES * EACH):03d}.png"
        birds.render(world, number % SPECIES, "flock", number).save(tmp_path / "flock" / name)
        truth[name] = world.species[number % SPECIES]
    return tmp_path / "flock", truth


@pytest.mark.timeout(600)  # the tiny models, for real
def test_unlabelled_birds_become_names_files_and_a_recognizer(flock, home):
    folder, truth = flock
    found = fgvr.discover(folder, f"paths.home={home}", "discover.shots=4", "knowledge.leave_one_out=false", "slow.weight=0.5")
    names, recognizer = found
    assert found.found.superclass == "bird" and len(names) == SPECIES == len(set(found.images.values()))
    for name in names:
        assert len({truth[image].name for image, kind in found.images.items() if kind == name}) == 1
    said = {kind.description for kind in found.found.kinds}
    assert len(said & {species.describe() for species in truth.values()}) >= SPECIES - 1
    assert "knows no names" in " ".join(found.notes)

    image = next(iter(truth))
    answer = recognizer(folder / image)
    assert answer.name == found.images[image]

    assert {file.name for file in found.path.iterdir()} >= {"names.json", "labels.csv", "report.html", "config.yaml", "log.txt"}
    body = json.loads((found.path / "names.json").read_text())
    assert [kind["name"] for kind in body["kinds"]] == list(names) and body["knowledge_base"] == str(found.base.path)
    rows = list(csv.DictReader((found.path / "labels.csv").read_text().splitlines()))
    assert {row["filename"]: row["class_name"] for row in rows} == dict(found.images)
    page = (found.path / "report.html").read_text()
    assert page.count("data:image/jpeg") == len(truth) and all(name in page for name in names) and "http" not in page
    assert "4 kinds of bird" in repr(found)

    calls = fgvr.shared_pool().counters.snapshot()
    again = fgvr.discover(folder, f"paths.home={home}", "discover.shots=4", "knowledge.leave_one_out=false", "slow.weight=0.5")
    assert again.found == found.found and fgvr.shared_pool().counters.snapshot() == calls, "a finished discovery asks nobody"


def test_the_command_line_says_how_to_go_on(python, home, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), (40 * i, 90, 200)).save(tmp_path / "in" / f"{i}.png")
    words = (
        "mode=discover",
        f"images={tmp_path / 'in'}",
        "models=fake",
        f"paths.home={home}",
        "knowledge.leave_one_out=false",
        "slow.weight=0.5",
    )
    answer = python("discovering.py", *words, "discover.superclass=bird")
    assert answer.returncode == 0, answer.stderr
    assert "unlabelled images" in answer.stdout and "knowledge.path=" in answer.stdout
    empty = python("discovering.py", "mode=discover", f"images={tmp_path / 'absent'}", "models=fake", f"paths.home={home}")
    assert empty.returncode == 3 and "is no folder" in empty.stderr


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("discover.shortlist=0", "from 1 up"),
        ("discover.shots=1", "from 2 up"),
        ("discover.complexity_penalty=-1", "from 0 up, or null"),
        ("discover.alike=2", "above 0, up to 1"),
    ],
)
def test_senseless_wishes_are_refused(word, says, flock, home):
    with pytest.raises(ConfigError, match=says):
        fgvr.discover(flock[0], f"paths.home={home}", word)
