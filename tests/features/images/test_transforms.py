"""What a network sees: views and sizes against images cropped by hand and the plain network."""

import doctest
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps

from features.images import transforms
from features.images.backbones import Backbone, load, reopen
from features.images.transforms import VIEWS
from utils import BadInput

NAME = "timm:test_resnet"
WAYS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def make_image(width: int = 400, height: int = 300) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def plain() -> Backbone:
    return load(NAME, weights="random")


def cropped(image: Image.Image, resize: int, crop: int, way: str, left: float, top: float) -> Image.Image:
    """The crop of `crop` pixels out of the image whose shorter side has `resize`, by hand."""
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(resize * width / short), int(resize * height / short)), WAYS[way])
    x, y = round((image.width - crop) * left), round((image.height - crop) * top)
    return image.crop((x, y, x + crop, y + crop))


def facts(backbone: Backbone) -> tuple[int, int, str]:
    """The resize, the crop and the interpolation of a published transform."""
    resize, crop = backbone.transform.transforms[:2]  # type: ignore[attr-defined]
    return resize.size, crop.size[0], resize.interpolation.value


def row(backbone: Backbone, image: Image.Image) -> torch.Tensor:
    """The feature of an image that is cropped already."""
    after = torchvision.transforms.Compose(backbone.transform.transforms[2:])  # type: ignore[attr-defined]
    return backbone.module(after(image)[None])[0]


def test_docstrings() -> None:
    assert doctest.testmod(transforms).failed == 0


@pytest.mark.parametrize(
    ("name", "resize", "crop"),
    [("inception_v3", 342, 299), *((name, 256, 224) for name in ("vgg16", "vgg19", "resnet50", "densenet201"))],
)
def test_transforms_are_the_published_ones(name: str, resize: int, crop: int) -> None:
    transform = transforms.published_transform(name, torch.nn.Identity())
    image = make_image()
    got = transform(image)
    assert got.shape == (3, crop, crop)
    assert torch.equal(got, torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms()(image))
    words = f"resize {resize} bilinear, crop {crop}, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    assert transforms.describe(transform) == words


def test_lite0_sees_the_whole_shorter_side_scaled_as_published() -> None:
    transform = transforms.published_transform("efficientnet_lite0", torch.nn.Identity())
    image = make_image(448, 224)
    plain = np.asarray(image.crop((112, 0, 336, 224)), np.float32)
    np.testing.assert_allclose(transform(image).permute(1, 2, 0).numpy(), (plain - 127) / 128, atol=1e-6)
    assert transforms.describe(transform) == "resize 224 bicubic, crop 224, mean 0.498039, std 0.501961"


