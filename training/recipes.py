"""The recipes that there are: what one is, whose it is, what it needs, and what to expect of it."""

import re
from textwrap import wrap
from typing import Any

from features.text.hub import text_store_name
from metrics.table import WIDTH, Table
from settings import RECIPES, Settings, from_table, known_recipes, read_toml


def recipe_table(width: int = WIDTH) -> Table:
    """Return the recipes in recipes/, the highest expected rsum first, as wide as a terminal.

    >>> [row[:2] for row in recipe_table().rows if row[0] == "two_branch"]
    [['two_branch', '245.1']]
    """
    rows = []
    for name in known_recipes():
        path = RECIPES / f"{name}.toml"
        table = read_toml(path, "take it from the project again")
        expected = table.pop("expected", {})
        settings = from_table(table, str(path))
        first, _ = path.read_text(encoding="utf-8").split("\n", 1)
        rsum, features = figures(expected)
        facts = {"on ": features, "needs ": needs(settings), "": paper(settings.source)}
        rows.append([name, rsum, about(first), "; ".join(f"{key}{fact}" for key, fact in facts.items() if fact != "–")])
    rows.sort(key=lambda row: float(row[1].replace("–", "0")), reverse=True)
    room = max(20, width - max(len(row[0]) for row in rows) - 9)  # beside rsum
    cells = [
        [name, rsum, "\n".join(line for text in texts for line in wrap(text, room, break_on_hyphens=False))]
        for name, rsum, *texts in rows
    ]
    note = "rsum: on Flickr8k's test images with the features below it, uncorrected (docs/RESULTS.md, docs/MODERN.md)."
    header = ["recipe", "rsum", "what it is, on which features, after whom"]
    return Table("", header, cells, left=frozenset({0, 2}), notes=wrap(note, width))


def about(comment: str) -> str:
    """Return what the first line of a recipe says that it is, without the name before it, or the praise behind it.

    >>> about("# VSE0: the sum of hinges."), about("# The least of all recipes: what others are held against.")
    ('the sum of hinges', 'The least of all recipes')
    """
    head, _, tail = comment.removeprefix("# ").rstrip(".").partition(": ")
    return tail if tail and len(head.split()) <= 3 else head


def figures(expected: dict[str, Any]) -> tuple[str, str]:
    """Return the rsum that a recipe's [expected] table has, and the features that it was measured on."""
    return (f"{expected['rsum']:.1f}", expected["features"]) if expected else ("–", "–")


def needs(settings: Settings) -> str:
    """Return which options of prep.py a recipe needs: its features and its text encoder, where it names them.

    >>> needs(Settings()), needs(Settings(features=("vgg19",)))
    ('–', 'vgg19')
    >>> from settings import TextSettings
    >>> needs(Settings(features=("clip-a--b",), text=TextSettings(branch="encoder", encoder="clip:a/b")))
    'clip:a/b'
    """
    encoder = settings.text.encoder
    features = [name for name in settings.features if name != text_store_name(encoder)]  # one model is both sides
    return ", ".join(word for word in (*features, encoder.removeprefix("package:")) if word) or "–"


def paper(source: str) -> str:
    """Return authors and year of a recipe's source.

    >>> paper("Faghri et al., VSE++: Improving Visual-Semantic Embeddings with Hard Negatives, BMVC 2018 (VSE0)")
    'Faghri et al., 2018'
    >>> paper("measured on Flickr8k, see docs/RESULTS.md"), paper("Finder (EfficientNet); open settings as CLIP's")
    ('this project', 'a public project')
    """
    years = re.findall(r"\b(?:19|20)\d\d\b", source)
    if source.startswith("measured"):
        return "this project"
    return f"{source.partition(', ')[0]}, {years[-1]}" if years else "a public project"
