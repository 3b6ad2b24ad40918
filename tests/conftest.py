"""What all tests share: one thread, because tiny products wait longer for each other than they compute."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory):
    """A trained run and an index, for the page and the browser; made once, and who changes a file puts it back."""
    from test_app import make_index

    folder = tmp_path_factory.mktemp("page")
    make_index(folder)
    return folder


@pytest.fixture(scope="session")
def searcher(page_folder):
    from retrieval.search import Searcher

    return Searcher.open(page_folder / "index")
