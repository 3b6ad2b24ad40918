"""What all tests share: one thread, because tiny products wait longer for each other than they compute."""

import pytest
import torch

from tests.page_helpers import make_index

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--torture", action="store_true", help="tests/torture at its full length: make torture")


@pytest.fixture
def torture(request):
    """Whether a test of tests/torture runs at its full length."""
    return request.config.getoption("--torture")


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory):
    """A trained run and an index, for the page and the browser; made once, and who changes a file puts it back."""

    folder = tmp_path_factory.mktemp("page")
    make_index(folder)
    return folder


@pytest.fixture(scope="session")
def searcher(page_folder):
    from retrieval.searcher import Searcher

    return Searcher.open(page_folder / "index")
