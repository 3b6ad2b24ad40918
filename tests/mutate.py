"""Which changes to the code would the tests not notice? A mutation check over what everything rests on.

    python -m tests.mutate                       all of the modules below
    python -m tests.mutate losses metrics.ranks  some of them
    python -m tests.mutate --jobs 2 --list       what would be changed

A mutant is a module with one operator, constant, comparison or call changed. Each runs the module's own tests in a
process of its own, forked once everything heavy is imported. What survives is printed with its line; docs/MUTATIONS.md
lists those that were looked at and why they may live.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import io
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RANKS, TRAINER = "tests/metrics/test_ranks.py", "tests/training/test_trainer.py"
# What pytest gets for each module: the quickest tests that cover it. Left out are simulations, and processes of their
# own, which see the unchanged module.
TESTS = {
    "metrics.ranks": [RANKS, "-k", "not torchmetrics and not order and not pairs"],
    "metrics.similarity": [RANKS, "-k", "not torchmetrics and not folds"],
    "metrics.protocols": [RANKS, "-k", "folds or first_captions or protocol"],
    "metrics.bootstrap": ["tests/metrics/test_bootstrap.py", "-k", "not _100_tables and not with_folds"],
    "losses": ["tests/test_losses.py"],
    "training.trainer": [
        TRAINER,
        "tests/layers/test_inputs.py",
        "-k",
        "(not after_a_stop or [1-onehot) and not killed and not cca and not damaged",
    ],
    "training.checkpoint": [TRAINER, "-k", "(checkpoint or best or [1-onehot) and not between"],
    "features.blocks": ["tests/features/test_blocks.py"],
    "features.hdf5": ["tests/features/test_hdf5.py", "tests/features/images/test_store.py"],
    "features.images.store": ["tests/features/images/test_store.py"],
    "layers.inputs": ["tests/layers/test_inputs.py"],
    "metrics.correction": ["tests/metrics/test_correction.py"],
}
OURS = {"features", "layers", "losses", "metrics", "model", "settings", "tests", "training", "utils"}
SIZES = re.compile(r"[A-Z_]+(_BYTES|_PER_BLOCK|_COLUMNS) = ")  # speed and memory, never a result: tests vary them
SECONDS = 120  # a mutant that runs longer hangs: it counts as noticed
COMPARISONS: dict[Any, Any] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
}
BOOLEANS: dict[Any, Any] = {ast.And: ast.Or, ast.Or: ast.And}
OPERATORS: dict[Any, Any] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult},
}
CALLS = {"min": "max", "max": "min", "amax": "amin", "amin": "amax", "any": "all", "all": "any", "sum": "amax"}


def mutations(node: Any) -> Iterator[tuple[str, ast.AST]]:  # noqa: C901 (a case for each kind of node)
    """What may stand in place of a node: a description, and the node."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield swap(op, COMPARISONS), ast.Compare(node.left, [COMPARISONS[type(op)]()], node.comparators)
        case ast.BinOp(op=op) if type(op) in OPERATORS and not is_text(node.left):
            yield swap(op, OPERATORS), ast.BinOp(node.left, OPERATORS[type(op)](), node.right)
        case ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield swap(op, OPERATORS), ast.AugAssign(node.target, OPERATORS[type(op)](), node.value)
        case ast.BoolOp(op=op):
            yield swap(op, BOOLEANS), ast.BoolOp(BOOLEANS[type(op)](), node.values)
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub()):
            yield f"without {type(node.op).__name__}", node.operand
        case ast.Constant(value=bool(value)):
            yield f"{value} → {not value}", ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield f"{value} → {value + 1}", ast.Constant(value + 1)
        case ast.IfExp():
            yield "the other branch", ast.IfExp(node.test, node.orelse, node.body)
        case ast.Call(func=ast.Attribute(attr=name) as function) if name in CALLS:
            changed = ast.Attribute(function.value, CALLS[name], function.ctx)
            yield f"{name} → {CALLS[name]}", ast.Call(changed, node.args, node.keywords)
        case ast.Expr(value=ast.Call()):
            yield "without this call", ast.Pass()


