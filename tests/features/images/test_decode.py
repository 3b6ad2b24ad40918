"""Every kind of image that people and strangers have: read as it should look, or refused with a reason."""

import base64
import io
import os
import re
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image as PILImage
from PIL import ImageCms

from features.images import decode
from features.images.decode import Unreadable, jpeg_bytes, read_image
from tests.helpers import ROOT

COLOR = (200, 30, 60)
WHITE = (255, 255, 255)
SIZE = (24, 16)
RGB = PILImage.new("RGB", SIZE, COLOR)
GRAY = PILImage.new("L", SIZE, 99)
Content = Callable[[], bytes]


def encoded(image: PILImage.Image, format: str, **options: Any) -> bytes:
    if format == "HEIF":
        pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    image.copy().save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *before: bytes, depth: int = 8, kind: int = 2, pixels: bytes | None = None) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    pixels = zlib.compress(b"\0" * 9999) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def inserted(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


def frame_of(jpeg: bytes) -> int:
    """Where the content of a JPEG's frame header begins."""
    return next(jpeg.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in jpeg) + 4


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    start = frame_of(jpeg) + 1
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def with_precision(jpeg: bytes, bits: int) -> bytes:
    start = frame_of(jpeg)
    return jpeg[:start] + bytes([bits]) + jpeg[start + 1 :]


def tiff(width: int, height: int, content: bytes, **tile: int) -> bytes:
    """A gray TIFF of one strip, or of one compressed tile."""
    tags = {256: width, 257: height, 258: 8, 259: 8 if tile else 1, 262: 1, 277: 1}
    place = [322, 323, 324, 325] if tile else [278, 273, 279]
    end = 8 + 2 + 12 * (len(tags) + len(place)) + 4
    known = {278: height, 273: end, 324: end, 279: len(content), 325: len(content)}
    known |= {322: tile.get("side", 0), 323: tile.get("side", 0)}
    tags |= {number: known[number] for number in place}
    lines = [struct.pack("<HHII", number, 4, 1, value) for number, value in sorted(tags.items())]
    return b"II*\0" + struct.pack("<IH", 8, len(lines)) + b"".join(lines) + struct.pack("<I", 0) + content


def bmp(width: int, height: int, content: bytes = b"") -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(content), 0, 0, 54) + info + content


def as_ycck(jpeg: bytes) -> bytes:
    """A JPEG of CMYK whose Adobe marker says YCCK."""
    at = jpeg.index(b"Adobe") + 11
    return jpeg[:at] + b"\2" + jpeg[at + 1 :]


def heif_with_size(content: bytes, width: int, height: int) -> bytes:
    """A HEIC or AVIF whose header announces another size."""
    at = content.index(b"ispe") + 8
    return content[:at] + struct.pack(">II", width, height) + content[at + 8 :]


def jp2_with_size(content: bytes, width: int, height: int) -> bytes:
    """Such as announces another size in its box and in its codestream."""
    box, codestream = content.index(b"ihdr") + 4, content.index(b"\xff\x4f\xff\x51") + 8
    content = content[:box] + struct.pack(">II", height, width) + content[box + 8 :]
    return content[:codestream] + struct.pack(">II", width, height) + content[codestream + 8 :]


def interlaced() -> bytes:
    """A PNG in the seven passes of Adam7."""
    data, width, height = b"", *SIZE
    for x, y, right, down in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        data += (b"\0" + bytes(COLOR) * len(range(x, width, right))) * len(range(y, height, down))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def noise() -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8))


def with_metadata(segments: int) -> bytes:
    """A JPEG with as many segments of 64 kB, a profile in parts among them."""
    parts = b"".join(b"\xff\xe2\xff\xffICC_PROFILE\0" + bytes([n, 255]) + bytes(65_519) for n in range(1, 256))
    jpeg = encoded(RGB, "JPEG")
    return jpeg[:2] + parts + (b"\xff\xe5\xff\xff" + bytes(65_533)) * segments + jpeg[2:]


def frames() -> dict[str, Any]:
    """What makes an image one of two."""
    return {"save_all": True, "append_images": [PILImage.new("RGB", SIZE, "black")]}


def palette(see_through: bool = False) -> PILImage.Image:
    image = PILImage.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, *COLOR])
    if see_through:
        image.info["transparency"] = 1
    return image


def deep(dtype: str) -> PILImage.Image:
    return PILImage.fromarray(np.full(SIZE[::-1], 257 * 99, dtype))


