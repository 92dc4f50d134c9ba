"""The `fgvr` command against a server that answers as the contract's table says, and without one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fgvr
from fgvr import cli, console, modes
from fgvr.config.configuration import Config
from tests.webfake import Answer, Asked, WebFake, serving

STATS = {
    "total_models": 2, "total_memory_usage": 3 << 30, "memory_limit": 8 << 30, "memory_pressure": False, "system_available": 9 << 30,
    "system_total": 16 << 30, "formatted_usage": "3.00 GiB", "formatted_limit": "8.00 GiB", "formatted_system_available": "9.00 GiB",
    "formatted_system_total": "16.00 GiB", "devices": [],
}  # fmt: skip
PRESSURE = {"pressure": True, "level": "high", "share": 0.91, "used": 9, "limit": 10, "host_low": "", "recommended": ["mllm-0123abcd"]}
MODEL = {
    "key": "mllm-0123abcd", "role": "mllm", "source": "tiny", "state": "resident", "tier": "cpu", "bytes": 1 << 20, "file_bytes": None,
    "leases": 1, "hits": 5, "loads": 1, "idle_seconds": 0.5, "last_used": 1.8e9, "pinned": True, "error": "", "device": "cpu",
}  # fmt: skip
DEVICE = {"name": "cpu", "total": 16 << 30, "free": 1 << 30, "allocated": 0, "reserved": 0}
SYSTEM = {
    "ram_total": 16 << 30, "ram_available": 1 << 30, "ram_used_share": 0.9, "cgroup_limit": None, "swap_total": 0, "swap_used": 0,
    "devices": [DEVICE],
}  # fmt: skip
CACHE = {"hits": 9, "misses": 1, "hit_rate": 0.9, "evictions": 0, "reload_seconds": 0.2}
FIGURES = {"stats": STATS, "pressure": PRESSURE, "models": [MODEL], "system": SYSTEM, "cache-stats": CACHE}


def respond(asked: Asked) -> Any:
    name = asked.path.rpartition("/")[2]
    if asked.method == "POST" and asked.headers.get("authorization") != "Bearer secret":
        return Answer(401, {"status": "error", "data": {"message": "a token is needed"}})
    if name == "events":
        lines = [{"kind": "loaded", "model": "mllm-0123abcd", "bytes": 5}, {"kind": "evicted", "model": "mllm-0123abcd"}]
        return Answer(200, "".join(f"event: x\ndata: {json.dumps(line)}\n\n" for line in lines).encode())
    data = FIGURES.get(name) if asked.method == "GET" else {"released_bytes": 1 << 30}
    return Answer(404, {"detail": "nothing here"}) if data is None else {"status": "success", "data": data}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebFake]:
    monkeypatch.setenv("FGVR_ADMIN_TOKEN", "secret")
    monkeypatch.delenv("FGVR_SERVER_URL", raising=False)
    with serving(respond) as fake:
        yield fake


def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        code = cli.main(words or ["--help"])
    except SystemExit as leaving:  # argparse
        code = int(leaving.code or 0)
    return code, *capsys.readouterr()


@pytest.mark.parametrize(("action", "shown"), [("stats", "3.00 GiB of 8.00 GiB"), ("pressure", "mllm-0123abcd"), ("models", "pinned"),
                                               ("system", "ram total"), ("cache", "hit rate")])  # fmt: skip
def test_figures_of_a_server_as_tables_and_as_json(server, monkeypatch, capsys, action: str, shown: str) -> None:
    code, text, _ = ask(monkeypatch, capsys, "memory", action, "--url", server.url)
    assert code == 0 and shown in text and server.url in text
    code, line, _ = ask(monkeypatch, capsys, "memory", action, "--url", f"{server.url}/v1/", "--json")
    found = json.loads(line)
    figures = FIGURES["cache-stats" if action == "cache" else action]
    assert code == 0 and found == {"server": server.url} | ({"models": figures} if action == "models" else figures)


def test_figures_of_a_server_of_an_earlier_version_are_read(monkeypatch, capsys) -> None:
    monkeypatch.delenv("FGVR_SERVER_URL", raising=False)
    with serving(lambda asked: {"status": "success", "data": {k: v for k, v in STATS.items() if k != "devices"}}) as server:
        code, line, _ = ask(monkeypatch, capsys, "memory", "stats", "--url", server.url, "--json")
    assert code == 0 and json.loads(line)["memory_limit"] == STATS["memory_limit"]


@pytest.mark.parametrize(
    ("words", "path", "query", "body"),
    [
        ("limit 18GiB", "/api/v1/memory/limit", {"limit_gb": "18.0"}, None),
        ("limit 1.5", "/api/v1/memory/limit", {"limit_gb": "1.5"}, None),
        ("cleanup", "/api/v1/memory/cleanup", {}, None),
        ("cleanup mllm encoder", "/api/v1/memory/cleanup", {}, {"models": ["mllm", "encoder"]}),
        ("cleanup --target 2GiB", "/api/v1/memory/cleanup", {}, {"target_bytes": 2 << 30}),
        ("pin mllm", "/api/v1/models/mllm/pin", {}, None),
        ("unpin mllm", "/api/v1/models/mllm/unpin", {}, None),
        ("evict ../x", "/api/v1/models/..%2Fx/evict", {}, None),
        ("load mllm", "/api/v1/models/mllm/load", {}, None),
        ("reset mllm", "/api/v1/models/mllm/reset", {}, None),
    ],
)
def test_levers_send_what_the_contract_says_with_the_token(server, monkeypatch, capsys, words, path, query, body) -> None:
    monkeypatch.setenv("FGVR_SERVER_URL", server.url)
    code, text, complaint = ask(monkeypatch, capsys, "memory", *words.split())
    assert code == 0, complaint
    [asked] = server.asked
    assert (asked.method, asked.path, asked.query, asked.body) == ("POST", path, query, body)
    assert "1.00 GiB" in text or "1.0 GiB" in text


def test_what_goes_wrong_is_said_with_its_cure(server, monkeypatch, capsys) -> None:
    code, _, complaint = ask(monkeypatch, capsys, "memory", "pin", "mllm", "--url", server.url, "--token", "wrong")
    assert code == 3 and "a token is needed" in complaint and "FGVR_ADMIN_TOKEN" in complaint and "wrong" not in complaint
    code, _, complaint = ask(monkeypatch, capsys, "memory", "stats", "--url", "http://127.0.0.1:9")
    assert code == 3 and "no server answers at http://127.0.0.1:9" in complaint and "fgvr serve" in complaint
    code, _, complaint = ask(monkeypatch, capsys, "memory", "stats", "--url", "file:///etc/passwd")
    assert code == 2 and "no server's address" in complaint
    code, _, complaint = ask(monkeypatch, capsys, "memory", "limit", "much", "--url", server.url)
    assert code == 2 and "18GiB" in complaint
    code, _, complaint = ask(monkeypatch, capsys, "memory", "pin", "mllm")
    assert code == 2 and "FGVR_SERVER_URL" in complaint
    assert ask(monkeypatch, capsys, "memory", "explode")[0] == 2
    code, _, complaint = ask(monkeypatch, capsys, "memory", "stats", "--jso")
    assert code == 2 and "unrecognized arguments: --jso; did you mean --json?" in complaint
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FIGURES, "stats", {"total_models": 1})
        code, _, complaint = ask(monkeypatch, capsys, "memory", "stats", "--url", server.url)
    assert code == 3 and "lacks total_memory_usage" in complaint


def test_a_redirect_is_not_followed_since_the_token_would_go_with_it(monkeypatch, capsys) -> None:
    with serving(lambda asked: STATS) as other, serving(lambda asked: Answer(307, {}, {"Location": f"{other.url}/x"})) as server:
        code, _, complaint = ask(monkeypatch, capsys, "memory", "stats", "--url", server.url, "--token", "secret")
        assert (code, other.asked) == (3, []) and "307" in complaint


def test_events_are_told_as_they_come(server, monkeypatch, capsys) -> None:
    code, text, _ = ask(monkeypatch, capsys, "memory", "events", "--url", server.url)
    assert code == 0 and [line.split()[1] for line in text.splitlines()] == ["loaded", "evicted"]
    code, text, _ = ask(monkeypatch, capsys, "memory", "events", "--url", server.url, "--json")
    assert [json.loads(line)["kind"] for line in text.splitlines()] == ["loaded", "evicted"]


def test_watching_asks_again_and_outlives_a_server_that_is_away(server, monkeypatch, intercept, capsys) -> None:
    naps: list[float] = []

    def nap(_: object, seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            server.close()
        if len(naps) == 4:
            raise KeyboardInterrupt

    intercept(console.time, "sleep", nap)
    code, text, complaint = ask(monkeypatch, capsys, "memory", "stats", "--url", server.url, "--json", "--watch", "0.5")
    assert code == 130 and naps == [0.5] * 4 and complaint.endswith("Interrupted; the server goes on.\n")
    assert len(text.splitlines()) == 2 and complaint.count("no server answers") == 2


def test_without_a_server_it_is_this_machine(monkeypatch, capsys) -> None:
    monkeypatch.delenv("FGVR_SERVER_URL", raising=False)
    code, line, _ = ask(monkeypatch, capsys, "memory", "stats", "--json")
    assert code == 0 and json.loads(line)["server"] is None


def test_the_mode_asks_the_server_too(server, capsys) -> None:
    def answer(*words: str) -> dict[str, Any]:
        modes.run(fgvr.load_config("mode=memory", f"server.url={server.url}", "logging=json", *words))
        return json.loads(capsys.readouterr().out)

    assert answer("action=stats") == {"action": "stats", "server": server.url} | STATS
    assert answer("action=models")["models"] == [MODEL]
    answer("action=limit", "limit=2GiB")
    answer("action=cleanup")
    assert [(a.path, a.query) for a in server.asked[-2:]] == [("/api/v1/memory/limit", {"limit_gb": "2.0"}), ("/api/v1/memory/cleanup", {})]
    with pytest.raises(fgvr.ConfigError, match="limit=18GiB"):
        answer("action=limit")


def test_every_mode_is_a_command(monkeypatch, capsys) -> None:
    """`fgvr X` and `python discovering.py mode=X` are one parser: the same words, in either form, are the same configuration."""
    seen: list[Config] = []

    def configuration(*words: str) -> Config:
        assert cli.main(words, seen.append) == 0, capsys.readouterr().err
        return seen.pop()

    for mode in modes.MODES.keys() - {"memory", "classify", "compare", "replay", "discover", "review"}:  # the others need more words
        assert configuration(mode, "seed=3") == configuration("seed=3", f"mode={mode}") == configuration("run", f"mode={mode}", "seed=3")
    assert configuration("classify", "image=a b.jpg").image == "a b.jpg"
    assert cli.main(["evaluate", "-m", "seed=1,2"], seen.append) == 0 and [cfg.seed for cfg in seen] == [1, 2]
    assert ask(monkeypatch, capsys, "plan", "models=fake", "runtime.budget=1GiB")[0] == 0
    assert ask(monkeypatch, capsys, "evaluat")[0] == 2


def test_help_names_every_command(monkeypatch, capsys) -> None:
    for words in ([], ["--help"], ["run"], ["evaluate", "--help"]):
        code, text, _ = ask(monkeypatch, capsys, *words)
        assert code == 0 and all(f"\n  {name} " in text for name in (*cli.COMMANDS, *modes.MODES))
    assert ask(monkeypatch, capsys, "--version")[1] == f"fgvr {fgvr.__version__}\n"


def test_nothing_heavy_is_imported_to_ask_a_server(server) -> None:
    program = (
        f"import sys; sys.argv = ['fgvr', 'memory', 'stats', '--url', {server.url!r}]\n"
        "from fgvr import console; assert console.main() == 0\n"
        "heavy = {'torch', 'numpy', 'hydra', 'omegaconf', 'pydantic', 'transformers', 'openai', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(console.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
