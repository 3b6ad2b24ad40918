"""Both towers of dual encoders against what their own libraries compute, and what is said where they cannot be had."""

import shutil
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from features import dual_encoders
from features.dual_encoders import DualSentences, load_dual, load_sentence_side
from features.images import weights
from features.images.backbones import load, reopen
from features.options import resolve_options
from features.prepared import options_of_store
from features.text.encoders import load_sentence_encoder
from features.text.hub import text_store_name
from features.text.sentences import TextProcessor
from features.text.store import POOLINGS, PROJECTED, TextStore, update_text_store
from features.text.vocabulary import Vocabulary
from tests.dual_helpers import DUAL_KINDS, make_tiny_dual, make_tiny_open_clip
from tests.helpers import make_tiny_encoder, paint
from utils import BadInput

SENTENCES = ["a red car", "Two dogs running on the grass, jumping! " * 4, "a dog", "the man in a blue car jumped."]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("dual")
    return {kind: make_tiny_dual(root / kind, kind) for kind in DUAL_KINDS}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    sizes = [(40, 30), (33, 90), (64, 64)]
    return [paint(folder / f"{number}.png", number, size) for number, size in enumerate(sizes)]


@pytest.fixture
def open_clip_file(tmp_path):
    pytest.importorskip("open_clip")
    return make_tiny_open_clip(tmp_path)


def rows_of(backbone, images):
    return backbone.module(torch.stack([backbone.transform(Image.open(path).convert("RGB")) for path in images]))


@pytest.mark.parametrize("kind", DUAL_KINDS)
def test_towers_of_transformers_give_what_the_library_gives(kind, folders, images):
    import transformers

    module = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    processor = transformers.AutoImageProcessor.from_pretrained(folders[kind])
    opened = [Image.open(path).convert("RGB") for path in images]
    # SigLIP's users are told to fill sentences up (its documentation); CLIP's read each sentence by itself alike
    padding: Any = {"padding": "max_length"} if kind != "clip" else {"padding": True}
    with torch.inference_mode():
        wanted = module.get_image_features(**processor(images=opened, return_tensors="pt")).pooler_output
        tokens = tokenizer(SENTENCES, truncation=True, max_length=12, return_tensors="pt", **padding)
        wanted_text = module.get_text_features(**tokens).pooler_output
    backbone = load(f"clip:{folders[kind]}")
    assert (backbone.name, backbone.layer, backbone.store) == (f"clip:{kind}", PROJECTED, f"clip-{kind}")
    torch.testing.assert_close(rows_of(backbone, images), wanted, atol=1e-5, rtol=0)
    side = load_sentence_side(f"clip:{folders[kind]}")
    features = side.features(SENTENCES)
    assert set(features) == {*POOLINGS, PROJECTED}
    np.testing.assert_allclose(features["mean"], wanted_text.numpy(), atol=1e-5, rtol=0)
    assert np.abs(features["mean"][0] - features["mean"][2]).max() > 1e-2  # sentences are told apart
    assert side.digest == backbone.digest == weights.digest(module)
    assert side.attributes == {
        "encoder": f"clip:{folders[kind]}",
        "digest": side.digest,
        "size": side.size,
        "longest": 12,
        "engine": "torch",
        "precision": "float32",
    }
    again = reopen(backbone.attributes)
    torch.testing.assert_close(rows_of(again, images), wanted, atol=1e-5, rtol=0)


def test_towers_of_open_clip_give_what_the_library_gives(open_clip_file, images):
    import open_clip

    module, _, transform = open_clip.create_model_and_transforms("tiny-open-clip", pretrained=open_clip_file)
    tokens = open_clip.get_tokenizer("tiny-open-clip")(SENTENCES)
    assert tokens.shape == (len(SENTENCES), 16)  # of the architecture's context length, cut to it
    with torch.inference_mode():
        opened = torch.stack([transform(Image.open(path).convert("RGB")) for path in images])
        wanted, wanted_text = module.eval().encode_image(opened), module.encode_text(tokens)
    name = f"open_clip:tiny-open-clip@{open_clip_file}"
    for backbone in (load(name), load("open_clip:tiny-open-clip", weights=open_clip_file)):
        torch.testing.assert_close(rows_of(backbone, images), wanted, atol=1e-5, rtol=0)
        assert (backbone.name, backbone.weights) == ("open_clip:tiny-open-clip@weights", "file weights.pt")
        assert backbone.transform_text.startswith("resize 32 bicubic, crop 32, mean 0.481455")
        torch.testing.assert_close(rows_of(reopen(backbone.attributes), images), wanted, atol=1e-5, rtol=0)
    side = load_sentence_side(name)
    assert (side.name, side.longest, side.digest) == (name, 16, backbone.digest)
    np.testing.assert_allclose(side.features(SENTENCES)["cls"], wanted_text.numpy(), atol=1e-5, rtol=0)
    views = load(name, views=2)
    assert views.shape == (2, 24)
    torch.testing.assert_close(rows_of(views, images)[:, 0], wanted, atol=1e-5, rtol=0)


