"""From an image file to RGB pixels: what is read, how it is turned, and why it cannot be read."""

import functools
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image as Pictures
from PIL import ImageOps

MAX_ASPECT_RATIO = (
    50  # a longer side of more than so many shorter ones would fill the memory once the shorter is scaled up
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm",
                  ".pgm", ".avif", ".jp2")  # fmt: skip


class Unreadable(Exception):
    """An image that cannot be decoded. The message is the reason, without the name of the file."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats of photographs and drawings that this Pillow decodes itself; for EPS it would call Ghostscript."""
    Pictures.init()
    return tuple(sorted(set(Pictures.OPEN) - {"EPS", "WMF", "FITS", "GRIB", "HDF5", "BUFR", "MPEG"}))


def read_image(path: Path | str | IO[bytes]) -> Pictures.Image:
    """The photograph as RGB, turned as its EXIF orientation says, transparency on white, 16 bits scaled to 8.

    Raises Unreadable if it is missing, no image, cut short, or too large; never warns.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Pictures.DecompressionBombWarning)
            with Pictures.open(path, formats=formats()) as opened:
                if max(opened.size) > MAX_ASPECT_RATIO * min(opened.size):
                    raise Unreadable(f"{opened.width} by {opened.height} pixels is too thin")
                opened.load()
                return _as_rgb(_turned(opened))
    except Unreadable:
        raise
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except (Pictures.DecompressionBombWarning, Pictures.DecompressionBombError):
        raise Unreadable(f"more than {Pictures.MAX_IMAGE_PIXELS:,} pixels") from None
    except Pictures.UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except Exception as error:  # on a damaged file, Pillow's decoders raise whatever they stumble over
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error


def _turned(image: Pictures.Image) -> Pictures.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data around a sound photograph: shown as it lies
        return image


def _as_rgb(image: Pictures.Image) -> Pictures.Image:
    if image.mode == "F":
        raise Unreadable("floating-point pixels of unknown range")
    if image.mode.startswith("I"):  # 16-bit gray; Pillow would clip all above 255 to white. "I" may hold 8 bits, too
        gray = np.asarray(image).astype(np.int64)
        if image.mode.startswith("I;16") or gray.max(initial=0) > 255:
            gray = gray // 257
        return Pictures.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Pictures.new("RGBA", image.size, "white")
        return Pictures.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def open_thumbnail(path: Path | None, side: int) -> Pictures.Image | None:
    """A photograph in RGB, at most `side` pixels wide and high; None if it is missing or cannot be read."""
    if path is None:
        return None
    try:
        photograph = read_image(path)
    except Unreadable:
        return None
    photograph.thumbnail((side, side))
    return photograph
