"""The process that unpacks pictures: reads one from standard input, writes its pixels to standard output, ends when the pipe closes.

It imports Pillow and NumPy, no model. `decoding.py` starts it, and ends it when a picture takes too long.
"""

from __future__ import annotations

import json
import struct
import sys
import warnings
from typing import Any, BinaryIO

HEAD = struct.Struct("!QQ")
"""Sizes of what follows: a JSON record, then bytes."""


def write(pipe: BinaryIO, record: dict[str, Any], content: bytes = b"") -> None:
    text = json.dumps(record).encode()
    pipe.write(HEAD.pack(len(text), len(content)))
    pipe.write(text)
    pipe.write(content)
    pipe.flush()


def read(pipe: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """None: the other side has ended."""
    head = pipe.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    lengths = HEAD.unpack(head)
    text, content = (pipe.read(length) for length in lengths)
    return None if (len(text), len(content)) != lengths else (json.loads(text), content)


def main() -> None:
    from fgvr.errors import ImageError
    from fgvr.utils.images import read_image

    warnings.simplefilter("ignore")  # Pillow warns about damaged metadata; standard error is the server's
    write(sys.stdout.buffer, {})  # ready: starting is not counted as the picture's time
    while (asked := read(sys.stdin.buffer)) is not None:
        record, data = asked
        del asked
        try:
            image, sha256, content = read_image(data, max_pixels=record["max_pixels"])
        except ImageError as error:
            write(sys.stdout.buffer, {"error": str(error)})
        else:
            write(sys.stdout.buffer, {"size": image.size, "sha256": sha256, "content": content}, image.tobytes())
            del image
        del data


if __name__ == "__main__":
    main()