def test_random_weights_are_the_same_every_time(open_clip_file, capsys):
    first = load("open_clip:tiny-open-clip", weights="random")
    assert "random weights: its features are good for tests only" in capsys.readouterr().err
    assert (
        first.digest
        == load_dual("open_clip:tiny-open-clip@random").digest
        != load_dual(f"open_clip:tiny-open-clip@{open_clip_file}").digest
    )
    assert reopen(first.attributes).digest == first.digest


def test_both_sides_share_one_model(folders):
    backbone = load(f"clip:{folders['clip']}")
    side = load_sentence_side(f"clip:{folders['clip']}")
    tower: Any = backbone.module.get_submodule("rows.body")
    assert tower.dual is side.dual


def test_a_store_keeps_embeddings_to_the_bit(folders, tmp_path):
    side = load_sentence_side(f"clip:{folders['siglip']}")
    rows = [{"image": "a", "split": "train", "captions": SENTENCES[:2]}]
    path = tmp_path / "clip-siglip.text.h5"
    assert update_text_store(path, rows, side) == 2
    rows.append({"image": "b", "split": "test", "captions": SENTENCES[2:]})
    assert update_text_store(path, rows, side) == 2
    store = TextStore.open(path)
    assert store.poolings == (PROJECTED,)
    wanted = np.concatenate([side.features(SENTENCES[:2])["last"], side.features(SENTENCES[2:])["last"]])
    for pooling in (*POOLINGS, PROJECTED):
        np.testing.assert_array_equal(store.read(rows, pooling), wanted)
    with pytest.raises(BadInput, match=r"has no pooling 'max'; take one of cls, last, mean"):
        store.read(rows, "max")


def test_a_processor_of_texts_asks_the_dual_encoder(folders):
    name = f"clip:{folders['clip']}"
    processor = TextProcessor(Vocabulary.build(["a dog"]), encoder=name, encoder_pooling="cls")
    encoded = processor.encode(SENTENCES)
    np.testing.assert_array_equal(encoded.features, load_sentence_side(name).features(SENTENCES)[PROJECTED])
    other = TextProcessor(Vocabulary.build(["a dog"]), encoder=name, digest="another")
    with pytest.raises(BadInput, match="holds other weights than the run was trained with"):
        other.encode(SENTENCES)


def test_weights_become_a_part_of_the_name_of_both_sides():
    given = {"dataset": "scenes", "backbone": ["open_clip:ViT-B-32"], "text_encoder": "open_clip:ViT-B-32"}
    options = resolve_options({**given, "weights": "mine.pt"})
    assert options.backbone == options.text_encoder == ("open_clip:ViT-B-32@mine.pt",)
    assert options.weights is None
    mixed = resolve_options({**given, "backbone": ["open_clip:ViT-B-32", "vgg16"], "weights": "random"})
    assert (mixed.backbone, mixed.weights) == (("open_clip:ViT-B-32@random", "vgg16"), "random")
    sentences = resolve_options({"text_encoder": "open_clip:ViT-B-32", "weights": "mine.pt"})
    assert (sentences.text_encoder, sentences.weights) == (("open_clip:ViT-B-32@mine.pt",), None)
    beside = resolve_options({"backbone": "vgg16", "text_encoder": "open_clip:ViT-B-32@openai", "weights": "v.pt"})
    assert (beside.text_encoder, beside.weights) == (("open_clip:ViT-B-32@openai",), "v.pt")
    for name in ("clip:openai/clip-vit-base-patch32", "open_clip:ViT-B-32@openai"):
        with pytest.raises(BadInput, match="says where its weights are; leave `weights` out"):
            resolve_options({"backbone": name, "weights": "mine.pt"})


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("clip:openai/clip-vit-base-patch32", "clip-openai--clip-vit-base-patch32"),
        ("open_clip:ViT-B-32@laion2b_s34b_b79k", "open_clip-ViT-B-32@laion2b_s34b_b79k"),
        ("open_clip:ViT-B/32@openai", "open_clip-ViT-B--32@openai"),
    ],
)
def test_names_of_stores_lead_back(name, stem):
    assert text_store_name(name) == text_store_name(stem) == stem
    assert options_of_store(stem) == {"backbone": name}
    assert options_of_store(f"{stem}.views4") == {"backbone": name, "views": 4}


# What cannot be had


