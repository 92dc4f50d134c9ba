"""A newcomer's first minutes: the tutorial's block as it stands, typed in order, with no token, no variable and no picture at hand."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fgvr.utils.running_server import announced, find_server

from .conftest import Serve

ROOT = Path(__file__).resolve().parents[2]
WORLD = ("dataset.genera=[2,2]", "dataset.test_per_class=2", "dataset.shots=2", "dataset.calibration=1")


def block() -> list[str]:
    found = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/tutorials/server.md").read_text(), re.DOTALL)
    return [line for line in found[-1].splitlines() if line.strip()]


def surroundings(folder: Path) -> dict[str, str]:
    """A newcomer's: nothing of ours is set but where things lie."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("FGVR_") and k != "ADMIN_TOKEN"}
    return mine | {"FGVR_HOME": str(folder / "home"), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                   "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip


@pytest.mark.timeout(600)
def test_the_tutorials_block_works_as_it_is_typed(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = surroundings(tmp_path)
    server = subprocess.Popen(["fgvr", "serve", f"server.port={port}", *WORLD], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        said = []
        for line in server.stderr:
            said.append(line)
            if "ready: images are classified" in line:
                break
        assert any("is being built or opened" in line for line in said), said
        assert any("these models know only rendered birds" in line for line in said), said
        record = tmp_path / "home" / "server.json"
        assert record.stat().st_mode & 0o777 == 0o600
        assert json.loads(record.read_text())["url"] == f"http://127.0.0.1:{port}"
        answers = []
        for line in block():
            if line.startswith("export"):
                env["FGVR_SERVER_URL"] = f"http://127.0.0.1:{port}"
                continue
            typed = line.replace(":8000", f":{port}").replace("models=remote", " ".join(["models=remote", *map(repr, WORLD)]))
            done = subprocess.run(["bash", "-c", typed.replace("curl ", "curl -sS --fail-with-body ")], cwd=tmp_path, env=env,
                                  capture_output=True, text=True, timeout=240)  # fmt: skip
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            answers.append(done.stdout)
        _, classified, models, limit, curled, query, cleanup = answers
        row = json.loads(curled)["data"]["predictions"][0]
        assert "know only rendered birds" in curled and row["unsure"] is False
        assert row["name"] in classified and "mllm-" in models and "8.00 GiB" in limit
        assert json.loads(query)["data"]["answer"] and "released" in cleanup
        env.pop("FGVR_SERVER_URL")  # the controls find the server without it, too
        done = subprocess.run(["fgvr", "memory", "pin", "encoder", "--json"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and json.loads(done.stdout)["server"].endswith(str(port)), done.stderr
    finally:
        server.send_signal(signal.SIGINT)
        told = server.communicate(timeout=60)[1]
    assert server.returncode == 130 and not record.exists()
    assert told.endswith("fgvr serve has stopped; the same command starts it again.\n") and "resumes" not in told


def test_a_server_that_has_died_or_that_others_can_read_is_not_found(tmp_path: Path) -> None:
    with announced(tmp_path, "http://127.0.0.1:1", "t"):
        found = find_server(tmp_path)
        assert found is not None and (found.url, found.token) == ("http://127.0.0.1:1", "t")
        with pytest.MonkeyPatch.context() as windows:
            windows.delattr(os, "getuid")
            assert find_server(tmp_path) == found
        file = tmp_path / "server.json"
        file.chmod(0o644)
        assert find_server(tmp_path) is None
        file.chmod(0o600)
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        file.write_text(json.dumps({"url": "http://127.0.0.1:1", "token": "t", "pid": dead.pid}))
        assert find_server(tmp_path) is None
        file.write_text("{")
        assert find_server(tmp_path) is None
    assert file.exists()  # not this server's any more


def test_readiness_says_that_the_base_is_being_built(serve: Serve) -> None:
    def build() -> object:
        time.sleep(1.0)
        raise RuntimeError("no base")

    served = serve(recognizer=build)
    told: list[str] = []
    made = served.server.classifier.begin(told.append)
    answer = served.get("/health")
    assert answer.status_code == 503 and "being built" in answer.json()["reason"]
    assert isinstance(made.exception(10), RuntimeError)
    assert served.get("/health").status_code == 200
    assert "being built" in told[0]
