import hashlib
import io
import re
import tarfile
import zipfile

import pytest

from fgvr.data.benchmarks import BENCHMARKS, locate_archive
from fgvr.errors import DatasetError, RemoteError, StoreError
from fgvr.fetch import Published, fetch_benchmark, plan_benchmark, published, remote_files
from fgvr.fetch.download import RemoteFile
from tests.data.archives import TREES
from tests.fetch.publisher import Halfway, Publisher, publishing


def tar(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/"))
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, content in files.items():
            packed.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def served(publisher: Publisher, *, inner: str = "") -> Published:
    files = tuple(
        RemoteFile(f"{publisher.url}{path}", f"sha256:{hashlib.sha256(content).hexdigest()}", inner if path.endswith("zip") else "")
        for path, content in publisher.files.items()
    )
    return Published("MIT", files)


def test_archives_and_plain_files_end_in_the_root_and_the_downloads_leave(tmp_path):
    files = {"/images.tar.gz": tar(jpg__a=b"picture"), "/labels.mat": b"labels"}
    with publishing(Publisher(files)) as publisher:
        known = served(publisher)
        plan = plan_benchmark(known, "Flowers", tmp_path / "new" / "flowers")
        assert plan.size == sum(map(len, files.values())) and plan.licence == "MIT"
        fetch_benchmark(known, plan.destination)
    found = {path.relative_to(plan.destination).as_posix() for path in plan.destination.rglob("*") if path.is_file()}
    assert found == {"jpg/a", "labels.mat"}


def test_an_archive_inside_an_archive_is_unpacked_too(tmp_path):
    packed = zipped(**{"caltech__objects.tar.gz": tar(objects__x=b"1")})
    with publishing(Publisher({"/caltech.zip": packed})) as publisher:
        fetch_benchmark(served(publisher, inner="caltech/objects.tar.gz"), tmp_path)
    assert (tmp_path / "caltech/objects/x").read_bytes() == b"1" and not (tmp_path / "caltech/objects.tar.gz").exists()


def test_what_an_earlier_attempt_brought_is_not_counted_again(tmp_path):
    content = tar(a=b"x" * 5000)
    (tmp_path / ".downloads").mkdir()
    (tmp_path / ".downloads" / "a.tgz.part").write_bytes(content[:40])
    with publishing(Publisher({"/a.tgz": content})) as publisher:
        assert plan_benchmark(served(publisher), "A", tmp_path).size == len(content) - 40
        fetch_benchmark(served(publisher), tmp_path)
        assert ("GET", "/a.tgz", "bytes=40-") in publisher.asked


@pytest.mark.parametrize("name", ["dtd47", "pets37"])
def test_a_set_that_was_interrupted_at_half_goes_on_from_there_and_is_read(name, tmp_path):
    tree = TREES[name](tmp_path / "published")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        packed.add(tree.root, ".")
    content, root = stream.getvalue(), tmp_path / "root"
    half = len(content) // 2
    with publishing(Publisher({"/set.tar.gz": content}, break_after=Halfway({"/set.tar.gz": half}))) as publisher:
        known = served(publisher)
        with pytest.raises(RemoteError, match="broke off after .*; the same command goes on from there"):
            fetch_benchmark(known, root)
        with pytest.raises(DatasetError, match=f"fgvr fetch dataset={name}"):
            locate_archive(name, root)
        publisher.break_after, publisher.asked[:] = {}, []
        assert plan_benchmark(known, name, root).size == len(content) - half
        fetch_benchmark(known, root)
        assert publisher.asked[-1] == ("GET", "/set.tar.gz", f"bytes={half}-")
    assert locate_archive(name, root).is_relative_to(root) and not (root / ".downloads").exists()
    (shown,) = root.rglob(tree.a_test.rpartition("/")[2])
    assert shown.read_bytes() == next(tree.root.rglob(shown.name)).read_bytes()


def test_a_disk_that_is_too_small_is_said_before_a_byte_arrives(tmp_path):
    with publishing(Publisher({"/a.tgz": b""})) as publisher:
        known = served(publisher)
        publisher.files["/a.tgz"] = Huge()
        with pytest.raises(StoreError, match="free: make room, or set paths.data"):
            plan_benchmark(known, "A", tmp_path)
    assert {method for method, _, _ in publisher.asked} == {"HEAD"}


class Huge(bytes):
    def __len__(self) -> int:
        return 1 << 60


def test_paths_that_lead_outside_are_refused(tmp_path):
    with (
        publishing(Publisher({"/a.tgz": tar(**{"..__..__evil": b"x"})})) as publisher,
        pytest.raises(DatasetError, match="cannot be unpacked"),
    ):
        fetch_benchmark(served(publisher), tmp_path / "root")
    assert not (tmp_path / "evil").exists()


def test_every_published_set_has_addresses_with_hashes_or_says_where_to_ask():
    assert published().keys() == BENCHMARKS.keys()
    for name, known in published().items():
        assert known.licence and bool(known.files) != bool(known.ask), name
        for file in known.files:
            assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", file.checksum) and file.url.startswith("http"), file
    with pytest.raises(DatasetError, match="cannot be fetched by a program: image-net.org"):
        remote_files("imagenet1k")
    assert [file.url for file in remote_files("dtd47", "http://mirror/x/").files] == ["http://mirror/x/dtd-r1.0.1.tar.gz"]