def test_what_is_no_dual_encoder_is_refused(tmp_path, folders):
    bert = make_tiny_encoder(tmp_path / "bert")
    with pytest.raises(
        BadInput, match=r"`backbone` clip:.*bert: not a dual encoder .*BertModel has no towers|cannot be used"
    ):
        load(f"clip:{bert}")
    with pytest.raises(BadInput, match=r"`text_encoder` clip:.*a dual encoder whose|not a dual encoder"):
        load_sentence_side(f"clip:{bert}")
    with pytest.raises(BadInput, match="no such folder; point `backbone` to the folder of a dual encoder"):
        load("clip:./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"lacks config\.json, so it holds no dual encoder"):
        load(f"clip:{tmp_path / 'empty'}")
    cut = shutil.copytree(folders["clip"], tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"a dual encoder whose weights cannot be used.*copy the folder again"):
        load(f"clip:{cut}")
    bare = shutil.copytree(folders["clip"], tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(BadInput, match="a dual encoder whose image processor cannot be used"):
        load(f"clip:{bare}")


def test_weights_that_lack_a_part_are_refused(tmp_path, folders):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["clip"], tmp_path / "lacking")
    state = load_file(folder / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"weights cannot be used.*they lack text_projection\.weight"):
        load(f"clip:{folder}")


def test_a_hub_that_cannot_be_reached_is_told_with_the_parameter(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"`backbone` clip:someone/model: is no local folder, and the Hugging Face hub"):
        load("clip:someone/model")
    with pytest.raises(BadInput, match=r"`text_encoder` clip:someone/model: is no local folder"):
        load_sentence_side("clip:someone/model")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layer": "vision_model"}, "`layer`: clip:.* is taken whole"),
        ({"map": True}, "`map`: clip:.* is taken whole"),
        ({"size": 64}, "`size`: clip:.* is taken whole"),
        ({"views": 3}, "`views`: the published transform of clip:.* takes no crop"),
        ({"crops": 10}, "`crops`: the published transform of clip:.* takes no crop"),
    ],
)
def test_a_tower_is_taken_as_it_was_published(folders, options, match):
    with pytest.raises(BadInput, match=match):
        load(f"clip:{folders['clip']}", **options)


def test_other_weights_in_the_folder_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    attributes = load(f"clip:{folder}").attributes
    make_tiny_dual(folder, "clip", seed=1)
    with pytest.raises(BadInput, match="holds other weights than its features were made with"):
        reopen(attributes)
    with pytest.raises(BadInput, match="nothing says where its weights lie"):
        reopen({**attributes, "file": ""})


def test_a_dual_encoder_is_not_trained(folders):
    with pytest.raises(BadInput, match=r"taken as it is, not trained; leave `text\.finetune` out"):
        load_sentence_encoder(f"clip:{folders['clip']}")


def test_what_open_clip_does_not_have_is_told(tmp_path, open_clip_file):
    with pytest.raises(BadInput, match=r"open_clip has no such model; did you mean open_clip:ViT-B-32"):
        load("open_clip:ViT-B-33")
    with pytest.raises(BadInput, match=r"open_clip has no such model"):
        load("open_clip:hf-hub:someone/model")
    with pytest.raises(BadInput, match=r"ViT-B-32: name its weights behind an @, a file or a published name .*openai"):
        load("open_clip:ViT-B-32")
    with pytest.raises(BadInput, match=r"no weights that open_clip knows; did you mean laion2b_s34b_b79k\?"):
        load("open_clip:ViT-B-32@laion2b_s34b_b79")
    with pytest.raises(BadInput, match=r"another activation; name ViT-B-32-quickgelu@openai"):
        load("open_clip:ViT-B-32@openai")
    (tmp_path / "cut.pt").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"cut\.pt: cannot be read as weights of `backbone` open_clip:tiny-open-clip"):
        load(f"open_clip:tiny-open-clip@{tmp_path / 'cut.pt'}")


def test_weights_that_run_code_are_not_read(tmp_path, open_clip_file):
    class Boom:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"state_dict": {"visual.proj": Boom()}}, tmp_path / "bad.pt")
    with pytest.raises(BadInput, match="cannot be read as weights"):
        load(f"open_clip:tiny-open-clip@{tmp_path / 'bad.pt'}")
    assert not (tmp_path / "executed").exists()


def test_open_clip_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(BadInput, match=r"`backbone` open_clip:ViT-B-32@openai: needs .*; pip install open_clip_torch"):
        load("open_clip:ViT-B-32@openai")


def test_no_network_for_published_weights_is_told(monkeypatch):
    open_clip = pytest.importorskip("open_clip")

    def fail(*args, **options):
        raise RuntimeError("Failed to download weights for tag 'x': no route")

    monkeypatch.setattr(open_clip, "create_model", fail)
    with pytest.raises(BadInput, match=r"could not be loaded \(Failed to download .*\); repeat this with a network"):
        load("open_clip:ViT-B-32@laion2b_s34b_b79k")


def test_published_preprocessing_goes_with_a_local_file():
    open_clip = pytest.importorskip("open_clip")
    siglip: Any = dual_encoders.usual_preprocessing(open_clip, "ViT-B-16-SigLIP")
    assert (siglip["mean"], siglip["resize_mode"]) == ((0.5, 0.5, 0.5), "squash")
    assert dual_encoders.usual_preprocessing(open_clip, "ViT-L-14") is None  # its weights do not agree


def test_embeddings_that_are_not_finite_are_refused(folders):
    dual = load_dual(f"clip:{folders['clip']}")
    broken = DualSentences(
        replace(dual, embed_tokens=lambda tokens: torch.full((len(tokens["input_ids"]), 4), torch.nan))
    )
    with pytest.raises(BadInput, match="embeddings of this dual encoder are not finite"):
        broken.features(["a dog"])