@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (224, 224)])
def test_views_equal_a_plain_loop(plain: Backbone, shape: tuple[int, int]) -> None:
    image = make_image(*shape)
    views = load(NAME, weights="random", views=len(VIEWS))
    assert views.shape == (10, *plain.shape)
    got = views.module(views.transform(image)[None])
    assert got.shape == (1, *views.shape)
    resize, crop, way = facts(plain)
    corners = [(0.5, 0.5), (0.5, 0.5), (0, 0), (1, 1), (1, 0), (0, 1), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)]
    for number, (left, top) in enumerate(corners):
        scale = 1 if number < 2 else 1.25 if number < 8 else 1.5
        view = cropped(image, round(scale * resize), crop, way, left, top)
        expected = row(plain, ImageOps.mirror(view) if number % 2 else view)
        torch.testing.assert_close(got[0, number], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    distances = torch.cdist(got[0], got[0]) + torch.eye(len(VIEWS))
    assert distances.min() > 0, "no two views are the same"


def test_the_first_view_is_what_is_seen_without_and_fewer_views_are_the_first(plain: Backbone) -> None:
    image = make_image()
    three = load(NAME, weights="random", views=3)
    ten = load(NAME, weights="random", views=10)
    assert torch.equal(three.transform(image)[0], plain.transform(image))
    assert torch.equal(three.transform(image), ten.transform(image)[:3])
    pixels = torch.stack([three.transform(image)] * 4)
    assert torch.equal(three.module(pixels)[:, 0], plain.module(pixels[:, 0])), "to the bit: batches are as large"
    assert three.digest == plain.digest
    assert (three.store, plain.store) == ("timm-test_resnet.views3", "timm-test_resnet")
    assert three.transform_text == plain.transform_text + (", views: center 1; center 1 mirrored; top left 1.25")


def test_lite0_has_room_for_corners_though_it_is_not_cut() -> None:
    whole = transforms.published_transform("efficientnet_lite0", torch.nn.Identity())
    views = transforms.Views("efficientnet_lite0", whole, 6)(make_image(224, 224))
    assert views.shape == (6, 3, 224, 224)
    assert torch.equal(views[1], views[0].flip(2))
    image = make_image(224, 224).resize((280, 280), Image.Resampling.BICUBIC).crop((0, 56, 224, 280))
    pixels = (np.asarray(ImageOps.mirror(image), np.float32) - 127) / 128
    np.testing.assert_allclose(views[5].permute(1, 2, 0).numpy(), pixels, atol=1e-5)


@pytest.mark.parametrize("size", [96, 256])
def test_another_size_scales_the_resize_in_proportion(plain: Backbone, size: int) -> None:
    image = make_image()
    other = load(NAME, weights="random", size=size)
    resize, crop, way = facts(plain)
    assert facts(other) == (round(resize * size / crop), size, way)
    assert other.transform(image).shape == (3, size, size)
    expected = row(plain, cropped(image, round(resize * size / crop), size, way, 0.5, 0.5))
    got = other.module(other.transform(image)[None])[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert (other.store, other.shape, other.digest) == (f"timm-test_resnet.size{size}", plain.shape, plain.digest)


def test_published_sizes_of_inception_in_proportion() -> None:
    whole = transforms.published_transform("inception_v3", torch.nn.Identity())
    smaller = transforms.resized("inception_v3", whole, 160)
    assert transforms.describe(smaller).startswith("resize 183 bilinear, crop 160, mean")
    assert transforms.input_size(smaller) == 160


def test_the_published_size_is_no_other_store(plain: Backbone) -> None:
    same = load(NAME, weights="random", size=transforms.input_size(plain.transform))
    assert (same.store, same.attributes) == (plain.store, plain.attributes)


def test_the_grid_of_a_map_follows_the_size() -> None:
    usual, larger = (load(NAME, weights="random", map=True, size=size) for size in (None, 320))
    assert larger.shape == (2 * usual.shape[0], 2 * usual.shape[1], usual.shape[2])
    assert larger.store == "timm-test_resnet.size320.map"


@pytest.mark.parametrize("seen", [{"views": 4}, {"size": 96}, {"size": 96, "views": 2}, {"size": 96, "map": True}])
def test_views_and_size_are_opened_again(seen: dict[str, Any]) -> None:
    first = load(NAME, weights="random", **seen)
    again = reopen(first.attributes)
    assert (again.attributes, again.shape, again.store) == (first.attributes, first.shape, first.store)
    image = make_image()
    assert torch.equal(again.transform(image), first.transform(image))


def test_attributes_say_only_what_is_unusual(plain: Backbone) -> None:
    assert not {"views", "size"} & plain.attributes.keys()
    both = load(NAME, weights="random", views=2, size=96).attributes
    assert (both["views"], both["size"]) == (2, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": 0}, "`views` 0: an image has 10 views; choose a number from 1 to 10"),
        ({"views": 11}, "`views` 11: an image has 10 views"),
        ({"views": 2, "map": True}, "`views` 2 with `map`"),
        ({"views": 2, "crops": 10}, "`views` 2 with `crops` 10"),
        ({"size": 31}, "`size` 31: at least 32 pixels"),
        ({"name": "inception_v3", "size": 60}, "`size` 60: inception_v3 takes no images of 60 by 60 pixels; name"),
        ({"name": "timm:vit_tiny_patch16_224", "size": 240}, "takes no images of 240 by 240 pixels"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load(**{"name": NAME, "weights": "random", **arguments})


def test_a_transform_without_crop_or_resize_is_told() -> None:
    bare = torchvision.transforms.Compose([torchvision.transforms.ToTensor()])
    with pytest.raises(BadInput, match="`views`: the published transform of x takes no crop; leave `views` out"):
        transforms.Views("x", bare, 2)
    with pytest.raises(BadInput, match="`size` 96: the published transform of x is no resize and crop"):
        transforms.resized("x", bare, 96)
