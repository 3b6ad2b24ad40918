"""Small random dual encoders of the libraries' own classes, saved as their users find them."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.helpers import SPECIAL, TINY_WORDS

DUAL_KINDS = ("clip", "siglip", "siglip2")
WORDS = [*SPECIAL, *TINY_WORDS, "circle", "square", "painted", "green", "yellow"]
TINY_OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def make_tiny_dual(folder: Path | str, kind: str = "clip", seed: int = 0) -> str:
    """Save a random dual encoder of `transformers` with tokenizer and image processor; the folder's name.

    kind: one of DUAL_KINDS; siglip2 sees images in their own proportions. Sentences have at most 12 tokens.
    """
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    masked = {} if kind == "clip" else {"model_input_names": ["input_ids"]}
    names: dict[str, Any] = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **names, **masked)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**small, "vocab_size": len(vocabulary), "max_position_embeddings": 12}
    image = {**small, "image_size": 32, "patch_size": 8}
    config: Any
    processor: Any
    prefix = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}[kind]
    if kind == "clip":
        text |= {"eos_token_id": vocabulary["[SEP]"], "bos_token_id": vocabulary["[CLS]"], "pad_token_id": 0}
        config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=20)
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    elif kind == "siglip":
        config = transformers.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=image)
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    else:
        image = {**small, "patch_size": 8, "num_patches": 16}
        config = transformers.Siglip2Config(text_config={**text, "projection_size": 32}, vision_config=image)
        processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = getattr(transformers, f"{prefix}Model")(config)
        for parameter in module.parameters():  # the usual 0.02 makes all images and sentences alike
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    for part in (module, fast, processor):
        part.save_pretrained(folder)
    return str(folder)


def make_tiny_open_clip(folder: Path | str, name: str = "tiny-open-clip", seed: int = 1) -> str:
    """Make a small architecture known to open_clip and save random weights of it; the file's name."""
    import open_clip

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(TINY_OPEN_CLIP))
    open_clip.add_model_config(folder / f"{name}.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = open_clip.create_model(name, pretrained=None)
        torch.save(module.state_dict(), folder / "weights.pt")
    return str(folder / "weights.pt")
