"""What `pip install .` leaves: one package, which nothing of the user's own disturbs, and which disturbs nothing."""

import doctest
import importlib.util
import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytest.importorskip("hatchling")

NOTEBOOK = """
import importlib, pkgutil, sys
import utils, model
import image_text_retrieval as package

for module in pkgutil.walk_packages(package.__path__, "image_text_retrieval."):
    importlib.import_module(module.name)
assert utils.MINE == model.MINE == "mine"
assert not {"settings", "losses", "features", "metrics", "training", "retrieval"} & set(sys.modules)

from image_text_retrieval.retrieval.models import shipped_run
from image_text_retrieval.settings import read_recipe
from image_text_retrieval.utils import BadInput

assert read_recipe("strong").similarity == "cosine"
run = shipped_run()
print(run.embed_sentences("a dog runs").shape, run.folder)
try:
    run.embed_sentences(3)
except BadInput as error:
    print(error)
"""


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("build_hook", ROOT / "package/build_hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_takes_every_room_and_no_script(hook):
    assert doctest.testmod(hook).failed == 0
    assert set(hook.FOLDERS) == {path.parent.name for path in ROOT.glob("*/__init__.py")}
    scripts = {"prep.py", "train.py", "eval.py", "search.py", "app.py", "script.py"}
    assert set(hook.FILES) == {path.name for path in ROOT.glob("*.py")} - scripts


def test_imports_of_rooms_get_the_name_and_nothing_else_changes(hook):
    source = '"""from utils import x"""\n\ndef f():\n    from utils import log  # late\n    from utilities import g\n'
    assert hook.renamed(source) == source.replace("    from utils", "    from image_text_retrieval.utils")
    with pytest.raises(ValueError, match="line 2: `import` of a room"):
        hook.renamed("import numpy\nimport metrics.ranks\n")


def test_an_installed_package_beside_files_of_the_same_names(tmp_path):
    where = ["--target", tmp_path / "site", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", "install", ROOT, *where, *offline], check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "site").glob("*/")} == {
        "image_text_retrieval",
        "image_text_retrieval-0.1.0.dist-info",
    }
    notebook = tmp_path / "notebook"
    notebook.mkdir()
    for name in ("utils", "model"):
        (notebook / f"{name}.py").write_text("MINE = 'mine'\n")
    (notebook / "cells.py").write_text(NOTEBOOK)
    done = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=notebook,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shape, error = done.stdout.splitlines()
    assert shape.startswith(f"(1, 512) {tmp_path / 'site/image_text_retrieval/models'}")
    assert error == "'3': is int, no sentence; give text, or a list of texts"
