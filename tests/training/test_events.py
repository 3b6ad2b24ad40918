"""The log of a run for TensorBoard, read back by its own reader."""

import json
import sys
from typing import Any

import pytest

from settings import flat_table
from tests.helpers import interrupted, plan_small
from training.events import check_tensorboard
from training.sweep import sweep, train
from training.trainer import Trainer
from utils import BadInput

pytest.importorskip("tensorboard")
NOWHERE: Any = None  # nothing is read for a run that is finished


def read(folder):
    """Scalars by their names, as (step, value), and the plugin data of the hyperparameters."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    accumulator = EventAccumulator(str(folder)).Reload()
    scalars = {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }
    plugin = accumulator.summary_metadata
    hparams = {}
    for tag, metadata in plugin.items():
        if metadata.plugin_data.plugin_name == "hparams" and tag.endswith("session_start_info"):
            hparams = dict(HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams)
    return scalars, hparams


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_every_epoch_and_the_result_are_there_whether_or_not_it_was_stopped(tmp_path, monkeypatch):
    plan, data = plan_small(tmp_path / "run", text__branch="onehot")
    with interrupted(monkeypatch, 2 * len(Trainer(plan, data).batches()) + 1):
        train(plan, data, tensorboard=tmp_path / "board")
    scalars, hparams = read(tmp_path / "board/run")
    assert [epoch for epoch, _ in scalars["val/rsum"]] == [1, 2]
    assert hparams == {}
    result = train(plan, data, tensorboard=tmp_path / "board")
    scalars, hparams = read(tmp_path / "board/run")
    rows = rows_of(plan.folder)
    for tag, name in (("loss", "loss"), ("lr", "rate"), ("val/rsum", "rsum"), ("seconds", "seconds")):
        assert scalars[tag] == pytest.approx([(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows])
    recall = [row["val"]["text_to_image"]["R@5"] for row in rows]
    assert [value for _, value in scalars["val/text_to_image/R@5"]] == pytest.approx(recall)
    ((_, value),) = scalars["hparam/val/rsum"]
    assert value == pytest.approx(result["rsum"])
    assert set(flat_table(plan.settings)) | {"recipe", "features", "seed"} == set(hparams)
    assert hparams["embed_dim"].number_value == plan.settings.embed_dim
    assert hparams["text.branch"].string_value == "onehot"
    sweep([plan], NOWHERE, tensorboard=tmp_path / "later")  # a finished run, from its log
    again, _ = read(tmp_path / "later/run")
    assert again == scalars


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BadInput, match="`tensorboard` needs a package: pip install tensorboard"):
        check_tensorboard()
