import hashlib
import socket
import threading

import pytest

from fgvr.errors import RemoteError
from fgvr.fetch.download import RemoteFile, announced_size, download
from tests.fetch.publisher import Halfway, Publisher, publishing

CONTENT = bytes(range(256)) * 8192  # 2 MiB
CHECKSUM = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


def test_a_file_arrives_whole_and_verified(tmp_path):
    with publishing(Publisher({"/birds.tar": CONTENT})) as publisher:
        file = RemoteFile(f"{publisher.url}/birds.tar?download=1", CHECKSUM)
        publisher.files["/birds.tar?download=1"] = CONTENT
        assert announced_size(file) == len(CONTENT)
        assert download(file, tmp_path / "birds.tar").read_bytes() == CONTENT
        assert (tmp_path / "birds.tar").exists()


def test_a_connection_that_breaks_off_goes_on_from_there_by_itself(tmp_path):
    half = len(CONTENT) // 2
    with publishing(Publisher({"/a.tar": CONTENT}, break_after={"/a.tar": half})) as publisher:
        assert download(RemoteFile(f"{publisher.url}/a.tar", CHECKSUM), tmp_path / "a.tar").read_bytes() == CONTENT
    ranges = [asked for _, _, asked in publisher.asked]
    assert ranges[0] == "" and ranges[1].startswith("bytes=") and 0 < int(ranges[1][6:-1]) <= half


def test_the_next_command_goes_on_from_what_an_interrupted_one_left(tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:1000])
    with publishing(Publisher({"/a.tar": CONTENT})) as publisher:
        assert download(RemoteFile(f"{publisher.url}/a.tar", CHECKSUM), tmp_path / "a.tar").read_bytes() == CONTENT
        assert publisher.asked == [("GET", "/a.tar", "bytes=1000-")]
        download(RemoteFile(f"{publisher.url}/a.tar", CHECKSUM), tmp_path / "a.tar")
    assert len(publisher.asked) == 1, "what is here whole is not asked for again"


def test_a_server_without_ranges_sends_everything_anew(tmp_path):
    (tmp_path / "a.tar.part").write_bytes(b"something else")
    with publishing(Publisher({"/a.tar": CONTENT}, ranges=False)) as publisher:
        assert download(RemoteFile(f"{publisher.url}/a.tar", CHECKSUM), tmp_path / "a.tar").read_bytes() == CONTENT


def test_a_part_that_is_already_whole_is_verified_without_another_byte(tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT)
    with publishing(Publisher({"/a.tar": CONTENT})) as publisher:
        assert download(RemoteFile(f"{publisher.url}/a.tar", CHECKSUM), tmp_path / "a.tar").read_bytes() == CONTENT


def test_another_content_is_refused_and_removed(tmp_path):
    with publishing(Publisher({"/a.tar": b"<html>moved</html>"})) as publisher, pytest.raises(RemoteError, match="not the file that was"):
        download(RemoteFile(f"{publisher.url}/a.tar", CHECKSUM), tmp_path / "a.tar")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_a_server_that_refuses_or_is_away_is_named(tmp_path):
    with publishing(Publisher({})) as publisher:
        with pytest.raises(RemoteError, match="refused \\(404"):
            download(RemoteFile(f"{publisher.url}/a.tar", CHECKSUM), tmp_path / "a.tar")
        with pytest.raises(RemoteError, match="refused \\(404"):
            announced_size(RemoteFile(f"{publisher.url}/a.tar", CHECKSUM))
        gone = publisher.url
    with pytest.raises(RemoteError, match="cannot be reached"):
        download(RemoteFile(f"{gone}/a.tar", CHECKSUM), tmp_path / "a.tar")


def test_a_server_that_hangs_up_without_a_word_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = threading.Thread(target=lambda: server.accept()[0].close())
        silent.start()
        with pytest.raises(RemoteError, match="does not answer"):
            announced_size(RemoteFile(f"http://127.0.0.1:{server.getsockname()[1]}/a.tar", CHECKSUM))
        silent.join()


def test_a_server_that_always_breaks_off_is_given_up_and_what_came_is_kept(tmp_path):
    with publishing(Publisher({"/a.tar": CONTENT})) as publisher:
        publisher.break_after = Halfway({"/a.tar": 0})
        (tmp_path / "a.tar.part").write_bytes(CONTENT[:1000])
        with pytest.raises(RemoteError, match="goes on from there"):
            download(RemoteFile(f"{publisher.url}/a.tar", CHECKSUM), tmp_path / "a.tar")
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:1000]
