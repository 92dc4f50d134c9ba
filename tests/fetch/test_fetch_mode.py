"""`fgvr fetch`, in processes of its own against servers of this machine; nothing else ever leaves it."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from tests.fetch.publisher import Publisher, publishing

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


def hub(publisher: Publisher, repository: str = "org/small") -> None:
    """The addresses of huggingface_hub for one repository of two files."""
    files = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    commit = "c" * 40
    info = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files], "cardData": {"license": "apache-2.0"}}
    tree = [{"type": "file", "path": name, "oid": "0" * 40, "size": len(content)} for name, content in files.items()]
    for path in (f"/api/models/{repository}", f"/api/models/{repository}/revision/main", f"/api/models/{repository}/revision/{commit}"):
        publisher.files[path] = json.dumps(info).encode()
    publisher.files[f"/api/models/{repository}/tree/{commit}?recursive=true&expand=false"] = json.dumps(tree).encode()
    for name, content in files.items():
        publisher.files[f"/{repository}/resolve/{commit}/{name}"] = content
        etag = hashlib.sha256(content).hexdigest() if name.endswith("safetensors") else hashlib.sha1(content).hexdigest()
        publisher.headers[f"/{repository}/resolve/{commit}/{name}"] = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}


def test_a_model_is_planned_asked_for_and_fetched_once(tmp_path):
    words = ("fetch", "models.mllm.source=org/small", "models.mllm.loader=qwen")
    with publishing(Publisher({})) as publisher:
        hub(publisher)
        asked = fgvr(*words, home=tmp_path, endpoint=publisher.url)
        assert asked.returncode == 2 and "write fetch.ask=false (or --yes)" in asked.stderr, asked.stderr
        assert "mllm: org/small" in asked.stderr and "apache-2.0" in asked.stderr and "1.0 MiB" in asked.stderr
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


def test_a_data_set_with_another_content_than_the_published_one_is_refused(tmp_path):
    with publishing(Publisher({"/dtd-r1.0.1.tar.gz": b"<html>moved</html>"})) as publisher:
        found = fgvr("fetch", "--yes", "dataset=dtd47", f"fetch.mirror={publisher.url}", f"paths.data={tmp_path}/data", home=tmp_path)
    assert found.returncode == 3 and "is not the file that was published" in found.stderr, found.stderr
    assert list((tmp_path / "data" / "dtd47").glob("*")) == [tmp_path / "data" / "dtd47" / ".downloads"]


def test_what_no_program_can_get_says_who_must_be_asked(tmp_path):
    found = fgvr("fetch", "--yes", "dataset=imagenet1k", home=tmp_path)
    assert found.returncode == 3 and "image-net.org gives it to people" in found.stderr


def test_nothing_to_fetch_is_said(tmp_path):
    found = fgvr("fetch", home=tmp_path)
    assert found.returncode == 0 and "everything that this configuration needs is on this machine" in found.stdout


@pytest.mark.parametrize("mirror", ["ftp://x", "5", "nowhere"])
def test_a_mirror_that_is_no_address_is_refused(tmp_path, mirror):
    found = fgvr("fetch", "--yes", "dataset=dtd47", f"fetch.mirror={mirror}", home=tmp_path)
    assert found.returncode == 2 and "fetch.mirror" in found.stderr


def test_no_other_mode_asks_the_hub(tmp_path):
    with publishing(Publisher({})) as publisher:
        hub(publisher)
        said = fgvr("doctor", "models.mllm.source=org/small", "models.mllm.loader=qwen", home=tmp_path, endpoint=publisher.url)
        built = fgvr(
            "build_knowledge_base", "models.mllm.source=org/small", "models.mllm.loader=qwen", home=tmp_path, endpoint=publisher.url
        )
    assert said.returncode == 3 and built.returncode == 3, built.stderr
    assert "is not on this machine" in built.stderr and "mode=fetch" in built.stderr and "Traceback" not in built.stderr
    assert publisher.asked == []
