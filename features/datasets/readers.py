"""Read the caption files of the field as a Dataset: one entry point, `read`, and the splits, given or drawn."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from unicodedata import normalize

from features.datasets import line_files
from features.datasets.clip_retrieval import open_clip_folder
from features.datasets.dataset import SPLITS, Dataset, Image, check, hash_split, is_clip_retrieval, is_vsepp
from features.datasets.huggingface import read_huggingface
from features.datasets.json_files import RESTVAL, TRAIN_OR_VAL, read_json_captions
from features.datasets.line_files import AGAIN, Source, image_id, numbered_lines, read_text
from features.datasets.vsepp import read_vsepp
from features.datasets.webdataset import read_webdataset
from features.images.decode import IMAGE_SUFFIXES
from reading import parse_json
from utils import BadInput, did_you_mean, warn

# What each dataset's folder may hold, the first that is there is read.
FILES = {
    "flickr8k": ("Flickr8k.token.txt", "dataset_flickr8k.json", "captions.txt"),
    "flickr30k": ("results_20130124.token", "results.csv", "dataset_flickr30k.json", "captions.txt"),
    "coco": (
        "dataset_coco.json",
        "captions_train2014.json",
        "annotations/captions_train2014.json",
        "captions_train2017.json",
        "annotations/captions_train2017.json",
    ),
    "folder": (
        *(f"{stem}{suffix}" for stem in ("captions", "metadata") for suffix in (".csv", ".tsv", ".jsonl", ".txt")),
    ),
}

# Datasets whose images and captions lie in files together.
CONTAINERS = {"webdataset": read_webdataset, "huggingface": read_huggingface}

# Names of the three lists: those of Flickr8k, of Flickr30k Entities, and the latter with another word for val.
LISTS = (
    ("Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt", "Flickr_8k.testImages.txt"),
    ("train.txt", "val.txt", "test.txt"),
    ("train.txt", "dev.txt", "test.txt"),
)

MIN_DRAWN = 50  # images of val, and of test: below, chance makes tables

Ratio = tuple[float, float, float]
Splits = tuple[dict[str, str], list[str]]  # the split of every image that stays, in dataset order, and notes


def read(
    name: str,
    captions: Path,
    images: Path | None,
    splits: Path | None = None,
    restval: bool = True,
    split_ratio: Ratio = (80, 10, 10),
) -> Dataset:
    """Read the dataset `name` (of FILES or CONTAINERS), in the order of split lists or of the captions.

    captions: the caption file, or a folder that holds one; of CONTAINERS, the files that hold both. images: the folder
    of the images, None where features come precomputed; whether each image is there is not looked at. splits: a folder
    of three lists, which go before splits in the caption file; where there is neither, a hash of the image id draws
    them. restval: whether Karpathy's restval images join train. Raises BadInput for everything that is wrong with a
    file.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
    ...     rows = ["a.jpg,A dog runs.,train", "a.jpg,A dog.,train", "b.jpg,A cat.,val", "c.jpg,A car.,test"]
    ...     _ = file.write("\\n".join(["image,caption,split", *rows]))
    ...     file.flush()
    ...     dataset = read("folder", Path(file.name), images=None)
    >>> dataset.images[0]
    Image(id='a.jpg', path=None, split='train', captions=('A dog runs.', 'A dog.'))
    """
    captions = Path(captions)
    if name not in (*FILES, *CONTAINERS):
        raise BadInput(f"dataset {name}: unknown; {did_you_mean(name, [*FILES, *CONTAINERS])}")
    if len(split_ratio) != 3 or not all(0 < part < float("inf") for part in split_ratio):
        raise BadInput("`split_ratio`: needs three numbers above 0 for train, val and test, such as 80 10 10")
    if name in FILES and not captions.exists():
        raise BadInput(f"{captions}: no such file or folder; point `captions` to the captions of {name}")
    if name in FILES and images is not None and not Path(images).is_dir():
        raise BadInput(f"{images}: no such folder; point `images` to the folder that holds the images")
    if captions.is_dir() and is_vsepp(captions):
        if splits is not None:
            raise BadInput(f"{captions}: a VSE++ folder brings its own splits; leave `splits` out")
        return read_vsepp(name, captions)
    source, notes = read_source(name, captions)
    file = source.path
    split_of, more = split_images(source, splits, restval, split_ratio)
    rows = tuple(
        Image(key, source.files.get(key) or _path_of(images, source, key), split, tuple(source.captions[key]))
        for key, split in split_of.items()
    )
    return check(Dataset(name, rows, tuple(notes + more), tuple(source.captions)), file)


def read_source(name: str, captions: Path) -> tuple[Source, list[str]]:
    """Read what the files of a dataset say by themselves, and notes. Raises BadInput if they hold no image."""
    notes: list[str] = []
    if is_clip_retrieval(captions):
        source = open_clip_folder(captions).source()
    elif name in CONTAINERS:
        source = CONTAINERS[name](captions)
    else:
        file, notes = find_file(name, captions)
        text = read_text(file)
        source = reader_of(name, file, text)(file, text)
    if not source.captions:
        raise BadInput(f"{source.path}: holds no image; {AGAIN}")
    return source, notes + source.notes


def find_file(name: str, captions: Path) -> tuple[Path, list[str]]:
    """Return the caption file, given itself or as its folder, and a note if the folder holds several."""
    if not captions.is_dir():
        return captions, []
    files = [captions / file for file in FILES[name] if (captions / file).is_file()]
    if not files:
        known = ", ".join(FILES[name])
        raise BadInput(f"{captions}: holds none of {known}; point `captions` to the caption file of {name}")
    others = " and ".join(str(file.relative_to(captions)) for file in files[1:])
    return files[0], [f"captions read from {files[0].name}; {others} beside it not: `captions` chooses"] * bool(others)


def reader_of(name: str, file: Path, text: str) -> Callable[[Path, str], Source]:
    """Return the reader of a file, by its content, then by its name. Raises BadInput if there is none."""
    lines = numbered_lines(text)
    head = next(lines)[1].strip()
    if file.suffix in (".jsonl", ".ndjson"):
        return line_files.read_json_lines
    if head[0] in "{[" or file.suffix == ".json":
        return line_files.read_json_lines if next(lines, None) and _is_object(head) else read_json_captions
    if ".token" in file.name or line_files.is_token(head):
        return line_files.read_tokens
    if line_files.numbered_separator(head):
        return line_files.read_numbered
    if name != "folder" and line_files.columns_of(head, ",") == ["image", "caption"]:
        return line_files.read_kaggle
    if line_files.table_delimiter(head) or file.suffix in (".csv", ".tsv") or name == "folder":
        return line_files.read_table
    known = f"known are {', '.join(FILES[name])}, and for your own CSV or JSON lines the dataset 'folder'"
    raise BadInput(f"{file}: not a caption file of {name} (it begins {head[:60]!r}); {known}")


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _path_of(images: Path | None, source: Source, key: str) -> Path | None:
    if images is None:
        return None
    subfolder = source.subfolders.get(key)
    nested = Path(images) / (subfolder or "") / key
    if subfolder and nested.is_file():
        return nested
    path = Path(images) / key
    if key.isascii() or path.exists():
        return path
    forms = (Path(images) / form for form in (normalize("NFC", key), normalize("NFD", key)))
    return next((other for other in forms if other.exists()), path)


def split_images(source: Source, splits: Path | None, restval: bool, ratio: Ratio) -> Splits:
    """Choose among the lists in `splits` or beside the captions, the caption file's own splits, and a hash."""
    file = source.path
    if splits is None and ".token" in file.name and any((file.parent / name).is_file() for name in LISTS[0]):
        splits = file.parent  # as Flickr8k was published
    if splits is not None:
        return split_by_lists(source, Path(splits))
    if source.splits:
        return split_as_published(source.with_all_splits(), restval, ratio)
    return split_by_hash(source, ratio)


