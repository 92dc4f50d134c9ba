"""System 2 behind every kind of engine, all by the shipped tiny models: predictions, calls to the MLLM, unreadable answers.

    python scripts/engines.py [OVERRIDE ...]

A server of fgvr is an engine that can do everything. A front takes abilities away from it: log-likelihoods of given text, then all
log-probabilities. At last two servers hold the model, and one is killed in the middle. Ends with 0 when no row is missing, every row of the
server equals the one computed in one process, and the killed server cost nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from serving import Server, client, differs, end_clients, finish

WORLD = ("dataset.genera=[2,2]", "dataset.test_per_class=6", "dataset.shots=2", "dataset.calibration=0", "trigger=always")
QUICK = ("knowledge.rehearse=false", "slow.weight=0.5")  # no base asks System 2 while it is built
HIDDEN = {"fingerprint", "role", "logit_scale", "source", "state"}  # of a list of models: what only a server of fgvr tells


@contextmanager
def front(server: Server, *, logprobs: bool) -> Iterator[str]:
    """The address of an engine that generates with the server's MLLM and can do nothing else, `top_logprobs` perhaps excepted."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            rows = self._forward(None)["data"]
            self._answer({"data": [{k: v for k, v in row.items() if k not in HIDDEN} for row in rows if row["role"] == "mllm"]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "prompt_logprobs" in body or (not logprobs and "logprobs" in body):
                return self._answer({"error": {"message": "unknown parameter"}}, 400)
            self._answer(self._forward(body))

        def _forward(self, body: Any) -> Any:
            headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
            asked = urllib.request.Request(f"{server.url}{self.path}", None if body is None else json.dumps(body).encode(), headers)
            with urllib.request.urlopen(asked, timeout=600) as found:
                return json.load(found)

        def _answer(self, found: Any, status: int = 200) -> None:
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Silence."""

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/v1"
    finally:
        made.shutdown()
        made.server_close()


def rows(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in home.glob("runs/evaluate/*/predictions.jsonl") for line in file.read_text().splitlines()]


def run(home: Path, words: Sequence[str], token: str, *, dies: Server | None = None, total: int = 0) -> list[dict[str, Any]]:
    """The rows of one evaluation; `dies` is killed when a third of `total` rows are written."""
    asked = ["mode=evaluate", "models=tiny", "logging=quiet", f"paths.home={home}", "evaluation.batch_size=4", *words]
    process = client(["discovering.py", *asked], FGVR_API_KEY=token)
    while dies is not None and process.poll() is None:
        if len(rows(home)) >= total // 3:
            dies.kill()
            print(f"killed {dies.url} after {len(rows(home))} of {total} rows", flush=True)
            break
        time.sleep(0.02)
    finish(process, " ".join(words))
    return rows(home)


def line(name: str, found: Sequence[dict[str, Any]], like: Sequence[dict[str, Any]] | None) -> tuple[str, bool]:
    right = sum(row["prediction"] == row["label"] for row in found)
    unreadable = sum(row["slow"]["status"] == "unreadable" for row in found)
    calls = sum(row["cost"]["mllm_calls"] for row in found)
    others = {row["image"]: row for row in like or ()}
    different = [text for row in found if others and (text := differs(row, others[row["image"]]))]
    equal = "" if like is None else "equal" if not different and len(found) == len(like) else f"{len(different)} differ: {different[:1]}"
    return f"| {name} | {len(found)} | {calls} | {unreadable} | {right} | {equal} |", equal in ("", "equal")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    world = [*WORLD, *QUICK, *parser.parse_args().overrides]
    with tempfile.TemporaryDirectory(prefix="fgvr-engines-") as folder:
        top = Path(folder)
        alone = {slow: run(top / slow, [*world, f"slow={slow}"], "") for slow in ("score", "reason")}
        lines = [line(f"in this process, slow={slow}", found, None) for slow, found in alone.items()]
        first = Server(top / "first", world)
        second = Server(top / "second", world, token=first.token)
        try:
            first.wait(900)
            held = f"models.mllm.source={first.url}/v1"
            for slow, expected in alone.items():
                found = run(top / f"server-{slow}", [*world, f"slow={slow}", "models/mllm=remote", held], first.token)
                lines.append(line(f"a server of fgvr, slow={slow}", found, expected))
            for logprobs, votes in ((True, 1), (False, 1), (False, 5)):
                with front(first, logprobs=logprobs) as address:
                    words = ["slow=reason", f"slow.votes={votes}", "models/mllm=vllm", f"models.mllm.source={address}"]
                    found = run(top / f"front-{logprobs}-{votes}", [*world, *words], first.token)
                kind = "top_logprobs only" if logprobs else "replies only"
                lines.append(line(f"{kind}, slow=reason slow.votes={votes}", found, None))
            second.wait(900)
            both = f"models.mllm.source=[{first.url}/v1,{second.url}/v1]"
            words = [*world, "slow=reason", "models/mllm=remote", both]
            found = run(top / "both", words, first.token, dies=second, total=len(alone["reason"]))
            lines.append(line("two servers, one killed in the middle, slow=reason", found, alone["reason"]))
        finally:
            end_clients()
            first.stop()
            second.stop()
    print("| engine | rows | MLLM calls | unreadable | right | against one process |\n|---|---|---|---|---|---|")
    print("\n".join(text for text, _ in lines))
    return 0 if all(well for _, well in lines) and len({len(found) for found in [*alone.values(), found]}) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
