"""What every room needs: sentences with flags, commands, whole files, locks."""

import pytest

from utils import command_line, with_flags


@pytest.mark.parametrize(
    ("sentence", "flags"),
    [
        ("start over with `fresh`", "start over with --fresh"),
        ("lower `training.lr` or `batch_size`", "lower --set training.lr or --batch-size"),
        ("`k` 0: too few", "-k 0: too few"),
        ("a `b c` is no name, nor is `B`", "a `b c` is no name, nor is `B`"),
    ],
)
def test_parameters_in_backquotes_become_flags(sentence, flags):
    assert with_flags(sentence) == flags


def test_a_command_quotes_what_a_shell_would_split():
    options = {"": "flickr8k", "images": "my images", "map": True, "ids": None, "backbone": ["a", "b"], "crops": 10}
    expected = "python prep.py flickr8k --images 'my images' --map --backbone a b --crops 10"
    assert command_line("prep.py", options) == expected
