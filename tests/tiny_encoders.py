"""Small random transformers of the real classes, with real tokenisers, saved as their users find them."""

from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "the", "two", "dog", "dogs", "run", "runs", "red", "blue", "car", "on", "in", "of", "grass", "man", "s"]
WORDS += ["jump", "##ing", "##ed", "##s", ",", ".", "!"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = ["a dog runs", "two dogs jumping on the grass, running!", "", "a red car", "the man in a blue car jumped."]
KINDS = ("bert", "distilbert", "albert")


def make_tiny_encoder(folder: Path | str, kind: str = "bert", seed: int = 0, places: int = 40) -> str:
    """Save a random encoder of 2 layers and 32 dimensions, `places` tokens long, and its tokeniser; the folder's name.

    kind: one of KINDS, or "gpt2" (reads from left to right, its tokeniser has no special tokens).
    """
    import transformers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder, kind, places)
    size = len(SPECIAL) + len(WORDS)
    small: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if kind == "distilbert":
        small = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    elif kind == "gpt2":
        small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    elif kind == "albert":
        small["embedding_size"] = 16
    names = {"bert": "Bert", "distilbert": "DistilBert", "albert": "Albert", "gpt2": "GPT2"}
    length = {"n_positions" if kind == "gpt2" else "max_position_embeddings": places}
    config = getattr(transformers, f"{names[kind]}Config")(vocab_size=size, **small, **length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = getattr(transformers, f"{names[kind]}Model")(config)
        for parameter in module.parameters():  # the usual 0.02 makes all sentences alike
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    module.save_pretrained(folder)
    return str(folder)


def save_tokenizer(folder: Path, kind: str, places: int) -> None:
    """bert, distilbert: a WordPiece vocab.txt, as published. albert, gpt2: a tokenizer.json."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    if kind in ("bert", "distilbert"):
        (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
        BertTokenizer.from_pretrained(str(folder), model_max_length=places).save_pretrained(str(folder))
        return
    numbers = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if kind == "albert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    special: dict[str, Any] = (
        {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"} if kind == "albert" else {}
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)
    fast.save_pretrained(str(folder))
