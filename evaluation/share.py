"""A run to share: in half precision, without what only training needs, with a card that says what it is and is not."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from evaluation.comparison import ResultRow
from evaluation.tables import FORMATS
from features.text.hub import CLIP, OPEN_CLIP
from features.text.vocabulary import Vocabulary
from metrics.ranks import DIRECTIONS
from training.bank import BANK, TENSORS
from training.calibration import MAX_SENTENCES, spread
from training.hub import CARD, FILES, push_run
from training.run import AGAIN, MODEL, RESULT, VOCABULARY, Run, RunInfo, read_run_config, write_run_config
from utils import BadInput, atomic_write, make_folder

BANK_ROWS = MAX_SENTENCES  # images and captions of the bank that are kept: no probability changes
TERMS = {
    "flickr8k": "Flickr8k (Hodosh, Young, Hockenmaier, 2013), for research and teaching that are not commercial",
    "flickr30k": "Flickr30k (Young et al., 2014), for research and teaching that are not commercial",
    "coco": "COCO captions (Chen et al., 2015), CC BY 4.0",
    "scenes": "scenes and captions that this project makes itself, under its own license",
}


def share_run(folder: Path, out: Path) -> Path:
    """Write a finished run to `out` for others; return the prepared folder that it was trained on.

    Matrices become float16, the bank is thinned, and no path of this machine is left. Raises BadInput if `out` is the
    run itself or holds other files, or the run has no bank.
    """
    run = Run.open(folder)
    if out.exists() and out.samefile(folder):
        raise BadInput(f"{out}: is the run itself, which nothing is written over; name another folder with `share`")
    check_alone(out, FILES, "share")
    if not (folder / BANK).is_file():
        raise BadInput(f"{folder}: has no {BANK}, which a shared run needs; {AGAIN}")
    make_folder(out, "share")
    (out / RESULT).unlink(missing_ok=True)  # with it a run is finished: it comes last
    write_run_config(out, run.settings, without_paths(run.info))
    weights = safetensors.torch.load_file(folder / MODEL)
    write_tensors(out / MODEL, {name: t.half() if t.dim() > 1 else t for name, t in weights.items()})
    with safetensors.safe_open(folder / BANK, "numpy") as bank:
        rows = {name: torch.from_numpy(spread(bank.get_tensor(name), BANK_ROWS)) for name in TENSORS}
        write_tensors(out / BANK, rows, bank.metadata())
    for name in (VOCABULARY, RESULT):
        with atomic_write(out / name, "wb") as file:
            file.write((folder / name).read_bytes())
    return Path(run.info.data)


def check_alone(out: Path, names: Sequence[str], option: str) -> None:
    """Raise BadInput if a folder holds files that are not called one of `names`. option: where the folder came from."""
    others = sorted(path.name for path in out.iterdir() if path.name not in names) if out.is_dir() else []
    if others:
        raise BadInput(
            f"{out}: holds other files, such as {others[0]}; name a folder for the model alone with `{option}`"
        )


def without_paths(info: RunInfo) -> RunInfo:
    """Return what a run was trained on, without where that lay on this machine."""
    backbones = tuple({**attributes, "file": ""} for attributes in info.backbones)
    start = Path(info.from_run).name
    return replace(info, data=f"data/{Path(info.data).name}", backbones=backbones, from_run=start)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; about: text for its header."""
    with atomic_write(path, "wb") as file:
        file.write(safetensors.torch.save(dict(tensors), None if about is None else dict(about)))


def push_shared(folder: Path, address: str, rows: Sequence[ResultRow]) -> str:
    """Push a shared run to `address`, hub:USER/NAME, its card with a header that the hub reads; return the page's URL.

    Raises BadInput if others could not load its sentence encoder, or the hub does not take it.
    """
    encoder = read_run_config(folder)[0].text.encoder
    if (
        encoder
        and Path(encoder.partition("@")[2] if encoder.startswith(OPEN_CLIP) else encoder.removeprefix(CLIP)).exists()
    ):
        raise BadInput(
            f"`share` {address}: its sentence encoder {encoder} lies on this machine alone; train with one that others "
            f"can load, of the hub or of a package, with `text.encoder`"
        )
    write_card(folder, rows, address)
    text = (folder / CARD).read_text(encoding="utf-8")
    with atomic_write(folder / CARD) as file:
        file.write(f"---\n{card_header(folder.name, rows)}---\n\n{text}")
    return push_run(folder, address)


def card_header(name: str, rows: Sequence[ResultRow]) -> str:
    """Return what the hub reads of a card, as YAML: tags, and every figure of `rows` that is the run's own."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-text-retrieval",
            dataset_type=row.dataset,
            dataset_name=f"{row.data}, {row.protocol}",
            dataset_split=row.split,
            metric_type=f"{direction}_{metric}",
            metric_name=f"{direction.replace('_', ' ')} {metric.replace('_', ' ')}",
            metric_value=round(value, 4),
        )
        for row in rows
        if not (row.published or row.correction)
        for direction, metrics in zip(DIRECTIONS, (row.image_to_text, row.text_to_image), strict=True)
        for metric, value in metrics.items()
    ]
    tags = ["image-text-retrieval", "image-retrieval", "safetensors"]
    return ModelCardData(tags=tags, model_name=name, eval_results=results).to_yaml() + "\n"


def write_card(folder: Path, rows: Sequence[ResultRow], address: str = "") -> None:
    """Write what a shared run is, what it was trained on, how good it is (`rows`), and what it cannot do.

    address: what opens it, if not the folder.
    """
    from jinja2 import Template  # a table needs none of it

    run = Run.open(folder)
    info, s = run.info, run.settings
    words = f"{len(run.processor.words) - 1:,} {'stems' if s.text.stem else 'words'}"  # less that for the unknown
    branch = {"onehot": f"a bag of {words}", "gru": f"a GRU over {words}"}.get(s.text.branch, "")
    encoder = f"the sentence encoder {s.text.encoder}" if s.text.encoder else ""
    card = Template((Path(__file__).parent / "card.md").read_text(), keep_trailing_newline=True).render(
        name=folder.name,
        # what ships in models/ is run from the tree, anything else from wherever it was put
        folder=address or (folder.as_posix() if folder.parent == Path("models") else folder.name),
        info=info,
        embed_dim=s.embed_dim,
        megabytes=sum(path.stat().st_size for path in folder.iterdir() if path.name != CARD) / 1e6,
        text=" and ".join(side for side in (branch, encoder) if side),
        language=Vocabulary.load(folder / VOCABULARY).language,
        terms=TERMS.get(info.dataset, f"{info.dataset}, whose terms are those of its publisher"),
        split=rows[0].split,
        table=FORMATS["markdown"](rows),
    )
    with atomic_write(folder / CARD) as file:
        file.write(card)
