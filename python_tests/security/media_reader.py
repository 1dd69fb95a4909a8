"""Reads media files whose paths come on standard input, under a limit on memory and one on time; run as a script.

Answers each with a line of JSON: the shape of what was read, or the kind and the text of the error.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

SECONDS = 60  # of one file, on a busy machine
MEMORY_BYTES = 3 << 30


def read(path: str, options: dict[str, Any]) -> Any:
    from lumos_engine.io.image import IMAGE_SUFFIXES, cover_and_crop, read_image
    from lumos_engine.io.video import read_video

    if Path(path).suffix in IMAGE_SUFFIXES:
        image = read_image(path)
        return cover_and_crop(image, *options["size"]).shape if "size" in options else image.shape
    return read_video(path, **options).frames.shape


def main() -> None:
    import av.logging
    import numpy  # noqa: F401 - counted before the limit is set
    from PIL import Image

    Image.init()
    av.logging.set_level(av.logging.PANIC)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    threading.stack_size(1 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(SECONDS)  # ends the process, which is what a hang would otherwise not do
        try:
            answer: dict[str, Any] = {"shape": list(read(request["path"], request["options"]))}
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        signal.alarm(0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
