"""What operators copy: every metric that is named is one the server has, every setting one that exists."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import yaml

import fgvr
from fgvr.server.settings import Settings

from .conftest import Serve, chat

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "docs/ops"


def test_metrics_of_rules_and_dashboard_exist(serve: Serve) -> None:
    served = serve()
    served.post("/v1/chat/completions", chat())
    served.get("/v1/models/unknown")
    known = set(re.findall(r"^# TYPE (\S+)", served.get("/metrics").text, re.MULTILINE))
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    rules = yaml.safe_load((OPS / "alerts.yml").read_text())["groups"][0]["rules"]
    panels = json.loads((OPS / "grafana.json").read_text())["panels"]
    used = {rule["alert"]: rule["expr"] for rule in rules} | {p["title"]: " ".join(t["expr"] for t in p["targets"]) for p in panels}
    assert len(used) == len(rules) + len(panels) > 15
    for name, expression in used.items():
        named = set(re.findall(r"\b(?:fgvr|process)_\w+", expression))
        assert named <= known, (name, named - known)
        assert named or "up{" in expression


def test_metrics_follow_the_conventions(serve: Serve) -> None:
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)", serve().get("/metrics").text, re.MULTILINE):
        assert name.startswith(("fgvr_", "process_")), name
        if kind == "counter":
            assert name.endswith("_total"), name
        assert not name.endswith(("_ms", "_mb", "_milliseconds")), name


def test_settings_that_are_documented_exist() -> None:
    fields = set(Settings.__dataclass_fields__)
    yaml_keys = set(yaml.safe_load((ROOT / "configs/mode/serve.yaml").read_text())["server"])
    assert yaml_keys == fields
    for page in (OPS / "README.md", ROOT / "docs/server.md", OPS / "fgvr.service"):
        assert set(re.findall(r"\bserver\.([a-z_]+)\b", page.read_text())) - {"env", "log", "sh", "md", "pid", "json"} <= fields, page


def test_scripts_are_shell(tmp_path: Path) -> None:
    for name in ("serve", "stop", "restart_clean"):
        script = ROOT / f"scripts/{name}.sh"
        assert script.stat().st_mode & 0o111
        assert subprocess.run(["sh", "-n", script], capture_output=True).returncode == 0
    gone = subprocess.run(
        [ROOT / "scripts/stop.sh"], env={"FGVR_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert (gone.returncode, "no server" in gone.stdout) == (0, True)


def test_the_environment_sets_what_the_command_line_leaves() -> None:
    from fgvr.modes.serving import with_environment
    from fgvr.session import Session

    overrides = {"server.port": 9000, "runtime.budget": "1073741824", "server.max_body": "1MiB"}
    found = with_environment(Session(fgvr.load_config("mode=serve", "server.port=9001")), overrides).config
    assert (found.server.port, found.runtime.budget, found.server.max_body) == (9001, "1073741824", "1MiB")
    assert Settings.of(found.to_dict()["server"]).max_body == 1 << 20
