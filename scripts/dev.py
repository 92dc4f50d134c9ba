"""The project's commands, with all their set-up: python3 scripts/dev.py run | test | check | ...

Standard library only. The environment is `.venv`: made when it is missing, completed when the dependencies have changed, and
otherwise left alone, so that everything works without a network once it is in place.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "fgvr-installed"
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

RUN = ("python discovering.py mode=build_knowledge_base", "python discovering.py mode=fast_slow")
LINT = ("ruff format --check .", "ruff check .", "pyright", "lint-imports")
TEST = "python -m pytest -n 2 --dist loadfile"
AT_START = ("hydra", "omegaconf", "antlr4", "yaml", "rich", "psutil", "packaging", "hydra_plugins", "numpy", "PIL", "pyarrow")
TARGETS = {
    "run": ("build the birds knowledge base, then recognise with it", RUN),
    "test": ("the tests", (TEST,)),
    "lint": ("format, lint, types, import directions", LINT),
    "check": ("lint and test: what .ci/run runs", (*LINT, TEST)),
    "check-long": ("check with the slow tests", (*LINT, f"{TEST} -m 'not gpu' --timeout 1800")),
    "mutants": ("one-line mistakes in the pool's sources: does the stress harness catch them?", ("python scripts/mutants.py",)),
    "birds-table": ("fast, slow and both on the reserved worlds", ("python scripts/birds_table.py",)),
    "ablation": ("what each part adds, on the reserved worlds", ("python scripts/ablation.py --write-docs",)),
    "serve-demo": ("one server, three kinds of client, each model loaded once", ("python scripts/serve_demo.py",)),
    "browser": ("chromium for the tests of pages (Debian, Ubuntu; as root)", ("apt-get install --yes --no-install-recommends chromium",)),
    "train-tiny": ("train the shipped tiny models again", ("python scripts/train_tiny.py",)),
}


def main(target: str) -> int:
    if target not in TARGETS:
        print("\n".join(f"make {name:<12} {what}" for name, (what, _) in TARGETS.items()))
        return 0 if target == "help" else 2
    install()
    for command in TARGETS[target][1]:
        print(f"$ {command}", flush=True)
        program, *words = shlex.split(command)
        ours = BIN / program
        if code := subprocess.run([ours if ours.exists() else program, *words], cwd=ROOT, env=environment()).returncode:
            return code
    return 0


def environment() -> dict[str, str]:
    """Bytecode is always kept: otherwise each process compiles torch and transformers anew, 21 s of CPU instead of 10."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | ENVIRONMENT


def install() -> None:
    """Bring `.venv` in line with pyproject.toml; uv is three times faster than pip, and pip will do."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file runs before any installer has checked)
        sys.exit(f"fgvr needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = hashlib.sha256(f"{ROOT} {project}".encode()).hexdigest()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    print(f"installing into {VENV} (about 6 GB with torch; minutes, once)", flush=True)
    if not (BIN / "pip").exists():
        venv.create(VENV, with_pip=True)
    pip = [BIN / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    uv = [BIN / "python", "-m", "uv", "pip", "install", "--quiet", "--python", BIN / "python"]
    package = ["--editable", f"{ROOT}[dev]"]
    with_uv = subprocess.run([*pip, "uv"]).returncode == 0 and subprocess.run([*uv, *package]).returncode == 0
    if not with_uv and subprocess.run([*pip, *package]).returncode:
        sys.exit("The installation failed (see above); the same command tries again.")
    compile_start()
    STAMP.write_text(wanted)


def compile_start() -> None:
    """Bytecode of what every command imports. uv makes none, and where PYTHONDONTWRITEBYTECODE is set each start would compile it anew:
    1.1 instead of .8 s CPU before a wrong key is named."""
    sites = [*VENV.glob("lib/python*/site-packages"), *VENV.glob("Lib/site-packages")]
    folders = [site / name for site in sites for name in AT_START if (site / name).is_dir()]
    if subprocess.run([BIN / "python", "-m", "compileall", "-q", *folders, ROOT / "fgvr"]).returncode:
        sys.exit("Compiling to bytecode failed (see above); the same command tries again.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))
