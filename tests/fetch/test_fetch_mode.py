"""`fgvr fetch`, in processes of its own against servers of this machine; nothing else ever leaves it."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from fgvr import cli
from tests.fetch.publisher import Halfway, Publisher, publishing

CONFIG = b'{"model_type": "qwen2_5_vl"}'
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB


def fgvr(*words: str, home, endpoint: str = "http://127.0.0.1:9", **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "FGVR_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-c", "import sys; from fgvr.console import main; sys.exit(main())", *words]
    return subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def hub(publisher: Publisher, repository: str = "org/small", *, sha256: str = hashlib.sha256(WEIGHTS).hexdigest()) -> str:
    """The addresses of huggingface_hub for one repository of two files, with this hash of its weights. Their path."""
    files = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    commit = "c" * 40
    lfs = {"model.safetensors": {"lfs": {"sha256": sha256, "oid": sha256, "size": len(WEIGHTS), "pointerSize": 1}, "size": len(WEIGHTS)}}
    info = {"id": repository, "sha": commit, "cardData": {"license": "apache-2.0"}}
    info |= {"siblings": [{"rfilename": name, **lfs.get(name, {})} for name in files]}
    tree = [{"type": "file", "path": name, "oid": "0" * 40, "size": len(content)} | lfs.get(name, {}) for name, content in files.items()]
    for path in (f"/api/models/{repository}", f"/api/models/{repository}/revision/main", f"/api/models/{repository}/revision/{commit}"):
        publisher.files[path] = publisher.files[f"{path}?blobs=true"] = json.dumps(info).encode()
    publisher.files[f"/api/models/{repository}/tree/{commit}?recursive=true&expand=false"] = json.dumps(tree).encode()
    for name, content in files.items():
        publisher.files[f"/{repository}/resolve/{commit}/{name}"] = content
        etag = sha256 if name.endswith("safetensors") else hashlib.sha1(content).hexdigest()
        publisher.headers[f"/{repository}/resolve/{commit}/{name}"] = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
    return f"/{repository}/resolve/{commit}/model.safetensors"


WORDS = ("fetch", "--yes", "models.mllm.source=org/small", "models.mllm.loader=qwen")


def test_a_model_that_was_interrupted_at_half_goes_on_from_there(tmp_path):
    with publishing(Publisher({})) as publisher:
        weights = hub(publisher)
        publisher.break_after = Halfway({weights: len(WEIGHTS) // 2})
        broken = fgvr(*WORDS, home=tmp_path, endpoint=publisher.url)
        assert broken.returncode == 3 and "broke off after 512.0 KiB" in broken.stderr and "Traceback" not in broken.stderr, broken.stderr
        publisher.break_after, publisher.asked[:] = {}, []
        assert fgvr(*WORDS, home=tmp_path, endpoint=publisher.url).returncode == 0
        assert [asked for method, path, asked in publisher.asked if (method, path) == ("GET", weights)] == [f"bytes={len(WEIGHTS) // 2}-"]
        (found,) = (tmp_path / "hf").rglob("snapshots/*/model.safetensors")
        assert found.read_bytes() == WEIGHTS and not list((tmp_path / "hf").rglob("*.part"))


def test_a_model_with_another_hash_is_refused(tmp_path):
    with publishing(Publisher({})) as publisher:
        hub(publisher, sha256="0" * 64)
        refused = fgvr(*WORDS, home=tmp_path, endpoint=publisher.url)
    assert refused.returncode == 3 and "is not the file that was published: its sha256 is" in refused.stderr, refused.stderr
    assert not list((tmp_path / "hf").rglob("snapshots/*/model.safetensors"))


def test_what_cannot_work_is_said_before_a_byte_of_the_model_arrives(tmp_path):
    with publishing(Publisher({})) as publisher:
        publisher.files[hub(publisher)] = Huge()
        small = fgvr(*WORDS, home=tmp_path, endpoint=publisher.url)
        assert (
            small.returncode == 3
            and "org/small needs 1073741824.00 GiB, and" in small.stderr
            and "set HF_HOME to a larger disk" in small.stderr
        )
        assert not [path for method, path, _ in publisher.asked if method == "GET" and path.endswith("safetensors")]
    for variable, value in (("HTTPS_PROXY", "gopher://x"), ("SSL_CERT_FILE", "/nowhere.pem")):
        wrong = fgvr(*WORDS, home=tmp_path, endpoint="https://hub.invalid", **{variable: value})
        assert wrong.returncode == 2 and f"{variable}={value}" in wrong.stderr and "Traceback" not in wrong.stderr, wrong.stderr


def test_a_model_is_planned_asked_for_and_fetched_once(tmp_path):
    words = ("fetch", "models.mllm.source=org/small", "models.mllm.loader=qwen")
    with publishing(Publisher({})) as publisher:
        hub(publisher)
        asked = fgvr(*words, home=tmp_path, endpoint=publisher.url)
        assert asked.returncode == 2 and "write fetch.ask=false (or --yes)" in asked.stderr, asked.stderr
        assert all(word in asked.stderr for word in ("mllm: org/small", "apache-2.0", "1.0 MiB", "are free"))
        assert not any(method == "GET" and path.endswith("safetensors") for method, path, _ in publisher.asked)
        brought = fgvr(*words, "--yes", home=tmp_path, endpoint=publisher.url)
        assert brought.returncode == 0, brought.stderr
        assert "mode=build_knowledge_base in place of mode=fetch" in brought.stdout
        again = fgvr(*words, "--yes", home=tmp_path, endpoint=publisher.url)
        assert again.returncode == 0 and "is on this machine" in again.stdout
    assert [path.read_bytes() for path in (tmp_path / "hf").rglob("snapshots/*/model.safetensors")] == [WEIGHTS]


def test_a_model_that_the_hub_lacks_and_a_hub_that_is_away_are_named(tmp_path):
    words = ("fetch", "--yes", "models.mllm.source=org/none", "models.mllm.loader=qwen")
    with publishing(Publisher({})) as publisher:
        publisher.headers["*"] = {"X-Error-Code": "RepoNotFound"}
        lacking = fgvr(*words, home=tmp_path, endpoint=publisher.url)
    assert lacking.returncode == 3 and "the hub has no model org/none" in lacking.stderr, lacking.stderr
    away = fgvr(*words, home=tmp_path)
    assert away.returncode == 3 and "http://127.0.0.1:9 cannot give org/none" in away.stderr and "Traceback" not in away.stderr
    offline = fgvr(*words, home=tmp_path, HF_HUB_OFFLINE="1")
    assert offline.returncode == 3 and "HF_HUB_OFFLINE forbids downloads" in offline.stderr


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """The same in this process, for what asks no hub: exit code and what was said."""

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("FGVR_DATA", str(tmp_path / "data"))
        code = cli.main(["fetch", *words])
        return code, *capsys.readouterr()

    return command


def test_a_data_set_with_another_content_than_the_published_one_is_refused(tmp_path, here):
    with publishing(Publisher({"/dtd-r1.0.1.tar.gz": b"<html>moved</html>"})) as publisher:
        code, _, err = here("--yes", "dataset=dtd47", f"fetch.mirror={publisher.url}")
    assert code == 3 and "is not the file that was published" in err, err
    assert list((tmp_path / "data" / "dtd47").glob("*")) == [tmp_path / "data" / "dtd47" / ".downloads"]


def test_what_no_program_can_get_says_who_must_be_asked(here):
    code, _, err = here("--yes", "dataset=imagenet1k")
    assert code == 3 and "image-net.org gives it to people" in err


def test_nothing_to_fetch_is_said(here):
    code, out, err = here()
    assert code == 0 and "everything that this configuration needs is on this machine" in out, err


@pytest.mark.parametrize("mirror", ["ftp://x", "5", "nowhere"])
def test_a_mirror_that_is_no_address_is_refused(here, mirror):
    code, _, err = here("--yes", "dataset=dtd47", f"fetch.mirror={mirror}")
    assert code == 2 and "fetch.mirror" in err


def test_no_other_mode_asks_anybody(tmp_path):
    """Every attempt to find or reach a machine is listened for: by commands that lack a model or a data set, and by one that lacks none."""
    small = ["dataset.genera=[2,2]", "dataset.test_per_class=1", "dataset.shots=2", "dataset.calibration=0"]
    model = ["models.mllm.source=org/small", "models.mllm.loader=transformers", *small]
    commands = [["doctor", *model], ["build_knowledge_base", *model], ["evaluate", "dataset=dtd47"], ["fastonly", "models=fake", *small]]
    listening = f"""
import json, sys
asked = []
sys.addaudithook(lambda event, args: asked.append([event, repr(args)]) if event in ("socket.connect", "socket.getaddrinfo") else None)
from fgvr.cli import main
codes = [main(words) for words in {commands!r}]
print(json.dumps([codes, asked]))
"""
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "FGVR_HOME": str(tmp_path), "FGVR_DATA": str(tmp_path / "data")}
    found = subprocess.run([sys.executable, "-c", listening], env=os.environ | environment, capture_output=True, text=True, timeout=300)
    codes, asked = json.loads(found.stdout.splitlines()[-1])
    assert asked == []
    assert codes[1:] == [3, 3, 0] and "Traceback" not in found.stderr, found.stderr
    assert "is not on this machine" in found.stderr and "mode=fetch" in found.stderr and "fgvr fetch dataset=dtd47" in found.stderr


class Huge(bytes):
    def __len__(self) -> int:
        return 1 << 60
