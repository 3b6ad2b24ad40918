"""From an image file to RGB pixels and small JPEGs: what is read, how it is turned, and why it cannot be read."""

import contextlib
import errno
import functools
import importlib
import io
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from features.images.files import ImageFile, open_image_file
from utils import BadInput

# Of what is read. An EPS would be run by Ghostscript, and rare formats have rarely been attacked.
FORMATS = {"JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF"}
MAX_ASPECT_RATIO = 50  # more, and the longer side would fill the memory once the shorter is scaled up
MAX_PIXELS = 89_478_485  # as Pillow has it
# Of formats whose decoders hold it several times: no image takes more than 1.1 GB, see docs/RELIABILITY.md.
MAX_PIXELS_OF = {"HEIF": 80_000_000, "WEBP": 60_000_000, "AVIF": 50_000_000, "JPEG2000": 40_000_000}
MAX_SECONDS = 30  # of a processor, for one image
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
STRIP_PIXELS = 2**20  # that are converted at a time
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm",
                  ".pgm", ".avif", ".heic", ".heif", ".jp2")  # fmt: skip
ImageSource = ImageFile | str | IO[bytes] | PILImage.Image
AVIF_BRANDS = (b"avif", b"avis")  # of a file's first box
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class Unreadable(Exception):
    """An image that cannot be decoded. The message is the reason, without the name of the file."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Return those of FORMATS that can be read: HEIF with pillow-heif, AVIF with a Pillow that is new enough."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    PILImage.init()
    return tuple(sorted(FORMATS & set(PILImage.OPEN)))


def read_image(source: ImageSource) -> PILImage.Image:
    """Read an image as RGB, turned as its EXIF orientation says, transparency on white, 16 bits scaled to 8.

    Of several frames or pages it is the first; a color profile is not applied. source: a file, open or not or inside
    another, or an image that Pillow has opened, which stays as it is. Raises Unreadable if it is missing, no file, no
    image of FORMATS, cut short, too large, or takes more than MAX_SECONDS; never warns.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(source, PILImage.Image):
                _check_size(source)
                return _upright_rgb(source.copy())
            with _opened(source) as file:
                return _upright_rgb(_identified(file))
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("takes more memory than there is") from None
    except Exception as error:  # on a damaged file, Pillow's decoders raise whatever they stumble over
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error


def _identified(file: IO[bytes]) -> PILImage.Image:
    """Read the header of an image. Raises Unreadable if it is none, or too large."""
    try:
        image = PILImage.open(cast(IO[bytes], Timed(file)), formats=formats())
    except PILImage.DecompressionBombError:
        raise Unreadable(f"more than {MAX_PIXELS:,} pixels") from None
    except PILImage.UnidentifiedImageError:
        file.seek(0)
        raise Unreadable(wanting(file.read(12)) or "not an image, or of a format that is not read") from None
    _check_size(image)
    return image


class Timed:
    """A file that is not read any more when its reader has computed for MAX_SECONDS: some bytes keep a decoder busy."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.end = file, time.thread_time() + MAX_SECONDS

    def read(self, size: int = -1) -> bytes:
        if time.thread_time() > self.end:
            raise Unreadable(f"takes more than {MAX_SECONDS} seconds")
        return self.file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


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


@contextlib.contextmanager
def _opened(source: ImageFile | str | IO[bytes]) -> Iterator[IO[bytes]]:
    """Open a file, which is closed at the end; one that is open stays so. Raises Unreadable."""
    if not isinstance(source, ImageFile | str):
        yield source
        return
    try:
        file = open_image_file(Path(source) if isinstance(source, str) else source)
    except OSError as error:
        raise Unreadable("no such file" if error.errno == errno.ENOENT else error.strerror or str(error)) from None
    with file:
        yield file


def wanting(start: bytes) -> str | None:
    """Return what is not installed that would read a file of the HEIF family that starts so; None for any other."""
    for brands, name, remedy in (
        (HEIF_BRANDS, "HEIF", "which needs a package: pip install pillow-heif"),
        (AVIF_BRANDS, "AVIF", "which needs a newer Pillow: pip install --upgrade pillow"),
    ):
        if start[4:8] == b"ftyp" and start[8:12] in brands and name not in formats():
            return f"{name}, {remedy}"
    return None


def _check_size(image: PILImage.Image) -> None:
    limit = MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS)
    tags = getattr(image, "tag_v2", {})  # of a TIFF, whose tiles may be larger than itself
    if max(image.width * image.height, tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0)) > limit:
        raise Unreadable(f"more than {limit:,} pixels")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise Unreadable(f"{image.width} by {image.height} pixels is too thin")


def _upright_rgb(image: PILImage.Image) -> PILImage.Image:
    """Load an image and convert it, in its own memory where that can be: a large one leaves no room for copies."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data around sound pixels: shown as they lie
        ImageOps.exif_transpose(image, in_place=True)
    image = _as_rgb(image)
    image.info = {}  # Pillow would write a comment into every JPEG made of it
    return image


def _as_rgb(image: PILImage.Image) -> PILImage.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F":
        raise Unreadable("floating-point pixels of unknown range")
    # 16-bit gray; Pillow would clip all above 255 to white. "I" may hold 8 bits, too.
    divisor = 257 if image.mode.startswith("I;16") or (image.mode == "I" and np.max(image.getextrema()) > 255) else 1
    rgb = PILImage.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_strip_as_rgb(strip, divisor), (0, top))
    return rgb


def _strip_as_rgb(image: PILImage.Image, divisor: int) -> PILImage.Image:
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int64) // divisor
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
