"""Images that strangers send, checked before they are decoded; and images on their way out, encoded anew.

What goes out is a JPEG of ours, whatever the file is called or holds.
"""

import io
import os
import stat
import warnings
from datetime import datetime
from typing import Any

from PIL import Image as PILImage

from features.images.decode import Timed, Unreadable, formats, jpeg_bytes, read_image, thumbnail, wanting
from features.images.files import ImageFile, file_on_disk, open_image_file, size_of
from utils import BadInput

NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF"
MAX_PIXELS = 50_000_000  # of an image that is sent: a telephone's largest
VIEW_PIXELS, PREVIEW_PIXELS = 1600, 320  # the longer side of an image that goes out, and of one that was sent
FULL_PIXELS, FULL_QUALITY = 65_500, 95  # of an image that goes out at full size: what a JPEG can hold
QUALITY = 88  # of a JPEG that goes out
SHOWN = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "AVIF": "avif"}  # by browsers, as image/…
EXIF, TAKEN, ORIENTATION = 0x8769, 0x9003, 0x0112  # numbers of EXIF's fields


def open_upload(data: bytes) -> PILImage.Image:
    """Decode the image in a file that was sent, as RGB.

    Raises BadInput if it is none, is damaged, or its header announces more than MAX_PIXELS: that is known before
    anything is decoded.
    """
    if not data:
        raise BadInput("the image is empty; choose a file that holds one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large one: it is refused below
            with PILImage.open(Timed(io.BytesIO(data)), formats=formats()) as opened:
                width, height = opened.size
    except PILImage.DecompressionBombError:
        raise BadInput(f"the image has more than {MAX_PIXELS:,} pixels; choose a smaller one") from None
    except Exception:  # on a damaged header, Pillow raises whatever it stumbles over
        what = wanting(data[:12])
        what = f"{what}, where app.py runs" if what else "no image that can be read here"
        raise BadInput(f"the file is {what}; choose a {NAMES}") from None
    if width * height > MAX_PIXELS:
        raise BadInput(f"the image has {width:,} × {height:,} pixels; choose one of {MAX_PIXELS:,} at most")
    try:
        return read_image(io.BytesIO(data))
    except Unreadable as error:
        raise BadInput(f"the image cannot be read ({error}); choose another one") from None


def version_of(path: ImageFile | None) -> str | None:
    """Return what changes when a file is written again; None if it has gone, or is a pipe or the like."""
    if path is None:
        return None
    try:
        status = os.stat(file_on_disk(path))
    except (OSError, ValueError):  # ValueError: a zero byte in its name
        return None
    return f"{status.st_size:x}-{status.st_mtime_ns:x}" if stat.S_ISREG(status.st_mode) else None


def large_jpeg(path: ImageFile, side: int = VIEW_PIXELS, quality: int = QUALITY) -> bytes | None:
    """Encode an image of the index as a JPEG of at most `side` pixels; None if it cannot be read any more."""
    image = thumbnail(path, side)
    return None if image is None else jpeg_bytes(image, side, quality)


def file_facts(path: ImageFile | None) -> dict[str, Any]:
    """Return `width`, `height`, `bytes`, `date` and `type` of an image's file, each None where it cannot be read.

    taken: the date is that of the camera, not that of the file. type: image/…, of a kind that browsers show.
    """
    facts: dict[str, Any] = dict.fromkeys(("width", "height", "bytes", "date", "type")) | {"taken": False}
    if path is None or version_of(path) is None:
        return facts
    status = os.stat(file_on_disk(path))
    facts |= {"bytes": size_of(path), "date": datetime.fromtimestamp(status.st_mtime).isoformat(" ", "minutes")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image_file(path) as file, PILImage.open(Timed(file), formats=formats()) as image:
                if image.format in SHOWN:
                    facts["type"] = f"image/{SHOWN[image.format]}"
                exif, (width, height) = image.getexif(), image.size
                on_its_side = exif.get(ORIENTATION, 1) >= 5
                facts["width"], facts["height"] = (height, width) if on_its_side else (width, height)
                taken = exif.get_ifd(EXIF).get(TAKEN)
                if taken:
                    date = datetime.strptime(taken, "%Y:%m:%d %H:%M:%S").isoformat(" ", "minutes")
                    facts |= {"date": date, "taken": True}
    except Exception:  # no image any more, or damaged EXIF data: Pillow raises whatever it stumbles over
        return facts
    return facts
