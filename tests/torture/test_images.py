"""The largest image of every format takes a stated memory and time; a damaged one is read or refused."""

import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image as PILImage

from features.images.decode import MAX_PIXELS, MAX_PIXELS_OF, MAX_SECONDS, Unreadable, read_image
from tests.helpers import ROOT

MAX_BYTES = 1.1e9  # of memory
SHORT_PIXELS = 4_000_000
EXIF = PILImage.Exif()
EXIF[0x0112] = 6  # a quarter of a turn

# name → mode, format, options of writing, and whether the suite tries it, too
LARGE: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "JPEG": ("RGB", "JPEG", {}, False),
    "JPEG, turned": ("RGB", "JPEG", {"exif": EXIF}, True),
    "JPEG, CMYK": ("CMYK", "JPEG", {}, False),
    "JPEG, progressive, not subsampled": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}, False),
    "JPEG, CMYK, progressive": ("CMYK", "JPEG", {"progressive": True, "subsampling": 0}, False),
    "PNG": ("RGB", "PNG", {"compress_level": 1}, False),
    "PNG, RGBA": ("RGBA", "PNG", {"compress_level": 1}, True),
    "PNG, transparent palette": ("P", "PNG", {"compress_level": 1, "transparency": 3}, False),
    "PNG, 16 bits": ("I;16", "PNG", {"compress_level": 1}, True),
    "GIF, transparent": ("P", "GIF", {"transparency": 3}, False),
    "BMP": ("RGB", "BMP", {}, False),
    "PPM": ("RGB", "PPM", {}, False),
    "TIFF, RGBA, LZW": ("RGBA", "TIFF", {"compression": "tiff_lzw"}, False),
    "TIFF, CMYK": ("CMYK", "TIFF", {}, True),
    "WebP, RGBA": ("RGBA", "WEBP", {"quality": 50, "method": 0}, True),
    "WebP, RGBA, lossless": ("RGBA", "WEBP", {"lossless": True, "method": 0}, False),
    "JPEG 2000, RGBA": ("RGBA", "JPEG2000", {"irreversible": True}, False),
    "AVIF, RGBA": ("RGBA", "AVIF", {"speed": 10, "subsampling": "4:4:4"}, False),
    "HEIC, RGBA": ("RGBA", "HEIF", {"enc_params": {"preset": "ultrafast"}}, False),
}
MEASURE = """
import json, pathlib, re, sys, time
from PIL import Image
from features.images.decode import read_image
Image.new("RGBA", (9, 9)).save(sys.argv[2])
read_image(sys.argv[2])
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before, start = peak(), time.process_time()
image = read_image(pathlib.Path(sys.argv[1]))
print(json.dumps([peak() - before, time.process_time() - start, image.width * image.height]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux has it")
@pytest.mark.parametrize("name", LARGE)
def test_the_largest_image_takes_a_stated_memory_and_time(name: str, torture: bool, tmp_path: Path) -> None:
    mode, format, options, in_suite = LARGE[name]
    if not (torture or in_suite):
        pytest.skip("takes minutes")
    limit = MAX_PIXELS_OF.get(format, MAX_PIXELS)
    side = isqrt(limit if torture else SHORT_PIXELS)
    pillow_heif.register_heif_opener()
    PILImage.new(mode, (side, side), 3 if mode in ("P", "I;16") else (90, 60, 30, 200)[: len(mode)]).save(
        tmp_path / "a", format, **options
    )
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a"), str(tmp_path / "small.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    memory, seconds, pixels = json.loads(done.stdout)
    print(f"{name}: {pixels:,} pixels, {memory / 1e6:,.0f} MB, {seconds:.1f} s")
    assert pixels == side * side
    assert memory < MAX_BYTES / limit * pixels + (0 if torture else 2**24)
    assert seconds < MAX_SECONDS


def small_files() -> dict[str, bytes]:
    """A small image of every format, some in several ways."""
    pillow_heif.register_heif_opener()
    noise = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))

    def frames() -> dict[str, Any]:
        return {"save_all": True, "append_images": [noise.rotate(90)]}

    kinds: dict[str, tuple[PILImage.Image, str, dict[str, Any]]] = {
        "jpeg": (noise, "JPEG", {"exif": EXIF, "comment": b"x"}),
        "progressive": (noise, "JPEG", {"progressive": True}),
        "mpo": (noise, "MPO", frames()),
        "cmyk": (noise.convert("CMYK"), "JPEG", {}),
        "png": (noise, "PNG", {"exif": EXIF}),
        "palette": (noise.convert("P"), "PNG", {"transparency": 3}),
        "apng": (noise, "PNG", frames()),
        "gif": (noise.convert("P"), "GIF", {}),
        "animated": (noise, "GIF", frames()),
        "webp": (noise, "WEBP", {"exif": EXIF}),
        "lossless": (noise.convert("RGBA"), "WEBP", {"lossless": True}),
        "awebp": (noise, "WEBP", frames()),
        "bmp": (noise, "BMP", {}),
        "gray": (noise.convert("L"), "BMP", {}),
        "tiff": (noise, "TIFF", {"exif": EXIF}),
        "lzw": (noise, "TIFF", {"compression": "tiff_lzw"}),
        "deflate": (noise.convert("RGBA"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        "in a tiff": (noise, "TIFF", {"compression": "jpeg"}),
        "fax": (noise.convert("1"), "TIFF", {"compression": "group4"}),
        "pages": (noise, "TIFF", frames()),
        "ppm": (noise, "PPM", {}),
        "jp2": (noise, "JPEG2000", {}),
        "lossy": (noise, "JPEG2000", {"irreversible": True, "quality_layers": [20], "tile_size": (32, 32)}),
        "avif": (noise, "AVIF", {"speed": 10}),
        "avifs": (noise, "AVIF", {"speed": 10, **frames()}),
        "heic": (noise, "HEIF", {}),
    }
    files = {}
    for name, (image, format, options) in kinds.items():
        buffer = io.BytesIO()
        image.copy().save(buffer, format, **options)
        files[name] = buffer.getvalue()
    return files


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return the bytes of a file with some of them changed, cut out, doubled or at the end cut off."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = min(int(draw.random() ** draw.choice((1, 3)) * len(changed)), len(changed) - 1)  # headers rather
        length = draw.choice((1, 1, 2, 4, 8))
        match draw.randrange(5):
            case 0:
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at : at + length] = draw.choice((b"\xff", b"\0", b"\x7f")) * length
            case 2:
                changed[at : at + length] = draw.randbytes(length)
            case 3:
                changed[at : at + 8 * length] = b""
            case 4:
                changed[at:at] = changed[at : at + 8 * length]
        changed = changed or bytearray(b"\0")
    return bytes(changed[: draw.randrange(len(changed)) + 1] if draw.random() < 0.1 else changed)


def read_mutations(files: dict[str, bytes], seed: int, count: int, until: float, folder: Path) -> None:
    """Read mutations, each kept in `folder` while it is read; leave how many, and what did not end as promised."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes there
    draw, done, failures = random.Random(seed), 0, []
    for done in range(1, count + 1):
        name = draw.choice(list(files))
        content = mutated(files[name], draw)
        (folder / "last").write_bytes(content)
        start = time.process_time()
        try:
            image = read_image(io.BytesIO(content))
            if image.mode != "RGB":
                failures.append(f"{name}: {image.mode}")
        except Unreadable as error:
            if "\n" in str(error) or not str(error):
                failures.append(f"{name}: {error!r}")
        except Exception as error:
            failures.append(f"{name}: {error!r}")
        if time.process_time() - start > 5:
            failures.append(f"{name}: {time.process_time() - start:.1f} s")
            (folder / f"slow-{done}").write_bytes(content)
        if time.monotonic() > until:
            break
    (folder / "done.json").write_text(json.dumps([done, failures]))


def in_child(work: Callable[..., None], *arguments: Any) -> int | None:
    """Return the exit status of a process that does the work, negative for the signal that has ended it."""
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    child.join()
    return child.exitcode


def test_a_damaged_image_is_read_or_refused(torture: bool, tmp_path: Path) -> None:
    count, until = (1_000_000, time.monotonic() + 600) if torture else (1500, time.monotonic() + 20)
    status = in_child(read_mutations, small_files(), 16, count, until, tmp_path)
    assert status == 0, f"{tmp_path / 'last'} has ended the process: {status}"
    done, failures = json.loads((tmp_path / "done.json").read_text())
    print(f"{done:,} damaged images")
    assert not failures
    assert done >= 100
