"""Tars as webdataset writes them, and as strangers might: nothing is unpacked, followed or read beyond its end."""

import io
import os
import random
import shutil
import tarfile
from typing import Any

import pytest

from features.images import decode, files, tars
from features.images.decode import Unreadable, read_image
from features.images.files import MAX_IMAGE_BYTES, Span, open_image_file, size_of
from features.images.tars import MAX_HEADER_BYTES
from tests.helpers import paint
from utils import BadInput

members: Any = tars.members
image_file: Any = files.image_file
thumbnail: Any = decode.thumbnail
WHAT = b"the bytes of a file"


def tar_of(path, *names, data=WHAT, **more):
    """A tar of files of these names; more: fields of the last one's header."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in more.items() if name == names[-1] else ():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return path


def with_size(path, number, size):
    """The same tar with another size in the header of a member, given in base 256 if it is negative or huge."""
    with tarfile.open(path) as tar:
        raw, info = bytearray(path.read_bytes()), tar.getmembers()[number]
    field = b"\xff" + (256**11 + size).to_bytes(11, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header = raw[info.offset : info.offset + 512]
    header[124:136], header[148:156] = field, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    raw[info.offset : info.offset + 512] = header
    path.write_bytes(raw)
    return path


def test_members_are_read_where_they_lie(tmp_path):
    wds = pytest.importorskip("webdataset")
    jpeg = paint(tmp_path / "a.png", 1).read_bytes()
    path = tmp_path / "00000.tar"
    with wds.TarWriter(str(path)) as writer:
        for key in ("000000000", "deep/er/000000001", "x" * 180):
            writer.write({"__key__": key, "png": jpeg, "json": {"key": key}, "txt": key})
    listed = list(members(path))
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar]
    assert [(member.name, member.span.start, member.span.length) for member in listed] == expected
    assert len(listed) == 9
    first = next(member.span for member in listed if member.name.endswith(".png"))
    assert first.read() == jpeg == open_image_file(first).read()
    assert size_of(first) == len(jpeg)
    assert read_image(first).tobytes() == read_image(tmp_path / "a.png").tobytes()
    assert image_file(str(first)) == first
    assert image_file("a#bytes=x.png").name == "a#bytes=x.png"
    assert sorted(os.listdir(tmp_path)) == ["00000.tar", "a.png"]


HOSTILE = [
    ("/etc/passwd.jpg", {}, "leads out of the tar"),
    ("../../a.jpg", {}, "leads out of the tar"),
    ("a/../../b.jpg", {}, "leads out of the tar"),
    ("a\nb.jpg", {}, "characters that no file name should"),
    (os.fsdecode(b"a\xff.jpg"), {}, "characters that no file name should"),
    ("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "a link or a device"),
    ("a.jpg", {"type": tarfile.LNKTYPE, "linkname": "good.jpg", "size": 0}, "a link or a device"),
    ("a.jpg", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 8, "size": 0}, "a link or a device"),
    ("a.jpg", {"type": tarfile.FIFOTYPE, "size": 0}, "a link or a device"),
    ("a.jpg", {"type": tarfile.GNUTYPE_SPARSE}, "sparse"),
]


@pytest.mark.parametrize(("name", "more", "reason"), HOSTILE)
def test_hostile_members_are_left_out_and_named(tmp_path, name, more, reason):
    good, bad = members(tar_of(tmp_path / "a.tar", "good.jpg", name, **more))
    assert good.span.read() == WHAT
    assert bad.span is None
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("size", "sentence"),
    [(10**6, "cut short within 'b.jpg'"), (2**80, "cut short within"), (-512, "damaged"), (-2048, "damaged")],
)
def test_impossible_sizes_end_in_a_sentence(tmp_path, size, sentence):
    path = with_size(tar_of(tmp_path / "a.tar", "a.jpg", "b.jpg", "c.jpg"), 1, size)
    listing = members(path)
    assert next(listing).name == "a.jpg"
    with pytest.raises(BadInput, match=sentence):
        list(listing)


def test_a_header_larger_than_the_memory_is_not_read(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("é" * 200)
        tar.addfile(info)
    raw = bytearray(path.read_bytes())
    for size in (2**60, MAX_HEADER_BYTES + 1):
        raw[124:136], raw[148:156] = b"\x80" + size.to_bytes(11, "big"), b" " * 8
        raw[148:156] = b"%06o\0 " % sum(raw[:512])
        path.write_bytes(raw)
        with pytest.raises(BadInput, match="impossible size"):
            list(members(path))


def test_a_tar_that_is_cut_short_gives_what_comes_before_and_says_so(tmp_path):
    whole = tar_of(tmp_path / "a.tar", "a.jpg", "b.jpg", "c.jpg").read_bytes()
    counts = {1: 0, 511: 0, 512: 0, 700: 1, 1024: 1, 1030: 1, 1535: 1, 1536: 1, 2000: 2, 3072: 3, 3073: 3}
    for size, count in counts.items():
        path = tmp_path / f"{size}.tar"
        path.write_bytes(whole[:size])
        listed: list[Any] = []
        listing = members(path)
        with pytest.raises(BadInput, match=r"cut short|damaged") as error:
            listed.extend(listing)
        assert [member.name for member in listed] == ["a.jpg", "b.jpg", "c.jpg"][:count]
        assert all(member.span.read() == WHAT for member in listed)
        assert "\n" not in str(error.value)
    path.write_bytes(whole[:3584])  # GNU tar fills up to twenty blocks; the first empty one is the end
    assert len(list(members(path))) == 3


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = tar_of(tmp_path / "a.tar", "a.jpg", "b.jpg", "c.jpg")
    raw = bytearray(path.read_bytes())
    raw[1024 + 150] ^= 1  # a digit of the second checksum
    path.write_bytes(raw)
    listing = members(path)
    assert next(listing).name == "a.jpg"
    with pytest.raises(BadInput, match=r"damaged at byte 1,024; get it again"):
        next(listing)


def test_any_damage_ends_in_a_sentence_or_in_members(tmp_path):
    whole = tar_of(tmp_path / "a.tar", "a.jpg", "é" * 150, "c.jpg").read_bytes()[:6144]
    rng = random.Random(0)
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            raw[rng.randrange(len(raw))] = rng.choice([0, 0x37, 0x80, 0xFF, rng.randrange(256)])
        (tmp_path / "b.tar").write_bytes(raw)
        try:
            listed = list(members(tmp_path / "b.tar"))
        except BadInput:
            continue
        assert all(member.span is None or member.span.start + member.span.length <= len(raw) for member in listed)


def test_other_files_are_refused_by_what_they_are(tmp_path):
    path = tar_of(tmp_path / "a.tar", "a.jpg")
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.add(path, "a.jpg")
    for file, sentence in ((tmp_path / "b.tar", "compressed with gzip"), (tmp_path / "none.tar", "cannot be read")):
        with pytest.raises(BadInput, match=sentence):
            list(members(file))
    (tmp_path / "c.tar").write_bytes(b"")
    (tmp_path / "d.tar").write_text("no tar" * 1000)
    for name in ("c.tar", "d.tar"):
        with pytest.raises(BadInput, match="not a tar, or damaged"):
            list(members(tmp_path / name))


def test_an_image_that_has_gone_or_is_too_large_is_unreadable(tmp_path):
    paint(tmp_path / "a.png", 1)
    size = (tmp_path / "a.png").stat().st_size
    path = tar_of(tmp_path / "a.tar", "a.png", data=(tmp_path / "a.png").read_bytes())
    (member,) = members(path)
    shutil.copy(path, tmp_path / "b.tar")
    os.truncate(tmp_path / "b.tar", 600)
    os.mkfifo(tmp_path / "pipe.tar")
    for span, reason in (
        (Span(tmp_path / "b.tar", member.span.start, size), "b.tar ends before it"),
        (Span(tmp_path / "none.tar", 0, size), "no such file"),
        (Span(path, 0, MAX_IMAGE_BYTES + 1), "too many for an image"),
        (Span(path, 0, 512), "not an image"),
        (Span(tmp_path / "pipe.tar", 0, 10), "not a file"),
    ):
        with pytest.raises(Unreadable, match=reason):
            read_image(span)
        assert thumbnail(span, 64) is None
    assert thumbnail(member.span, 16).size == (16, 12)
