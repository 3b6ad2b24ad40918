"""Two processes that share each batch end with the loss and the weights of one, and go on after a kill to the bit."""

import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from features.distributed import from_all, from_first, joined, rank
from tests.helpers import plan_small, run_together, train_small
from training import trainer
from training.distributed import Share, check_together

QUIET = {"text__dropout": 0.0, "image__dropout": 0.0, "training__epochs": 1, "training__lr": 0.001}
QUIET |= {"training__batch_size": 15}  # of 121 captions the last one stands alone, so that a process has none
ONEHOT = {**QUIET, "text__branch": "onehot"}
CASES = {
    "infonce": {**QUIET, "loss__name": "infonce", "training__weight_average": 0.9},
    "images": {**ONEHOT, "loss__name": "infonce", "loss__positives": "image", "training__captions_per_image": 2},
    "hardest": {**QUIET, "loss__negatives": "hardest"},
    "order": {**ONEHOT, "similarity": "order", "loss__reduction": "mean"},
    "semihard": {**ONEHOT, "loss__negatives": "semihard"},
    "siglip": {**ONEHOT, "loss__name": "siglip", "loss__bias": -2.0},
    "smooth": {**ONEHOT, "loss__name": "smooth"},
    "cwcl": {**ONEHOT, "loss__name": "cwcl"},
    "hal": {**ONEHOT, "loss__name": "hal", "loss__margin": 0.5},
    "structure": {**ONEHOT, "loss__structure": 1.0, "loss__structure_levels": 2},
    "mixup": {**ONEHOT, "loss__name": "infonce", "training__mixup": 1.0},
}
DRAWS = {"text__branch": "onehot", "training__epochs": 3, "text__word_dropout": 0.2, "loss__negatives": "random"}


def gradients(count):
    """What rows of all processes get for a gradient where each takes a sum of squares with weights of its own."""
    torch.manual_seed(0)
    whole, share = torch.randn(count, 3), Share(count)
    mine = whole[share.rows()].clone().requires_grad_()
    everyone = share.gather(share.cut(mine))
    weights = share.first(torch.arange(count * 3.0).view(count, 3)).cos() * (1 + rank())
    (everyone.square() * weights).sum().backward()
    assert mine.grad is not None
    return from_all(share.cut(mine.grad).tolist()), everyone.tolist()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The runs of two processes."""
    folder = tmp_path_factory.mktemp("together")

    def main():
        with joined():
            found = {str(count): gradients(count) for count in (1, 5, 8)}
            from_first(lambda: (folder / "gradients.json").write_text(json.dumps(found)))
            for name, changes in CASES.items():
                train_small(folder / name, **changes)
            train_small(folder / "draws", **DRAWS)

    assert run_together(folder, main) == ([0, 0], [])
    return folder


def test_gathered_rows_have_the_gradient_of_all_that_used_them(together):
    """Against one process that has all rows, of which each of two takes a weighted sum of squares."""
    for name, (parts, rows) in json.loads((together / "gradients.json").read_text()).items():
        count = int(name)
        torch.manual_seed(0)
        whole = torch.randn(count, 3, requires_grad=True)
        weights = torch.arange(count * 3.0).view(count, 3).cos()
        (whole.square() * weights * (1 + 2)).sum().backward()
        assert [len(part) for part in parts] == [count // 2, count - count // 2]
        torch.testing.assert_close(torch.tensor([row for part in parts for row in part]), whole.grad)
        torch.testing.assert_close(torch.tensor(rows), whole.detach())


@pytest.mark.parametrize("name", CASES)
def test_losses_and_weights_are_those_of_one_process(name, together, tmp_path):
    train_small(tmp_path / name, **CASES[name])
    for file in ("model.safetensors", "last.pt"):
        one, two = (read(folder / name / file) for folder in (tmp_path, together))
        assert one.keys() == two.keys()
        for weight in one:
            torch.testing.assert_close(two[weight], one[weight], rtol=1e-5, atol=1e-5)
    one, two = (losses(folder / name) for folder in (tmp_path, together))
    np.testing.assert_allclose(two, one, rtol=1e-5)


def read(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["model"]


def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


def test_what_a_kill_interrupts_goes_on_to_the_bit(together, tmp_path, monkeypatch):
    """In the middle of the second epoch, with draws of every kind."""
    step, steps = trainer.Trainer.train_step, iter(range(12))

    def step_or_end(*args):
        if next(steps, None) is None and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args)

    def main():
        with joined():
            train_small(tmp_path / "draws", **DRAWS)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", step_or_end)
        statuses, (sentence,) = run_together(tmp_path, main)
    assert statuses == [2, -signal.SIGKILL]
    assert sentence.startswith("script.py: another process of this job has ended, or cannot be reached (")
    assert sentence.endswith("); repeat the command and it continues")
    assert len(losses(tmp_path / "draws")) == 1
    assert run_together(tmp_path, main) == ([0, 0], [])
    files = [(folder / "draws/model.safetensors").read_bytes() for folder in (tmp_path, together)]
    assert files[0] == files[1]
    assert losses(tmp_path / "draws") == losses(together / "draws")


def test_what_several_processes_cannot_do_is_said(tmp_path):
    def main():
        plan, _ = plan_small(tmp_path / "run", loss__name="cca", text__branch="onehot", text__bias=True)
        with joined():
            check_together([plan], jobs=int(sys.argv[1]))

    for jobs, said in ((1, "script.py: run: is fitted in closed form"), (2, "script.py: --jobs 2: runs side by side")):
        statuses, (sentence,) = run_together(tmp_path, main, jobs)
        assert statuses == [2, 2]
        assert sentence.startswith(said)
