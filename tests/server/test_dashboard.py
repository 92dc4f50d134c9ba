"""The page at `/` in a real browser against a real server: controls, budget, events, an image, a token, a phone, the dark."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import fgvr.server
from fgvr.runtime.alerts import Alert
from fgvr.runtime.monitor import watch
from tests.server.conftest import SPECS, Serve, Served, png

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browsing = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: python3 scripts/dev.py browser")
STATIC = Path(fgvr.server.__file__).parent / "static"
MLLM, ENCODER = SPECS["mllm"].key, SPECS["encoder"].key
expect = sync_api.expect
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Opens the page; at the end nothing may have been asked of anybody else, and nothing have gone wrong on the page."""
    asked, complaints, contexts = [], [], []

    def call(served: Served, token: str = "secret-admin", **options):
        context = browser.new_context(**options)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if "Content Security" in message.text else None)
        page.goto(served.url)
        contexts.append((context, served.url))
        if token:
            page.get_by_role("button", name="Token").click()
            page.get_by_label("Token", exact=True).fill(token)
            page.get_by_role("button", name="Use it").click()
        return page

    yield call
    homes = tuple(url for _, url in contexts)
    assert [url for url in asked if not url.startswith((*homes, "blob:"))] == []
    assert complaints == []
    for context, _ in contexts:
        context.close()


def row(page, key: str):
    return page.locator("#models tr").filter(has=page.get_by_role("rowheader", name=re.compile(key)))


def pull(page, control: str, key: str) -> None:
    page.get_by_role("button", name=f"{control} {key}", exact=True).click()


@browsing
def test_models_are_loaded_pinned_and_evicted_and_the_events_arrive(serve: Serve, visit) -> None:
    served = serve()
    page = visit(served)
    expect(page.locator("#listening")).to_have_text("live")
    pull(page, "load", MLLM)
    expect(row(page, MLLM)).to_contain_text("resident")
    expect(page.locator("#events li").filter(has_text="loaded").first).to_contain_text(MLLM)
    expect(page.locator("#legend")).to_contain_text(f"{MLLM}: 40.0 MiB")
    pull(page, "pin", MLLM)
    expect(row(page, MLLM)).to_contain_text("pinned")
    expect(page.get_by_role("button", name=f"evict {MLLM}", exact=True)).to_be_disabled()
    assert served.pool.status()[0].pinned
    pull(page, "unpin", MLLM)
    expect(page.get_by_role("button", name=f"evict {MLLM}", exact=True)).to_be_enabled()
    pull(page, "evict", MLLM)
    expect(row(page, MLLM)).to_contain_text("absent")
    expect(page.locator("#said")).to_have_text(f"evict {MLLM}: done, 40.0 MiB came back")
    expect(page.locator("#events li").filter(has_text="evicted").first).to_contain_text(MLLM)
    assert served.pool.loads["mllm"] == 1 and served.pool.status()[0].state == "absent"
    watch(served.pool).alerts.tell(Alert("drift", MLLM, "measured more than estimated"))
    expect(page.get_by_role("alert")).to_contain_text("measured more than estimated")


@browsing
def test_the_budget_is_changed_by_keyboard_and_what_is_below_the_need_is_refused(serve: Serve, visit) -> None:
    served = serve()
    page = visit(served)
    for key in (MLLM, ENCODER):
        pull(page, "load", key)
        expect(row(page, key)).to_contain_text("resident")
    page.get_by_label("Budget, GiB").fill("0.05")
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_have_text("the budget is 51.2 MiB now")
    assert served.pool.budget == round(0.05 * 2**30)
    expect(page.locator("#models")).to_contain_text("absent")  # one had to go
    expect(page.locator("#residency polyline.budget")).to_have_count(1)
    [left] = [m.key for m in served.pool.status() if m.state == "resident"]
    pull(page, "pin", left)
    expect(row(page, left)).to_contain_text("pinned")
    page.get_by_label("Budget, GiB").fill("0.01")
    page.get_by_role("button", name="Set the budget").click()
    expect(page.locator("#said")).to_contain_text("leased, pinned")
    assert served.pool.budget == round(0.05 * 2**30)
    pull(page, "unpin", left)
    expect(row(page, left)).not_to_contain_text("pinned")
    page.get_by_role("button", name="Drop all idle models").click()
    expect(page.locator("#said")).to_contain_text("came back")
    assert served.pool.status().used == 0


@browsing
def test_a_dropped_image_is_classified_with_its_reasons_and_counted(serve: Serve, visit, tmp_path: Path) -> None:
    served = serve(reader="may-read")
    page = visit(served, token="may-read")
    content = png()
    page.evaluate(
        """(numbers) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(numbers)], "garden.png", { type: "image/png" }));
            for (const kind of ["dragenter", "dragover", "drop"]) {
                document.getElementById("drop").dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
            }
        }""",
        list(content),
    )
    expect(page.locator("#answer .verdict")).to_contain_text("crow")
    expect(page.locator("#answer")).to_contain_text("The trigger decides: answered by System 1")
    expect(page.locator("#answer .chosen").first).to_contain_text("90.0 %")
    expect(page.get_by_role("img", name="the image garden.png")).to_be_visible()
    assert page.locator("#answer img").evaluate("i => i.complete && i.naturalWidth") == 32
    expect(page.locator("#traffic")).to_contain_text("/api/v1/classify")
    (tmp_path / "not.png").write_bytes(b"no image at all")
    page.set_input_files("#file", tmp_path / "not.png")
    expect(page.locator("#classify-said.wrong")).to_contain_text("not.png")
    assert served.recognizer.seen == [1]


