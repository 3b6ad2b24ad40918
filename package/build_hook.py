"""How `pip install .` makes one package of the rooms of this tree: image_text_retrieval, with their data.

In the tree, rooms import each other by their own names (`from utils import BadInput`), which only works where the tree
comes first on the path. Installed, `utils` would stand in the way of everybody else's. So every room goes below one
name, and its imports of other rooms get that name in front; nothing else of a file changes.
"""

import ast
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

NAME = "image_text_retrieval"
FOLDERS = ("features", "layers", "metrics", "training", "evaluation", "retrieval")
FILES = ("model.py", "losses.py", "settings.py", "reading.py", "utils.py")
DATA = ("recipes", "models")
ROOMS = {*FOLDERS, *(file.removesuffix(".py") for file in FILES)}


class Requirements(MetadataHookInterface):
    """The packages that requirements.txt and requirements-search.txt name."""

    def update(self, metadata: dict[str, Any]) -> None:
        metadata["dependencies"] = requirements(Path(self.root) / "requirements.txt")
        search = requirements(Path(self.root) / "requirements-search.txt")
        metadata["optional-dependencies"] = {"search": search}


class OneName(BuildHookInterface):
    """The rooms below NAME."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            raise ValueError("an editable install would need the rooms under other names; use the tree as it is")
        self.scratch = tempfile.mkdtemp()
        write_package(Path(self.root), Path(self.scratch))
        build_data["force_include"][self.scratch] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self.scratch)


def requirements(file: Path) -> list[str]:
    """Return the lines of a requirements file that name a package."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and line[0] not in "#-"]


def write_package(root: Path, to: Path) -> None:
    """Write the rooms of a tree, and their data, below a folder that is to be called NAME."""
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    for folder in (*FOLDERS, *DATA):
        shutil.copytree(root / folder, to / folder, ignore=unwanted)
    for file in (*FILES, "LICENSE", "NOTICE"):
        shutil.copy(root / file, to / file)
    (to / "__init__.py").write_text('"""Image-text retrieval on frozen features."""\n', encoding="utf-8")
    for path in to.rglob("*.py"):
        path.write_text(renamed(path.read_text(encoding="utf-8")), encoding="utf-8")


def renamed(source: str) -> str:
    """Return a module with NAME in front of the rooms that it imports from. Raises ValueError for `import ROOM`.

    >>> renamed("import numpy\\nfrom features.device import default_device")
    'import numpy\\nfrom image_text_retrieval.features.device import default_device'
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in ROOMS for alias in node.names):
            raise ValueError(f"line {node.lineno}: `import` of a room, which would bind another name; use `from`")
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ROOMS and not node.level:
            row = node.lineno - 1
            head, tail = lines[row][: node.col_offset], lines[row][node.col_offset :]
            lines[row] = head + tail.replace("from ", f"from {NAME}.", 1)
    return "".join(lines)
