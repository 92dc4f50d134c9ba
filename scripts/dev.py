"""The project's commands, with all their set-up: python3 scripts/dev.py run | test | check | ...

Standard library only. The environment is `.venv`, with the versions of constraints.txt: made when it is missing, completed when the
dependencies have changed, and otherwise left alone, so that everything works without a network once it is in place.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV, CANARY = ROOT / ".venv", ROOT / ".venv-canary"
CONSTRAINTS = ROOT / "constraints.txt"
MAIN, DEV = "remote,serve", "dev"  # extras: what README's commands need, and what development needs
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "NO_MKDOCS_2_WARNING": "1"}

RUN = (
    "python discovering.py mode=evaluate dataset=produce slow=person",  # photographs; the unsure ones go into a review page
    "python discovering.py mode=build_knowledge_base",
    "python discovering.py mode=fast_slow",
)
LINT = ("ruff format --check .", "ruff check .", "pyright", "lint-imports")
DOCS = "python -m mkdocs build"  # strict: mkdocs.yml
TEST = "python -m pytest -n 2 --dist loadfile"
AT_START = ("hydra", "omegaconf", "antlr4", "yaml", "rich", "psutil", "packaging", "hydra_plugins", "numpy", "PIL", "pyarrow")
OF_USERS = ("run", "serve-demo")
TARGETS = {
    "run": ("recognise photographs of fruit and vegetables, then rendered birds by both systems", RUN),
    "test": ("the tests", (TEST,)),
    "lint": ("format, lint, types, import directions", LINT),
    "check": ("lint, documentation and tests: what .ci/run runs", (*LINT, DOCS, TEST)),
    "docs": ("the documentation, into site/", (DOCS,)),
    "docs-serve": (
        "the documentation at http://127.0.0.1:8008, made anew when a page changes",
        ("python -m mkdocs serve --dev-addr 127.0.0.1:8008",),
    ),
    "lock": ("constraints.txt anew: the newest versions that pyproject.toml and this machine's pip allow", ("python scripts/lock.py",)),
    "canary": ("the tests with the newest versions, in another environment", ("python scripts/lock.py --moved", TEST)),
    "check-long": ("check with the slow tests", (*LINT, DOCS, f"{TEST} -m 'not gpu' --timeout 1800")),
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
    place = CANARY if target == "canary" else VENV
    install(place, MAIN if target in OF_USERS else DEV, locked=target != "canary")
    for command in TARGETS[target][1]:
        print(f"$ {command}", flush=True)
        program, *words = shlex.split(command)
        ours = programs(place, program)
        if code := subprocess.run([ours if ours.exists() else program, *words], cwd=ROOT, env=environment()).returncode:
            return code
    return 0


def environment() -> dict[str, str]:
    """Bytecode is always kept: otherwise each process compiles torch and transformers anew, 21 s of CPU instead of 10."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | ENVIRONMENT


def install(place: Path, extras: str, *, locked: bool = True) -> None:
    """Bring an environment in line with pyproject.toml and constraints.txt; uv is three times faster than pip, and pip will do."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file runs before any installer has checked)
        sys.exit(f"fgvr needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = CONSTRAINTS.read_text(encoding="utf-8") if locked else "newest"
    wanted = hashlib.sha256(f"{ROOT} {project} {versions}".encode()).hexdigest()
    stamp = place / "fgvr-installed"
    there = stamp.read_text().split() if stamp.is_file() else []
    if locked and there in ([wanted, extras], [wanted, DEV]):
        return
    if not locked:
        shutil.rmtree(place, ignore_errors=True)  # what is newest is decided anew each time
    print(f"installing into {place} (about 6 GB with torch; minutes, once)", flush=True)
    if not programs(place, "pip").exists():
        venv.create(place, with_pip=True)
    python = programs(place, "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    uv = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    package = ["--editable", f"{ROOT}[{extras}]", *(["--constraint", CONSTRAINTS] if locked else [])]
    bound = ["--constraint", CONSTRAINTS] if locked else []
    with_uv = subprocess.run([*pip, "uv", *bound]).returncode == 0 and subprocess.run([*uv, *package]).returncode == 0
    if not with_uv and subprocess.run([*pip, *package]).returncode:
        sys.exit("The installation failed (see above); the same command tries again.")
    compile_start(place)
    stamp.write_text(f"{wanted} {DEV if DEV in there else extras}")


def programs(place: Path, name: str) -> Path:
    return place / ("Scripts" if os.name == "nt" else "bin") / name


def compile_start(place: Path) -> None:
    """Bytecode of what every command imports. uv makes none, and where PYTHONDONTWRITEBYTECODE is set each start would compile it anew:
    1.1 instead of .8 s CPU before a wrong key is named."""
    sites = [*place.glob("lib/python*/site-packages"), *place.glob("Lib/site-packages")]
    folders = [site / name for site in sites for name in AT_START if (site / name).is_dir()]
    if subprocess.run([programs(place, "python"), "-m", "compileall", "-q", *folders, ROOT / "fgvr"]).returncode:
        sys.exit("Compiling to bytecode failed (see above); the same command tries again.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))
