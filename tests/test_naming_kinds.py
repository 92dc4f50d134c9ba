"""mode=discover without an MLLM: kinds are groups of images, and a person names them on a page."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fgvr
from fgvr.agents.cluster_kinds import cluster_kinds, name_kinds
from fgvr.cli import main
from fgvr.evaluation import image_gallery
from fgvr.runtime.pool import close_shared

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def groups(kinds: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around `kinds` directions, and whose each is."""
    rng = np.random.default_rng(seed)
    centres, owners = rng.normal(size=(kinds, 96)), np.repeat(np.arange(kinds), each)
    vectors = centres[owners] + 0.9 * rng.normal(size=(kinds * each, 96))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), owners


@pytest.mark.parametrize("kinds", [2, 5, 12])
def test_the_number_of_kinds_is_found_and_each_holds_its_images(kinds: int) -> None:
    vectors, owners = groups(kinds, 12, seed=kinds)
    found = cluster_kinds(vectors, scale=30.0)
    assert [kind.name for kind in found.kinds] == [f"kind {place}" for place in range(1, kinds + 1)]
    assert {frozenset(kind.pictures) for kind in found.kinds} == {frozenset(np.flatnonzero(owners == k).tolist()) for k in range(kinds)}
    assert all(
        0 <= sure <= 1 and list(kind.certainty) == sorted(kind.certainty, reverse=True) for kind in found.kinds for sure in kind.certainty
    )


@pytest.mark.parametrize("images", [1, 2, 3])
def test_few_images_and_copies_of_one_are_a_kind(images: int) -> None:
    vectors, _ = groups(1, images, seed=0)
    assert sum(len(kind.pictures) for kind in cluster_kinds(vectors, scale=30.0).kinds) == images
    assert sum(len(kind.pictures) for kind in cluster_kinds(vectors, scale=30.0, count=9).kinds) == images
    [one] = cluster_kinds(np.repeat(vectors[:1], 6, axis=0), scale=30.0).kinds
    assert len(one.pictures) == 6


def test_a_known_number_is_kept_and_kinds_of_one_name_become_one() -> None:
    vectors, _ = groups(4, 10, seed=1)
    found = cluster_kinds(vectors, scale=30.0, count=6, superclass="bird")
    assert len(found.kinds) == 6 and found.superclass == "bird"
    named = name_kinds(found, {"kind 1": "Rook", "kind 3": "rook", "kind 2": "Crow"})
    sizes = {kind.name: len(kind.pictures) for kind in named.kinds}
    before = {kind.name: len(kind.pictures) for kind in found.kinds}
    assert sizes == {"Rook": before["kind 1"] + before["kind 3"], "Crow": before["kind 2"]} | {
        name: before[name] for name in ("kind 4", "kind 5", "kind 6")
    }
    assert [len(kind.pictures) for kind in named.kinds] == sorted(sizes.values(), reverse=True)


# --- the mode ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_pool():
    close_shared()
    yield
    close_shared()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of four kinds, in one heap."""
    root = tmp_path_factory.mktemp("heap")
    source = Path(__file__).parents[1] / "examples/produce/train"
    for kind in sorted(source.iterdir())[:4]:
        for place, file in enumerate(sorted(kind.iterdir())[:6]):
            shutil.copy(file, root / f"{kind.name[:2]}{place}.jpg")
    return root


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> list[str]:
    return [
        "mode=discover",
        "models=fake",
        "models/mllm=none",
        "slow=none",
        f"images={folder}",
        f"paths.home={tmp_path_factory.mktemp('home')}",
        "discover.shots=4",
    ]


def test_a_heap_of_photographs_is_grouped_named_and_recognised(words: list[str], folder: Path, tmp_path: Path, capsys) -> None:
    found = fgvr.discover(folder, *words[1:4], *words[5:], "discover.kinds=4")
    assert found.names == ("kind 1", "kind 2", "kind 3", "kind 4") and len(found.images) == 24
    page = (found.path / "review.html").read_text()
    assert page.count('data-kind="kind') == 4 and "http://" not in page
    run = json.loads(page.split('id="data">')[1].split("</script>")[0])["run"]
    file = tmp_path / "names.csv"
    with open(file, "w", encoding="utf-8-sig", newline="") as table:
        csv.writer(table, delimiter=";").writerows([image_gallery.COLUMNS, (run, "kind 1", "Melon"), (run, "kind 2", "Apple")])
    named = fgvr.discover(folder, *words[1:4], *words[5:], "discover.kinds=4", f"discover.names={file}")
    assert set(named.names) == {"Melon", "Apple", "kind 3", "kind 4"}
    assert named.images == {image: {"kind 1": "Melon", "kind 2": "Apple"}.get(kind, kind) for image, kind in found.images.items()}
    again = fgvr.discover(folder, *words[1:4], *words[5:], "discover.kinds=4", "discover.shots=3")  # another run, the same groups
    assert again.images == found.images
    assert named.recognizer(next(folder.iterdir())).name in named.names
    for rows, told in (
        ([("kinds-0", "kind 1", "Melon")], "line 2: these names are of other images or groups"),
        ([(run, "kind 9", "Melon")], "line 2: there is no 'kind 9'"),
        ([(run, "kind 1", "Melon"), (run, "kind 1", "Pear")], "line 3: kind 1 is 'Pear', and 'Melon' above"),
    ):
        with open(file, "w", newline="") as table:
            csv.writer(table).writerows([image_gallery.COLUMNS, *rows])
        assert main([*words, "discover.kinds=4", f"discover.names={file}"]) == 3
        assert told in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: python3 scripts/dev.py browser")
def test_kinds_are_named_in_a_browser_and_the_names_are_kept(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    vectors, _ = groups(3, 5, seed=2)
    found = cluster_kinds(vectors, scale=30.0)
    from PIL import Image

    page_file = tmp_path / "review.html"
    pictures = [Image.new("RGB", (40, 40), (i * 9, 80, 90)) for i in range(len(vectors))]
    page_file.write_text(image_gallery.render_naming(found, "kinds-1", pictures, title="3 kinds"), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:

        def visit() -> tuple[object, list[str]]:
            context = playwright.chromium.launch_persistent_context(
                tmp_path / "profile", executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
            )
            page, complaints = context.new_page(), []
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(page_file.as_uri())
            return page, complaints

        page, complaints = visit()
        page.keyboard.type('Golden "Delicious"')
        page.keyboard.press("Enter")
        page.keyboard.type("Kiwi, green")
        assert page.locator("#told").inner_text() == "2 of 3 named" and not complaints
        page.context.close()
        page, complaints = visit()
        assert page.locator("#told").inner_text() == "2 of 3 named"
        page.keyboard.type("Kiwi, green")  # the third: the first one without a name has the focus
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Download").click()
        waiting.value.save_as(tmp_path / "names.csv")
        page.context.close()
    assert not complaints
    names = image_gallery.read_names(tmp_path / "names.csv", found, "kinds-1")
    assert names == {"kind 1": 'Golden "Delicious"', "kind 2": "Kiwi, green", "kind 3": "Kiwi, green"}
    assert len(name_kinds(found, names).kinds) == 2
