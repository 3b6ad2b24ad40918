"""Finished blocks: found again by key, put together in any order, done again where they are damaged."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from features.blocks import Blocks, Identity, lock_part
from utils import BadInput, lock_folder

IDENTITY = Identity({"encoder": "tiny", "digest": "d1", "size": 2}, ("digest",), "repeat with `fresh`")
ROW = np.dtype((np.float32, (2,)))


def fill(folder):
    blocks = Blocks(folder, IDENTITY)
    blocks.write(["a", "b"], rows=np.array([[1, 1], [2, 2]], np.float32))
    blocks.write(["ü", "d"], rows=np.array([[3, 3], [4, 4]], np.float32))
    return blocks


def together(blocks, keys, size):
    rows = blocks.assemble(keys, "rows", ROW, size, lambda positions: -np.array([positions, positions]).T)
    return np.concatenate(list(rows))[:, 0].tolist()


def test_rows_come_in_the_order_of_keys_and_others_from_elsewhere(tmp_path):
    fill(tmp_path)
    blocks = Blocks(tmp_path, IDENTITY)
    for size in (1, 2, 100):
        assert together(blocks, ["d", "x", "a", "ü", "y", "a"], size) == [4, -1, 1, 3, -4, 1]
    assert blocks.missing(["a", "x", "y", "b", "d", "z"], 2) == [[1], [2], [5]]


def test_a_damaged_block_is_done_again_when_it_is_opened_or_read(tmp_path):
    blocks = fill(tmp_path)
    file = tmp_path / "block-000000.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadInput, match=r"block-000000\.npz: is damaged .*; repeat the command"):
        together(blocks, ["a"], 1)
    assert not file.exists()
    with pytest.raises(BadInput, match=r"block-000000\.npz: is damaged"):
        together(blocks, ["b"], 1)
    file.write_bytes(b"no block")
    again = Blocks(tmp_path, IDENTITY)
    assert set(again.done) == {"ü", "d"}
    assert not file.exists()
    again.write(["a"], rows=np.zeros((1, 2), np.float32))
    assert (tmp_path / "block-000002.npz").exists(), "behind the others"
    assert together(again, ["d", "a"], 2) == [4, 0]


def test_blocks_of_another_identity_are_refused(tmp_path):
    fill(tmp_path)
    other = Identity({"encoder": "tiny", "digest": "d2", "size": 3}, ("digest",), "repeat with `fresh`")
    with pytest.raises(BadInput, match=r"was made by tiny with other weights \(d1, not d2\); repeat with `fresh`"):
        Blocks(tmp_path, other)
    Blocks(tmp_path, Identity({**IDENTITY.attributes, "size": 3}, ("digest",), ""))


def test_an_empty_folder_goes_and_one_with_blocks_stays(tmp_path):
    path = tmp_path / "a.h5"
    with lock_part(path) as part:
        (part / ".lock").unlink()
    assert list(tmp_path.iterdir()) == []
    with lock_part(path) as part:
        fill(part)
    assert sorted(file.name for file in part.iterdir()) == ["block-000000.npz", "block-000001.npz", "meta.json"]
    path.write_text("of an earlier run")
    with lock_part(path) as part:
        assert path.exists()
        assert len(list(part.glob("block-*.npz"))) == 2
    with lock_part(path, fresh=True) as part:
        assert [file.name for file in part.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_whoever_comes_next_stays(tmp_path, monkeypatch):
    with contextlib.ExitStack() as next_program:

        def come_next(folder):
            next_program.enter_context(lock_folder(folder))
            raise OSError("not empty")

        monkeypatch.setattr(Path, "rmdir", come_next)
        with lock_part(tmp_path / "a.h5") as part:
            pass
        assert (part / ".lock").exists()


def test_starting_over_follows_no_link(tmp_path):
    elsewhere, part = tmp_path / "elsewhere", tmp_path / "a.h5.part"
    (part / "folder").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (part / "folder" / "file").touch()
    (part / "link").symlink_to(elsewhere)
    with lock_part(tmp_path / "a.h5", fresh=True):
        assert [file.name for file in part.iterdir()] == [".lock"]
    part.symlink_to(elsewhere)
    with pytest.raises(BadInput, match="symbolic link"), lock_part(tmp_path / "a.h5", fresh=True):
        pass
    assert (elsewhere / "file").exists()
