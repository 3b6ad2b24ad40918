"""An uploaded image of the HEIF family: read where its package is installed, or the sentence names the package."""

import io

import pytest
from PIL import Image as PILImage

from features.images import decode
from retrieval.web import images
from retrieval.web.images import open_upload
from utils import BadInput

HEADER = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"


def test_a_heic_is_read():
    heif, buffer = pytest.importorskip("pillow_heif"), io.BytesIO()
    heif.from_pillow(PILImage.new("RGB", (64, 48), "red")).save(buffer)
    image = open_upload(buffer.getvalue())
    assert (image.size, image.mode) == ((64, 48), "RGB")


@pytest.mark.parametrize(("brand", "remedy"), [(b"heic", "pillow-heif"), (b"avif", "--upgrade pillow")])
def test_without_its_package_that_is_named(brand, remedy, monkeypatch):
    for room in (decode, images):
        monkeypatch.setattr(room, "formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(BadInput, match=rf"pip install {remedy}, where app.py runs; choose a JPEG"):
        open_upload(HEADER.replace(b"heic", brand))
    with pytest.raises(BadInput, match="no image that can be read here"):
        open_upload(b"GIF89a")
