"""From an image file to RGB pixels and small JPEGs: what is read, how it is turned, and why it cannot be read."""

import contextlib
import functools
import importlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from features.images.files import Cell, ImageFile, Span, open_image_file
from utils import BadInput

MAX_ASPECT_RATIO = 50  # more, and the longer side would fill the memory once the shorter is scaled up
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm",
                  ".pgm", ".avif", ".heic", ".heif", ".jp2")  # fmt: skip
ImageSource = ImageFile | str | IO[bytes] | PILImage.Image
AVIF_BRANDS = (b"avif", b"avis")  # of a file's first box
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class Unreadable(Exception):
    """An image that cannot be decoded. The message is the reason, without the name of the file."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the formats that Pillow decodes itself, and HEIF with pillow-heif; for EPS it would call Ghostscript."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    PILImage.init()
    return tuple(sorted(set(PILImage.OPEN) - {"EPS", "WMF", "FITS", "GRIB", "HDF5", "BUFR", "MPEG"}))


def read_image(path: ImageSource) -> PILImage.Image:
    """Read an image as RGB, turned as its EXIF orientation says, transparency on white, 16 bits scaled to 8.

    path: a file, open or not or inside another, or an image that Pillow has opened, which stays as it is. Raises
    Unreadable if it is missing, no image, cut short, or too large; never warns.
    """
    source = _opened(path) if isinstance(path, Span | Cell) else path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PILImage.DecompressionBombWarning)
            if isinstance(source, PILImage.Image):
                return _upright_rgb(source)
            with PILImage.open(source, formats=formats()) as opened:
                return _upright_rgb(opened)
    except Unreadable:
        raise
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except (PILImage.DecompressionBombWarning, PILImage.DecompressionBombError):
        raise Unreadable(f"more than {PILImage.MAX_IMAGE_PIXELS:,} pixels") from None
    except PILImage.UnidentifiedImageError:
        assert not isinstance(source, PILImage.Image)
        raise Unreadable(wanting(source) or "not an image") from None
    except Exception as error:  # on a damaged file, Pillow's decoders raise whatever they stumble over
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error


def as_images(images: ImageSource | Iterable[ImageSource]) -> list[ImageSource]:
    """Return images as a list, one alone as a list of one. Raises BadInput for what is neither file nor image.

    >>> as_images("a.jpg"), len(as_images([PILImage.new("RGB", (2, 2)), "b.jpg"]))
    (['a.jpg'], 2)
    """
    given: list[Any] = [images] if _is_one(images) or not isinstance(images, Iterable) else list(images)
    for image in given:
        if not _is_one(image):
            what = f"{type(image).__name__}: is no image"
            raise BadInput(
                f"{what}; give a path, an open file or an image of PIL (Image.fromarray makes one), or a list"
            )
    return given


def _is_one(image: Any) -> bool:
    return isinstance(image, str | ImageFile | PILImage.Image) or hasattr(image, "read")


def _opened(image: Span | Cell) -> IO[bytes]:
    try:
        return open_image_file(image)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None


def wanting(path: Path | str | IO[bytes]) -> str | None:
    """Return what is not installed that would read a file of the HEIF family; None for any other file."""
    with open(path, "rb") if isinstance(path, Path | str) else contextlib.nullcontext(path) as file:
        file.seek(0)
        start = file.read(12)
    for brands, name, remedy in (
        (HEIF_BRANDS, "HEIF", "which needs a package: pip install pillow-heif"),
        (AVIF_BRANDS, "AVIF", "which needs a newer Pillow: pip install --upgrade pillow"),
    ):
        if start[4:8] == b"ftyp" and start[8:] in brands and name not in formats():
            return f"{name}, {remedy}"
    return None


def _upright_rgb(image: PILImage.Image) -> PILImage.Image:
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise Unreadable(f"{image.width} by {image.height} pixels is too thin")
    image.load()
    return _as_rgb(_turned(image))


def _turned(image: PILImage.Image) -> PILImage.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data around sound pixels: shown as they lie
        return image


def _as_rgb(image: PILImage.Image) -> PILImage.Image:
    if image.mode == "F":
        raise Unreadable("floating-point pixels of unknown range")
    if image.mode.startswith("I"):  # 16-bit gray; Pillow would clip all above 255 to white. "I" may hold 8 bits, too
        gray = np.asarray(image).astype(np.int64)
        if image.mode.startswith("I;16") or gray.max(initial=0) > 255:
            gray = gray // 257
        return PILImage.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PILImage.new("RGBA", image.size, "white")
        return PILImage.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def thumbnail(path: ImageFile | None, side: int) -> PILImage.Image | None:
    """Read an image as RGB, at most `side` pixels wide and high; None if it is missing or cannot be read.

    >>> thumbnail(Path("no such file.jpg"), 64) is None
    True
    """
    if path is None:
        return None
    try:
        image = read_image(path)
    except Unreadable:
        return None
    image.thumbnail((side, side))
    return image


def jpeg_bytes(image: PILImage.Image, side: int, quality: int = 80, optimize: bool = False) -> bytes:
    """Encode an RGB image as a JPEG of at most `side` pixels a side; the image itself may shrink.

    >>> jpeg_bytes(PILImage.new("RGB", (64, 32)), 16)[:2]
    b'\\xff\\xd8'
    """
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=optimize)
    return buffer.getvalue()