def swap(op: ast.AST, table: dict[Any, Any]) -> str:
    return f"{type(op).__name__} → {table[type(op)].__name__}"


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


class Swap(ast.NodeTransformer):
    """Put one node in place of another, by identity."""

    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.copy_location(self.new, node) if node is self.old else self.generic_visit(node)


def mutants_of(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Every mutant of a file: line, description, tree. Types, messages of errors and sizes of blocks are left alone."""
    tree = ast.parse(path.read_text())
    skipped: set[int] = set()
    for node in ast.walk(tree):
        hints = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        messages = [node.exc] if isinstance(node, ast.Raise) and node.exc else []
        imports = [node] if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) else []
        sizes = [node] if isinstance(node, ast.Assign) and SIZES.match(ast.unparse(node)) else []
        for part in [*filter(None, hints), *messages, *imports, *sizes, *getattr(node, "decorator_list", [])]:
            skipped |= {id(inner) for inner in ast.walk(part)}
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        for description, _ in mutations(node):
            fresh = copy.deepcopy(tree)
            target = list(ast.walk(fresh))[number]
            new = dict(mutations(target))[description]
            mutant = Swap(target, new).visit(fresh)
            yield getattr(node, "lineno", 0), description, ast.fix_missing_locations(mutant)


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import a module from a tree in place of its file."""

    def __init__(self, name: str, tree: ast.Module, path: Path):
        self.name, self.tree, self.path = name, tree, path

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, self.path, "exec"), module.__dict__)


def run_mutant(name: str, tree: ast.Module, path: Path, tests: list[str]) -> None:
    """In a process of its own: exit status 0 if the tests do not notice."""
    os.setsid()
    import pytest

    sys.meta_path.insert(0, Mutated(name, tree, path))
    os.chdir(ROOT)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests])
    os._exit(0 if status == 0 else 1)


def survives(name: str, tree: ast.Module, path: Path, tests: list[str]) -> bool:
    process = multiprocessing.get_context("fork").Process(target=run_mutant, args=(name, tree, path, tests))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    return process.exitcode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", nargs="*", default=list(TESTS), metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants at a time; default: 1")
    parser.add_argument("--list", action="store_true", help="only say what would be changed")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import pytest
    import torch

    import tests.helpers

    _ = pytest, tests.helpers  # and with them everything heavy; what is ours is imported anew by each mutant
    for module in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[module]
    torch.set_num_threads(1)
    total = noticed = 0
    for name in args.module:
        path = ROOT / f"{name.replace('.', '/')}.py"
        mutants = list(mutants_of(path))
        if args.list:
            print(*(f"{name}:{line}: {description}" for line, description, _ in mutants), sep="\n")
            continue
        if not survives(name, ast.parse(path.read_text()), path, TESTS[name]):
            sys.exit(f"{name}: its tests fail as it stands")
        began, alive = time.monotonic(), []
        with ThreadPoolExecutor(args.jobs) as pool:
            results = pool.map(
                survives, repeat(name), [tree for *_, tree in mutants], repeat(path), repeat(TESTS[name])
            )
            for (line, description, _), survived in zip(mutants, results, strict=True):
                if survived:
                    alive.append(f"  {name}:{line}: {description}: {path.read_text().splitlines()[line - 1].strip()}")
                    print(alive[-1], flush=True)
        total, noticed = total + len(mutants), noticed + len(mutants) - len(alive)
        share = 100 * (len(mutants) - len(alive)) / len(mutants)
        print(f"{name}: {len(mutants)} mutants, {share:.1f} % noticed, {time.monotonic() - began:.0f} s", flush=True)
    if total:
        print(f"all: {total} mutants, {100 * noticed / total:.1f} % noticed")


if __name__ == "__main__":
    main()