def split_by_hash(source: Source, ratio: Ratio) -> Splits:
    """Draw a split for every image, see `hash_split`."""
    split_of = {key: hash_split(key, ratio) for key in source.captions}
    parts = "/".join(f"{part:g}" for part in ratio)
    return split_of, [f"no split given: drawn by a hash of the image id, {parts}: {_drawn(source, split_of, SPLITS)}"]


def split_as_published(source: Source, restval: bool, ratio: Ratio) -> Splits:
    """Take the splits of the caption file, with Karpathy's restval and COCO's train settled."""
    notes = [source.split_note] if source.split_note else []
    half = (ratio[0], ratio[1], 0.0)
    drawn = {key: hash_split(key, half) for key, word in source.splits.items() if word == TRAIN_OR_VAL}
    if drawn:
        notes.append(f"drawn {ratio[0]:g}/{ratio[1]:g}: {_drawn(source, drawn, SPLITS[:2])}")
    split_of = source.splits | drawn
    rest = [key for key, word in split_of.items() if word == RESTVAL]
    if rest:
        notes.append(f"{len(rest):,} restval images {'joined to train' if restval else 'left out'}")
    if restval:
        return split_of | dict.fromkeys(rest, "train"), notes
    return {key: word for key, word in split_of.items() if word != RESTVAL}, notes


