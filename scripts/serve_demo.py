"""One server, three kinds of client at once, each model loaded once: `make serve-demo`, or `python scripts/serve_demo.py [OVERRIDE ...]`.

A notebook's script, a sweep of four processes with `models=remote`, and curl borrow the same tiny models. The same is computed in one
process without a server; ends with 0 when the answers are equal, no client loaded a model, and the server loaded each once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serving import TRIGGERS, Server, client, differences, differs, end_clients, environment, finish, loads, predictions, sweep

from fgvr.session import Session

WORLD = ("dataset.genera=[3,3]", "dataset.test_per_class=4", "dataset.shots=4", "dataset.calibration=1")
NOTEBOOK = """
import json, sys
import fgvr
from fgvr.evaluation.records import to_row
words, images = json.loads(sys.argv[1]), sys.argv[2:]
recognizer = fgvr.build_recognizer(fgvr.load_config(*words))
rows = [to_row(recognizer(image)) for image in images]
with fgvr.shared_pool().lease("joint") as joint:
    from PIL import Image
    shown = [Image.open(image).convert("RGB") for image in images]
    matches = [float(p) for p in joint.match(shown, ["a bird with a red crown"] * len(shown))]
print(json.dumps({"rows": rows, "matches": matches, "loads": dict(fgvr.shared_pool().loads), "torch": "torch" in sys.modules}))
"""


def main(words: list[str]) -> int:
    world = [*WORLD, *words]
    with tempfile.TemporaryDirectory(prefix="fgvr-serve-demo-") as folder:
        top = Path(folder)
        images = pictures(top, world)
        server = Server(top / "server", world)
        try:
            print(f"server at {server.url}: healthy after {server.wait():.1f} s")
            wrong, told = compare(top, world, images, server)
        finally:
            end_clients()
            code = server.stop()
        wrong += [f"the server ended with {code}"] if code else []
        wrong += [f"the server said: {line.strip()}" for line in server.said if "Traceback" in line or " ERROR " in line]
        print(f"server stopped, exit code {code}", *wrong, told, sep="\n")
        return 1 if wrong else 0


def compare(top: Path, world: list[str], images: list[Path], server: Server) -> tuple[list[str], str]:
    """What is wrong, and the loads in words."""
    began = time.monotonic()
    there = {"FGVR_SERVER_URL": server.url}
    shown = [str(image) for image in images]
    parallel = ["models=remote", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={len(TRIGGERS)}"]
    notebook = client(["-c", NOTEBOOK, json.dumps(["models=remote", f"paths.home={top / 'notebook'}", *world]), *shown], **there)
    sweeping = sweep(top / "sweep", world, *parallel, **there)
    curled = curl(server.url, images[0])
    said = json.loads(finish(notebook, "the notebook's script"))
    finish(sweeping, "the sweep")
    print(f"a notebook's script, a sweep of {len(TRIGGERS)} processes and curl were done after {time.monotonic() - began:.1f} s")
    rows = {row["key"]: row for row in server.service.get("/api/v1/memory/models")}
    counts = {row["role"]: row["loads"] for row in rows.values()}

    alone = client(["-c", NOTEBOOK, json.dumps(["models=tiny", f"paths.home={top / 'alone'}", *world]), *shown])
    expected = json.loads(finish(alone, "the same script without a server"))
    finish(sweep(top / "alone-sweep", world, "models=tiny"), "the same sweep without a server")

    wrong = [f"notebook: {text}" for row, other in zip(said["rows"], expected["rows"], strict=True) if (text := differs(row, other))]
    wrong += [f"curl: {text}" for text in [differs(curled, {**expected["rows"][0], "sha256": curled["sha256"]})] if text]
    far = [i for i, (a, b) in enumerate(zip(said["matches"], expected["matches"], strict=True)) if abs(a - b) > 1e-3]
    wrong += [f"match of image {i}: {said['matches'][i]} against {expected['matches'][i]}" for i in far]
    here, remote = predictions(top / "alone-sweep"), predictions(top / "sweep")
    wrong += differences(here, remote)
    own = {role: said["loads"][role] + count for role, count in loads(top / "sweep").items()}
    wrong += [f"the clients loaded models themselves: {own}"] if any(own.values()) else []
    wrong += ["the notebook's script imported torch"] if said["torch"] else []
    wrong += [f"{role} was loaded {count} times" for role, count in counts.items() if count != 1]
    each = len(next(iter(here.values()), []))
    print(
        f"{len(images)} images of the script, {len(TRIGGERS)} x {each} of the sweep, 1 of curl: " + ("equal" if not wrong else "DIFFERENT")
    )
    told = ", ".join(f"{role} {counts[role]}" for role in sorted(counts))
    return wrong, f"loads on this machine: {told}; by the clients themselves: {sum(own.values())}"


def pictures(top: Path, world: list[str]) -> list[Path]:
    """Three test images as files."""
    import fgvr
    from fgvr.utils.images import read_image

    files = []
    for i, sample in enumerate(Session(fgvr.load_config(f"paths.home={top / 'drawn'}", *world)).dataset.split.test[:9:3]):
        files.append(top / f"bird {i}.png")
        read_image(sample.image)[0].save(files[-1])
    return files


def curl(url: str, image: Path) -> dict[str, Any]:
    """The image's row, as anybody without our code would ask for it. A base in the making is a 503 with Retry-After, which curl obeys."""
    program = shutil.which("curl") or sys.exit("no curl here: install it (apt-get install curl)")
    command = [
        program,
        "--silent",
        "--show-error",
        "--fail",
        "--retry",
        "60",
        "--retry-max-time",
        "600",
        "-F",
        f"images=@{image}",
        f"{url}/api/v1/classify",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=900)
    if done.returncode:
        raise SystemExit(f"curl failed with {done.returncode}: {done.stderr}")
    answer = json.loads(done.stdout)
    if answer["status"] != "success":
        raise SystemExit(f"curl was answered {answer}")
    return answer["data"]["predictions"][0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
