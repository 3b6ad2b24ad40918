"""What every reader's dataset is checked for beyond its own file."""

from features.datasets.dataset import Dataset, Image, note_duplicates
from features.images.files import Span


def test_the_same_file_in_two_splits_is_warned_of_and_counted(tmp_path, capsys):
    contents = {"a": b"one", "b": b"two", "c": b"one", "d": b"two", "e": b"six", "f": b"longer", "g": b"one"}
    splits = {"a": "train", "b": "val", "c": "test", "d": "val", "e": "train", "f": "test", "g": "train"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    images = [Image(name, tmp_path / name, split, ("x",)) for name, split in splits.items()]
    images += [Image("inside", Span(tmp_path / "f", 0, 3), "val", ("x",)), Image("none", None, "val", ("x",))]
    images += [Image("missing", tmp_path / "missing", "val", ("x",))]
    noted = note_duplicates(Dataset("x", tuple(images), ("before",)))
    note = "3 images have the same file in another split, the first a as c"
    assert noted.notes == ("before", note), "b and d are of one split"
    assert note in capsys.readouterr().err
    assert note_duplicates(noted.__class__("x", tuple(images[1:6]))).notes == ()