@browsing
def test_a_knowledge_base_in_the_making_is_waited_for(serve: Serve, visit) -> None:
    from tests.server.conftest import FakeRecognizer

    failures = [RuntimeError("no")]

    class Slow(FakeRecognizer):
        def batch(self, images):
            if failures:
                failures.pop()
                from fgvr.server.http_errors import HttpError

                raise HttpError(503, "being built", code="starting", retry=1)
            return super().batch(images)

    page = visit(serve(recognizer=lambda: Slow()), token="")
    page.set_input_files("#file", {"name": "bird.png", "mimeType": "image/png", "buffer": png()})
    expect(page.locator("#answer .verdict")).to_contain_text("crow")
    assert not failures


@browsing
def test_a_token_is_asked_for_kept_in_the_tab_and_forgotten(serve: Serve, visit) -> None:
    served = serve(reader="may-read")
    page = visit(served, token="")
    expect(page.get_by_label("Token", exact=True)).to_be_focused()
    expect(page.locator("#health")).to_have_text("a token is needed to read here")
    page.get_by_label("Token", exact=True).fill("may-read")
    page.keyboard.press("Enter")
    expect(page.locator("#health")).to_have_text("the server answers")
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    pull(page, "load", MLLM)
    expect(page.locator("#said.wrong")).to_contain_text("this token does not open this")
    assert served.pool.loads["mllm"] == 0
    page.get_by_role("button", name="Forget it").click()
    assert page.evaluate("sessionStorage.length") == 0
    expect(page.locator("#health")).to_have_text("a token is needed to read here")


@browsing
def test_a_server_that_goes_away_is_said_and_its_return_noticed(serve: Serve, visit) -> None:
    served = serve()
    page = visit(served)
    expect(page.locator("#listening")).to_have_text("live")
    page.context.set_offline(True)
    expect(page.locator("#health")).to_contain_text("no figures")
    page.context.set_offline(False)
    expect(page.locator("#health")).to_have_text("the server answers")


@browsing
def test_a_phone_scrolls_only_downwards_and_reaches_every_lever(serve: Serve, visit) -> None:
    page = visit(serve(), viewport={"width": 390, "height": 844}, device_scale_factor=2)
    pull(page, "load", MLLM)
    expect(row(page, MLLM)).to_contain_text("resident")
    page.set_input_files("#file", {"name": "bird.png", "mimeType": "image/png", "buffer": png()})
    expect(page.locator("#answer .verdict")).to_contain_text("crow")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [button.bounding_box() for button in page.locator(".controls button").all()]
    assert len(boxes) == 15 and all(box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 30 for box in boxes)


@browsing
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground_and_everything_has_a_name(serve: Serve, visit, scheme: str) -> None:
    page = visit(serve(), color_scheme=scheme)
    expect(row(page, MLLM)).to_contain_text("absent")
    assert (max(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")[:3]) < 60) == (scheme == "dark")
    weakest = page.evaluate(
        """() => {
            const numbers = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
            const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            const light = (c) => numbers(c).map(linear).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const ground = (e) => {
                for (; e; e = e.parentElement) {
                    const colour = getComputedStyle(e).backgroundColor;
                    if (!/, 0\\)$/.test(colour)) return colour;
                }
                return "rgb(255, 255, 255)";
            };
            const contrast = (e) => {
                const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
                return (a + 0.05) / (b + 0.05);
            };
            const words = "h1,h2,h2 span,p,dt,dd,small,th,td,label,a,li,button:not([aria-disabled=true])";
            const shown = [...document.querySelectorAll(words)].filter((e) => e.checkVisibility() && e.textContent.trim());
            return Math.min(...shown.map(contrast));
        }"""
    )
    assert weakest >= 4.5
    assert page.locator("h1").count() == 1
    unnamed = "e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)"
    assert [b for b in page.locator("button, input").all() if b.evaluate(unnamed)] == []
    assert len(page.locator("#residency").get_attribute("aria-label")) > 20


@browsing
def test_the_page_of_addresses_lists_each_and_asks_nobody_else(serve: Serve, visit) -> None:
    served = serve()
    page = visit(served, token="")
    page.get_by_role("link", name="addresses").click()
    expect(page.get_by_role("heading", name="POST /api/v1/classify")).to_be_visible()
    document = served.get("/openapi.json").json()["paths"]
    wanted = [f"{method.upper()} {path}" for path, operations in document.items() for method in operations]
    assert page.locator("h2").all_inner_texts() == wanted


def test_only_the_pages_own_files_are_given_away_and_none_is_missing(serve: Serve) -> None:
    served = serve()
    files = {file.name: file.read_text() for file in STATIC.iterdir()}
    kinds = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
    for name, text in files.items():
        found = served.get(f"/static/{name}")
        assert found.status_code == 200 and found.headers["content-type"].startswith(kinds[Path(name).suffix]) and found.text == text
        assert found.headers["cache-control"] == "no-cache"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    page = served.get("/")
    assert page.headers["content-type"].startswith("text/html") and "default-src 'none'" in page.headers["content-security-policy"]
    linked = set(re.findall(r'(?:src|href)="/static/([\w.]+)"', page.text))
    assert linked and linked <= set(files)
    for name in ("..%2Fauth.py", "%2e%2e/auth.py", "auth.py", "main.js.map", "%00", "a" * 5000):
        assert served.get(f"/static/{name}").status_code == 404


def test_the_bundle_is_what_the_server_was_told_and_needs_the_token(serve: Serve) -> None:
    untold, told = serve(), serve(reader="may-read", bundle={"name_prompts": False})
    assert untold.get("/api/v1/bundle").status_code == 404
    assert told.get("/api/v1/bundle").status_code == 401
    allowed = {"Authorization": "Bearer may-read"}
    assert told.get("/api/v1/bundle", headers=allowed).json() == {"status": "success", "data": {"name_prompts": False}}