# By cjpeg -arithmetic: Pillow reads such, and writes none.
ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAx"
    "NDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
    "MjIyMjIyMjL/yQARCAAQABgDAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AHjTZUliyf7/2Q=="
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# An IFD whose pointer to the next one, and whose pointer to Exif's, are its own place.
EXIF_CIRCLE = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
XMP = b"http://ns.adobe.com/xap/1.0/\0"
BOMB = zlib.compress(b"a" * 2**26)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touched) (w) file closefile\nshowpage\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch/F(touched)>>>>endobj\n%%EOF\n"
HEIC = b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heic"

# name of the file → its content, and the color in its middle
READ: dict[str, tuple[Content, tuple[int, int, int]]] = {
    "sound.jpg": (lambda: encoded(RGB, "JPEG"), COLOR),
    "progressive.jpg": (lambda: encoded(RGB, "JPEG", progressive=True), COLOR),
    "arithmetic.jpg": (lambda: base64.b64decode(ARITHMETIC), COLOR),
    "gray.jpg": (lambda: encoded(GRAY, "JPEG"), (99, 99, 99)),
    "cmyk.jpg": (lambda: encoded(PILImage.new("CMYK", SIZE, (0, 255, 255, 0)), "JPEG"), (254, 0, 0)),
    "YCCK.jpg": (lambda: as_ycck(encoded(PILImage.new("CMYK", SIZE, (127, 127, 127, 0)), "JPEG")), (128, 128, 128)),
    "comment.jpg": (lambda: inserted(encoded(RGB, "JPEG"), 0xFE, b"private " * 999), COLOR),
    "metadata of 20 MB.jpg": (lambda: with_metadata(50), COLOR),
    "sRGB.jpg": (lambda: encoded(RGB, "JPEG", icc_profile=SRGB), COLOR),
    "broken profile.jpg": (lambda: encoded(RGB, "JPEG", icc_profile=SRGB[:200]), COLOR),
    "profile of nonsense.png": (lambda: encoded(RGB, "PNG", icc_profile=b"\xff" * 99), COLOR),
    "broken EXIF.jpg": (lambda: inserted(encoded(RGB, "JPEG"), 0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"), COLOR),
    "EXIF in a circle.jpg": (lambda: inserted(encoded(RGB, "JPEG"), 0xE1, EXIF_CIRCLE), COLOR),
    "broken XMP.jpg": (lambda: inserted(encoded(RGB, "JPEG"), 0xE1, XMP + b"<x:xmpmeta><tiff:Orient"), COLOR),
    "two images.mpo": (lambda: encoded(RGB, "MPO", **frames()), COLOR),
    "a PNG called.jpg": (lambda: encoded(RGB, "PNG"), COLOR),
    "a JPEG called.png": (lambda: encoded(RGB, "JPEG"), COLOR),
    "rubbish behind it.jpg": (lambda: encoded(RGB, "JPEG") + b"<script>" * 999, COLOR),
    "1 bit.png": (lambda: encoded(PILImage.new("1", SIZE, 1), "PNG"), WHITE),
    "palette.png": (lambda: encoded(palette(), "PNG"), COLOR),
    "transparent palette.png": (lambda: encoded(palette(see_through=True), "PNG"), WHITE),
    "LA.png": (lambda: encoded(PILImage.new("LA", SIZE, (50, 255)), "PNG"), (50, 50, 50)),
    "RGBA.png": (lambda: encoded(PILImage.new("RGBA", SIZE, (*COLOR, 0)), "PNG"), WHITE),
    "transparent color.png": (lambda: encoded(RGB, "PNG", transparency=COLOR), WHITE),
    "16 bits.png": (lambda: encoded(deep("uint16"), "PNG"), (99, 99, 99)),
    "interlaced.png": (lambda: interlaced(), COLOR),
    "animated.png": (lambda: encoded(RGB, "PNG", **frames()), COLOR),
    "palette.gif": (lambda: encoded(palette(), "GIF"), COLOR),
    "transparent.gif": (lambda: encoded(palette(see_through=True), "GIF"), WHITE),
    "animated.gif": (lambda: encoded(RGB, "GIF", **frames()), COLOR),
    "lossless.webp": (lambda: encoded(RGB, "WEBP", lossless=True), COLOR),
    "RGBA.webp": (lambda: encoded(PILImage.new("RGBA", SIZE, (*COLOR, 255)), "WEBP", lossless=True), COLOR),
    "animated.webp": (lambda: encoded(RGB, "WEBP", lossless=True, **frames()), COLOR),
    "pages.tif": (lambda: encoded(RGB, "TIFF", **frames()), COLOR),
    "16 bits.tif": (lambda: encoded(deep("uint16"), "TIFF"), (99, 99, 99)),
    "16 bits of a Macintosh.tif": (lambda: encoded(deep(">u2"), "TIFF"), (99, 99, 99)),
    "8 of 32 bits.tif": (lambda: encoded(PILImage.new("I", SIZE, 99), "TIFF"), (99, 99, 99)),
    "CMYK.tif": (lambda: encoded(PILImage.new("CMYK", SIZE, (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "YCbCr.tif": (lambda: encoded(RGB, "TIFF", compression="jpeg"), COLOR),
    "LAB.tif": (lambda: encoded(PILImage.new("LAB", SIZE, (128, 128, 128)), "TIFF"), (119, 119, 119)),
    "sound.bmp": (lambda: encoded(RGB, "BMP"), COLOR),
    "sound.ppm": (lambda: encoded(RGB, "PPM"), COLOR),
    "plain.ppm": (lambda: b"P3 24 16 255 " + b"200 30 60 " * (24 * 16), COLOR),
    "sound.jp2": (lambda: encoded(RGB, "JPEG2000"), COLOR),
    "sound.avif": (lambda: encoded(RGB, "AVIF", quality=100), COLOR),
    "animated.avif": (lambda: encoded(RGB, "AVIF", quality=100, **frames()), COLOR),
    "sound.heic": (lambda: encoded(RGB, "HEIF", quality=100), COLOR),
}

# name of the file → its content, and the reason
REFUSED: dict[str, tuple[Content, str]] = {
    "empty.jpg": (lambda: b"", "not an image"),
    "a page.jpg": (lambda: b"<!DOCTYPE html><html>not found</html>", "not an image"),
    "cut.jpg": (lambda: encoded(noise(), "JPEG")[:2000], "truncated"),
    "cut.png": (lambda: encoded(noise(), "PNG")[:2000], "truncated"),
    "cut.gif": (lambda: encoded(noise(), "GIF")[:2000], "truncated"),
    "cut.webp": (lambda: encoded(noise(), "WEBP")[:2000], "not an image|could not"),
    "cut.tif": (lambda: encoded(noise(), "TIFF")[:2000], "truncated|not an image|Truncated"),
    "cut.jp2": (lambda: encoded(noise(), "JPEG2000")[:2000], "broken data"),
    "cut.avif": (lambda: encoded(noise(), "AVIF")[:2000], "not an image|Truncated|Failed"),
    "cut.heic": (lambda: encoded(noise(), "HEIF")[:2000], "not an image|Invalid|End"),
    "cut.bmp": (lambda: encoded(noise(), "BMP")[:2000], "truncated"),
    "12 bits.jpg": (lambda: with_precision(encoded(RGB, "JPEG"), 12), "not an image"),
    "no lines.jpg": (lambda: with_size(encoded(RGB, "JPEG"), 24, 0), "not an image|0"),
    "1 by 0.png": (lambda: png(1, 0), "too thin|not an image"),
    "30,000 by 10.png": (lambda: encoded(PILImage.new("L", (30_000, 10)), "PNG"), "30000 by 10 pixels is too thin"),
    "floats.tif": (lambda: encoded(PILImage.new("F", SIZE, 0.5), "TIFF"), "floating-point pixels"),
    "no profile but a bomb.png": (lambda: png(24, 16, chunk(b"iCCP", b"k\0\0" + BOMB)), "too large"),
    "text bomb.png": (lambda: png(24, 16, chunk(b"zTXt", b"k\0\0" + BOMB)), "too large"),
    "texts.png": (lambda: png(24, 16, *[chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 10**6))] * 99), "text chunks"),
    "drawing.svg": (lambda: SVG, "not an image"),
    "drawing.jpg": (lambda: SVG, "not an image"),
    "drawing.eps": (lambda: EPS, "not an image"),
    "EPS called.jpg": (lambda: EPS, "not an image"),
    "document.pdf": (lambda: PDF, "not an image"),
    "sound.ico": (lambda: encoded(RGB, "ICO"), "not an image"),
    "sound.tga": (lambda: encoded(RGB, "TGA"), "not an image"),
    "sound.psd": (lambda: b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 16, 24, 8, 3), "not an image"),
    "sound.pcx": (lambda: encoded(RGB, "PCX"), "not an image"),
}
# Headers that announce gigapixels.
BOMBS: dict[str, Content] = {
    "bomb.jpg": lambda: with_size(encoded(RGB, "JPEG"), 65_500, 65_500),
    "progressive bomb.jpg": lambda: with_size(encoded(RGB, "JPEG", progressive=True), 65_500, 65_500),
    "bomb.mpo": lambda: with_size(encoded(RGB, "MPO", **frames()), 65_500, 65_500),
    "bomb.png": lambda: png(60_000, 60_000),
    "bomb of 1 bit.png": lambda: png(2**31 - 1, 2**31 - 1, depth=1, kind=0),
    "bomb.gif": lambda: b"GIF89a\xff\xff\xff\xff\x80\0\0" + b"\0" * 6 + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "bomb in the frame.gif": lambda: b"GIF89a\x08\0\x08\0\x80\0\0"
    + b"\0" * 6
    + b",\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;",
    "bomb.webp": lambda: b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\x5f\xea\0" * 2,
    "bomb.tif": lambda: tiff(60_000, 60_000, b"\0" * 99),
    "bomb in a tile.tif": lambda: tiff(1, 1, zlib.compress(b"\0" * 2**26), side=32_768),
    "bomb.bmp": lambda: bmp(60_000, 60_000),
    "bomb.ppm": lambda: b"P6 60000 60000 255\n",
    "bomb.jp2": lambda: jp2_with_size(encoded(RGB, "JPEG2000"), 60_000, 60_000),
    "bomb.avif": lambda: heif_with_size(encoded(RGB, "AVIF"), 60_000, 60_000),
    "bomb.heic": lambda: heif_with_size(encoded(RGB, "HEIF"), 60_000, 60_000),
}


def opened(content: bytes, folder: Path, name: str) -> PILImage.Image:
    """Read it by its path, and as an open file, with the same result; neither warns."""
    (folder / name).write_bytes(content)
    results: list[PILImage.Image | str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for source in (folder / name, io.BytesIO(content)):
            try:
                results.append(read_image(source))
            except Unreadable as error:
                results.append(str(error))
    assert not said
    assert results[0] == results[1]
    assert not (folder / "touched").exists()
    if isinstance(results[0], str):
        raise Unreadable(results[0])
    return results[0]


@pytest.mark.parametrize("name", READ)
def test_what_is_read_looks_as_it_should(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, color = READ[name]
    image = opened(content(), tmp_path, name)
    assert (image.mode, image.size, image.info) == ("RGB", SIZE, {})
    assert np.abs(np.asarray(image)[8, 12].astype(int) - color).max() <= 3
    assert len(jpeg_bytes(image, 16)) < 1000, "its metadata stay behind"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF"])
def test_an_image_may_be_one_pixel(format: str) -> None:
    image = read_image(io.BytesIO(encoded(PILImage.new("RGB", (1, 1), "white"), format)))
    assert (image.size, image.getpixel((0, 0))) == ((1, 1), WHITE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_has_a_reason(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, reason = REFUSED[name]
    with pytest.raises(Unreadable, match=reason) as error:
        opened(content(), tmp_path, name)
    assert re.fullmatch(r"[^\n]{3,200}", str(error.value))


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_that_announces_gigapixels_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"more than [\d,]+ pixels|maximum image size|not an image"):
        opened(BOMBS[name](), tmp_path, name)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux has it")
def test_bombs_take_no_memory(tmp_path: Path) -> None:
    bombs = {**BOMBS, **{name: content for name, (content, _) in REFUSED.items() if "bomb" in name or "texts" in name}}
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content())
    code = f"""
import contextlib, pathlib, re
from features.images.decode import Unreadable, formats, read_image
formats()
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
for file in pathlib.Path({str(tmp_path)!r}).iterdir():
    with contextlib.suppress(Unreadable):
        read_image(file)
        print(file)
print(peak() - before)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200, "MB"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_images_are_turned_as_their_exif_says(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = PILImage.new("RGB", SIZE, "blue")
    upright.paste("red", (0, 0, 8, 8))
    turn = PILImage.Transpose
    back = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM]
    back += [turn.TRANSPOSE, turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270]
    method = back[orientation - 1]
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {"quality": 95, "subsampling": 0}
    stored = upright if method is None else upright.transpose(method)
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **({} if suffix == "png" else options))
    turned = np.asarray(read_image(tmp_path / f"a.{suffix}")).astype(int)
    assert np.abs(turned - np.asarray(upright)).max() < 20


# --- files that are none


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def circle(path: Path) -> None:
    path.symlink_to(path.with_name("b.jpg"))
    path.with_name("b.jpg").symlink_to(path)


def locked(path: Path) -> None:
    path.write_bytes(encoded(RGB, "JPEG"))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("whoever runs this may read everything")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (pipe, "a pipe or a device, not a file"),
        (device, "a pipe or a device, not a file"),
        (unix_socket, "a pipe or a device, not a file"),
        (Path.mkdir, "a folder, not a file"),
        (circle, "Too many levels of symbolic links"),
        (lambda path: path.symlink_to(path.with_name("none.jpg")), "no such file"),
        (lambda path: None, "no such file"),
        (locked, "Permission denied"),
    ],
)
def test_what_is_no_file_is_not_waited_for(
    make: Callable[[Path], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make(Path("a.jpg"))
    for source in (Path("a.jpg"), "a.jpg"):
        with pytest.raises(Unreadable, match=reason):
            read_image(source)


@pytest.mark.parametrize(
    "name",
    ["a b.jpg", "it's \"a\".jpg", "a\nb.jpg", "\x01\x1b[31m.jpg", "-k.jpg", "ä日.jpg", "x" * 251 + ".jpg",
     os.fsdecode(b"\xff\xfe.jpg"), "%s{0}.jpg", "a.jpg "],
)  # fmt: skip
def test_a_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(encoded(RGB, "JPEG"))
    assert read_image(tmp_path / name).size == read_image(str(tmp_path / name)).size == SIZE


@pytest.mark.parametrize("name", ["a\0.jpg", "x" * 300 + ".jpg"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"null|too long"):
        read_image(tmp_path / name)


# --- time


def scans(count: int, side: int = 1024) -> bytes:
    """A gray progressive JPEG whose coefficients are gone through once more, by some bytes each, `count` times."""

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    def bits(text: str) -> bytes:
        text += "1" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")

    blocks = (side // 8) ** 2
    table = bytes([1] + [0] * 15)  # of one code, of one bit
    head = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0))
    head += segment(0xC4, b"\0" + table + b"\0") + segment(0xC4, b"\x10" + table + b"\xe0")
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bits("0" * blocks)
    again = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + bits(("0" + "1" * 14) * -(-blocks // (2**15 - 1)))
    return b"\xff\xd8" + head + first + again * count + b"\xff\xd9"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scans.jpg", lambda: scans(20_000)),
        ("chunks.png", lambda: png(8, 8, chunk(b"abCd", b"") * 300_000)),
        ("segments.jpg", lambda: b"\xff\xd8" + b"\xff\xe5\0\x02" * 600_000),
        ("figures.ppm", lambda: b"P3 1500 1500 255\n" + b"1 " * 6_750_000),
        ("comments.gif", lambda: b"GIF89a\x08\0\x08\0\x80\0\0" + b"\0" * 6 + b"!\xfe\1x\0" * 300_000),
    ],
)
def test_an_image_takes_a_stated_time(name: str, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_SECONDS", 0.2)
    with pytest.raises(Unreadable, match=r"takes more than 0\.2 seconds"):
        read_image(io.BytesIO(content()))


# --- what is given as an image


def test_an_image_that_is_given_stays_as_it_is() -> None:
    given = PILImage.open(io.BytesIO(encoded(palette(see_through=True), "PNG")))
    image = read_image(given)
    assert (given.mode, given.info["transparency"] is None, image.mode) == ("P", False, "RGB")
    upright = read_image(RGB)
    upright.paste("black", (0, 0, 9, 9))
    assert RGB.getpixel((0, 0)) == COLOR


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_an_image_that_is_given_is_turned_once(format: str) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6
    given = PILImage.open(io.BytesIO(encoded(RGB, format, exif=exif)))
    assert read_image(given).size == read_image(given).size == SIZE[::-1]


# --- HEIC


@pytest.mark.parametrize("as_file", [False, True])
def test_heic_is_read_or_the_package_is_named(as_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> Any:
        return io.BytesIO((tmp_path / "a.heic").read_bytes()) if as_file else tmp_path / "a.heic"

    (tmp_path / "a.heic").write_bytes(encoded(RGB, "HEIF"))
    assert read_image(asked()).size == SIZE
    monkeypatch.setattr(decode, "formats", lambda: ("JPEG", "PNG"))  # as without the package
    with pytest.raises(Unreadable, match="pip install pillow-heif"):
        read_image(asked())
    (tmp_path / "a.heic").write_bytes(HEIC.replace(b"heic", b"avif"))
    with pytest.raises(Unreadable, match="AVIF, which needs a newer Pillow: pip install --upgrade pillow"):
        read_image(asked())
    (tmp_path / "a.heic").write_bytes(HEIC[:9])
    with pytest.raises(Unreadable, match="not an image"):
        read_image(asked())


def test_a_damaged_heic_needs_no_package(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(Unreadable) as raised:
        read_image(tmp_path / "a.heic")
    assert "pip install" not in str(raised.value)
