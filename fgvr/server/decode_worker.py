"""The process that unpacks pictures, one after the other, until its pipe closes. It imports Pillow and NumPy, no model."""

import ctypes
import json
import os
import signal
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection


def main(pipe: Connection, max_pixels: int) -> None:
    """Answers an encoded picture with a JSON record and the pixels."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends this process
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # glibc alone has it (Windows: TypeError): what is freed goes back at once, so that the budget is the truth.
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(-3, 1 << 20)
    from fgvr.errors import ImageError
    from fgvr.utils.images import read_image

    warnings.simplefilter("ignore")  # Pillow warns about damaged metadata; standard error is the server's
    pixels = b""
    pipe.send_bytes(b"ready")  # starting is not counted as the picture's time
    with suppress(EOFError, OSError):  # the server has ended
        while True:
            data = pipe.recv_bytes()
            try:
                image, sha256, content = read_image(data, max_pixels=max_pixels)
            except ImageError as error:
                record = {"error": str(error)}
            else:
                record, pixels = {"size": image.size, "sha256": sha256, "content": content}, image.tobytes()
                del image
            del data
            pipe.send_bytes(json.dumps(record).encode())
            pipe.send_bytes(pixels)
            pixels = b""
