"""What the tests of interruptions share: made once, since it takes seconds."""

import pytest

from tests.torture.attempts import Tasks


@pytest.fixture(scope="module")  # it changes what other rooms' tests take
def tasks(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield Tasks(tmp_path_factory.mktemp("tasks"), patch)