def _drawn(source: Source, split_of: dict[str, str], splits: tuple[str, ...]) -> str:
    """Say how many images each split was given; warn of small ones. Raises BadInput if one is empty."""
    counts = Counter(split_of.values())
    for split in splits:
        if not counts[split]:
            what = f"the split drawn for its {counts.total():,} images leaves {split} empty"
            raise BadInput(f"{source.path}: {what}; give more images, another `split_ratio`, or the splits by `splits`")
    given = ", ".join(f"{counts[split]:,} {split}" for split in splits)
    if min(counts[split] for split in splits[1:]) < MIN_DRAWN:
        warn(
            f"{source.path}: small splits are drawn, {given}: with fewer than {MIN_DRAWN} images to rank, one of them "
            f"moves a recall by more than {100 // MIN_DRAWN} points; give more images, or another `split_ratio`"
        )
    return f"{given} images"


def split_by_lists(source: Source, folder: Path) -> Splits:
    """Take the splits of three lists of image ids, with or without the ending of the file name, in their order."""
    listed = read_lists(folder)
    find = finder(listed)
    matches: dict[str, list[str]] = {}
    for key in source.captions:
        matches.setdefault(find(key) or "", []).append(key)
    left_out, file = matches.pop("", []), source.path.name
    if not matches:
        what = f"its lists name none of the {len(source.captions):,} images of {file}, the first {left_out[0]}"
        raise BadInput(f"{folder}: {what}; point `splits` to the lists of this dataset")
    notes = [f"splits from the lists in {folder}"]
    if left_out:
        notes.append(f"{len(left_out):,} images in no split list left out{_example(left_out)}")
    without = [entry for entry in listed if entry not in matches]
    if without:
        notes.append(f"{len(without):,} listed images have no caption in {file}, the first {without[0]}")
    return {key: split for entry, split in listed.items() for key in matches.get(entry, [])}, notes


def _example(left_out: list[str]) -> str:
    """Name one of them: one that is not even named like an image, if only some are so."""
    odd = [key for key in left_out if without_ending(key) == key]
    if 0 < len(odd) < len(left_out):
        return f", {len(odd):,} of them not named like an image file ({odd[0]})"
    return f", the first {left_out[0]}"


def read_lists(folder: Path) -> dict[str, str]:
    """Read the split of each listed id, train, val, test in order. Raises BadInput if lists are missing or overlap."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; point `splits` to the folder that holds {', '.join(LISTS[1])}")
    # The names of which most exist: if one of them is missing, the error names it.
    names = max(LISTS, key=lambda names: sum((folder / file).is_file() for file in names))
    listed: dict[str, str] = {}
    for file, split in zip(names, SPLITS, strict=True):
        path = folder / file
        if not path.is_file():
            raise BadInput(f"{path}: no such file; `splits` needs {', '.join(LISTS[1])} or {', '.join(LISTS[0])}")
        for number, line in numbered_lines(read_text(path)):
            key = image_id(path, f"line {number}", line)
            if listed.setdefault(key, split) != split:
                what = f"is in the {listed[key]} list too; keep it in one of them"
                raise BadInput(f"{path}: line {number}, {key}, {what}")
    return listed


def without_ending(key: str) -> str:
    """Return an id without the ending of an image file.

    >>> without_ending("a.jpg"), without_ending("a.jpg.1")
    ('a', 'a.jpg.1')
    """
    stem, dot, ending = key.rpartition(".")
    return stem if dot and f".{ending.casefold()}" in IMAGE_SUFFIXES else key


def finder(known: Iterable[str]) -> Callable[[str], str | None]:
    """Return a function from an id to the known one that means it: the same, or one of the two lacks its `.jpg`.

    An accented letter may be one character (NFC) or two (NFD).
    """
    same = set(known)
    exact = {normalize("NFC", key): key for key in same}
    bare = {without_ending(key): whole for key, whole in exact.items()}

    def find(key: str) -> str | None:
        if key in same:
            return key
        key = normalize("NFC", key)
        return exact.get(key) or exact.get(without_ending(key)) or bare.get(key)

    return find
