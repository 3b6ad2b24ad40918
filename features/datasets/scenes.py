"""The sample dataset, drawn by the project itself: small images with five captions each, without a network.

Every image and its captions follow from a `Scene`, and every scene from a seed; no two have the same description.
"""

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PILImage
from PIL import ImageColor, ImageDraw, ImageOps, PngImagePlugin

from features.datasets.dataset import Dataset, Image
from features.progress import progress_bar
from utils import atomic_write, make_folder

VERSION = 1  # raise it whenever planning or drawing changes: images of another version are then drawn anew
PNG_END = b"IEND\xaeB`\x82"
SHARP = 2  # drawn so many times larger, then reduced: smooth edges
DETAIL = 0.3  # how often a caption but the first tells the size of a group, and its color
Spot = tuple[float, float, float]  # left, top and side of a square
# fmt: off
COLORS = {"red": "#de322e", "orange": "#f58824", "yellow": "#fcd238", "green": "#46a048", "blue": "#2e6cd8",
           "purple": "#8648b6", "pink": "#f788b2", "brown": "#8e5c3a", "white": "#fff", "grey": "#899", "black": "#334"}
SIZES = {"large": 0.4, "": 0.225, "small": 0.15}  # side of one thing as a share of the image
# What can be said in several ways, here and below, is parted by a slash.
COLOR_WORDS = {"red": "red/scarlet", "yellow": "yellow/golden", "purple": "purple/violet"}
SIZE_WORDS = {"large": "large/big/huge", "": "", "small": "small/little/tiny"}
NUMBERS = {1: "a", 2: "two/two/a pair of", 3: "three", 4: "four", 5: "five"}
RELATIONS = {"": "", "above": "above/over", "below": "below/under/beneath", "left of": "to the left of/on the left of",
             "right of": "to the right of/on the right of", "in front of": "in front of", "behind": "behind"}
OPPOSITE = {"": "", "above": "below", "below": "above", "left of": "right of", "right of": "left of",
            "in front of": "behind", "behind": "in front of"}
# Sentences about one group, and about A that is in some relation to B; the first of each says everything.
ONE = ("{A} {place} {sky}", "{A} {place}", "there {are} {A} {place} {sky}", "{place}, {A} {stand} {sky}",
       "a picture of {A} {place}", "{scene} {sky} with {A}", "{A} {stand} {place}")
PAIR = ("{A} {relation} {B} {place} {sky}", "{A} {relation} {B} {place}", "{B} {opposite} {A}",
        "there {are} {A} {there} and {B} {opposite} {them}", "{A} {stand} {relation} {B}", "{A} and {B} {sky}",
        "{scene} {sky} with {A} and {B}", "{place}, {A} {stand} {relation} {B}", "a picture of {A} and {B}",
        "{A} {there}", "a picture of {A}", "there {are} {A} {there}", "{A} {stand} {there}", "{scene} with {A}",
        "{A} {sky}")
# Strokes of things: kind, paint, numbers; x and y go from -1 to 1, y downwards, the foot of a thing at y = 1:
#   oval x y rx ry | box x0 y0 x1 y1 | poly x y x y ... | line width x y x y ...
#   pie x y rx ry start end | arc width x y rx ry start end (degrees, clockwise from three o'clock)
# The paint main is the color of the thing, dark and light are shades of it.
BRIGHT = "red orange yellow green blue purple pink"
# thing: its names, its verb, its colors, its strokes
THINGS = {
    "house": ("house/cottage/home", "stand", BRIGHT + " white",
     "box #844 .35 -.85 .6 -.3; box main -.75 -.25 .75 1; poly #743 -.98 -.2 0 -.95 .98 -.2; box #533 -.17 .35 .17 1;"
     "box #bef -.58 .05 -.28 .4; box #bef .28 .05 .58 .4; oval #bef 0 -.45 .14 .14"),
    "tree": ("tree", "grow", "red orange yellow green pink",
     "poly #853 -.13 .1 .13 .1 .2 1 -.2 1; oval dark -.4 -.05 .5 .42; oval dark .4 -.05 .5 .42;"
     "oval main 0 -.4 .62 .55; oval light -.2 -.55 .24 .18; oval main -.35 0 .3 .25; oval main .3 .02 .32 .24"),
    "car": ("car/automobile", "stand", BRIGHT + " white",
     "poly main -.6 .1 -.35 -.35 .35 -.35 .65 .1; poly #cef -.45 .08 -.28 -.24 -.03 -.24 -.03 .08;"
     "poly #cef .04 .08 .04 -.24 .29 -.24 .5 .08; box main -.98 .05 .98 .7; box dark -.98 .5 .98 .7;"
     "oval #334 -.55 .7 .28 .28; oval #334 .55 .7 .28 .28; oval #ddd -.55 .7 .13 .13; oval #ddd .55 .7 .13 .13"),
    "bus": ("bus/coach", "stand", BRIGHT,
     "box main -.98 -.75 .98 .75; box dark -.98 .3 .98 .45; box #cef -.85 -.5 -.5 .1; box #cef -.42 -.5 -.07 .1;"
     "box #cef .01 -.5 .36 .1; box #eff .5 -.55 .88 .68; line #788 .04 .69 -.55 .69 .68; oval #334 -.55 .75 .24 .24;"
     "oval #334 .3 .75 .24 .24; oval #ddd -.55 .75 .1 .1; oval #ddd .3 .75 .1 .1"),
    "cat": ("cat/kitten", "sit", "orange brown white grey black",
     "arc main .14 .5 .62 .4 .3 270 90; oval main 0 .5 .5 .5; poly main -.5 -.35 -.5 -.95 -.08 -.6;"
     "oval light 0 .6 .25 .3; poly main .5 -.35 .5 -.95 .08 -.6; oval main 0 -.25 .56 .45; oval light 0 -.08 .26 .19;"
     "oval white -.2 -.3 .12 .12; oval white .2 -.3 .12 .12; oval #223 -.2 -.3 .06 .1; oval #223 .2 -.3 .06 .1;"
     "oval #e78 0 -.14 .08 .06; line #223 .03 -.7 -.12 -.2 -.04 -.7 .06; line #223 .03 .7 -.12 .2 -.04 .7 .06"),
    "dog": ("dog/puppy", "stand", "orange brown white grey black",
     "arc main .13 -.72 .02 .24 .4 90 250; box main -.65 .3 -.42 1; box dark -.38 .4 -.2 1; box dark .1 .4 .28 1;"
     "box main .3 .3 .52 1; box main -.72 .02 .58 .58; poly main .15 .3 .3 -.4 .75 -.2 .58 .4;"
     "oval main .48 -.42 .36 .34; oval light .76 -.28 .24 .17; oval #223 .92 -.34 .09 .08; oval white .55 -.52 .09 .1;"
     "oval #223 .57 -.51 .05 .06; oval dark .2 -.35 .15 .36; line #d43 .1 .24 .02 .66 .1"),
    "flower": ("flower/blossom", "grow", BRIGHT.replace("green", "white"),
     "line #484 .1 0 0 .02 1; oval #5a5 -.25 .62 .25 .1; oval #5a5 .27 .75 .25 .1; oval main 0 -.72 .24 .26;"
     "oval main 0 -.02 .24 .26; oval main -.38 -.56 .26 .24; oval main .38 -.56 .26 .24; oval main -.38 -.2 .26 .24;"
     "oval main .38 -.2 .26 .24; oval #ec4 0 -.38 .24 .24; oval #b73 0 -.38 .11 .11"),
    "mushroom": ("mushroom/toadstool", "grow", "red orange brown purple",
     "poly #eec -.22 0 .22 0 .32 .95 -.32 .95; pie main 0 .15 .95 1 180 360; oval dark 0 .15 .95 .12;"
     "oval #ffe -.4 -.3 .17 .14; oval #ffe .12 -.58 .19 .14; oval #ffe .5 -.15 .16 .14; oval #ffe .02 -.14 .11 .1"),
    "umbrella": ("umbrella/parasol", "stand", BRIGHT,
     "line #643 .07 0 -.7 0 .8; arc #643 .07 .13 .8 .16 .18 0 180; pie main 0 .1 .98 .9 180 360;"
     "pie light 0 .1 .64 .9 180 360; pie main 0 .1 .32 .9 180 360; oval dark 0 -.84 .06 .08"),
    "ball": ("ball", "lie", BRIGHT,
     "oval main 0 .2 .8 .8; pie #ffe 0 .2 .8 .8 20 75; pie #ffe 0 .2 .8 .8 140 195; pie #ffe 0 .2 .8 .8 260 315"),
    "cup": ("cup/mug", "stand", BRIGHT + " white",
     "arc main .15 .62 .15 .32 .36 270 90; poly main -.72 -.4 .68 -.4 .52 .95 -.52 .95; oval light -.02 -.4 .7 .17;"
     "oval #642 -.02 -.37 .58 .11; poly light -.55 -.15 -.4 -.13 -.32 .75 -.42 .75"),
    "apple": ("apple", "lie", "red green yellow",
     "oval main -.3 .25 .58 .7; oval main .3 .25 .58 .7; oval main 0 .5 .55 .45; oval dark 0 -.36 .24 .08;"
     "line #643 .1 0 -.36 .08 -.75; poly #5a5 .08 -.55 .3 -.85 .68 -.8 .42 -.52; oval light -.5 .02 .13 .2"),
    "boat": ("boat/sailboat", "sail", BRIGHT + " white",
     "line #643 .07 0 -.95 0 .5; poly main .06 -.9 .06 .3 .8 .3; poly light -.06 -.7 -.06 .3 -.65 .3;"
     "poly dark -.98 .42 .98 .42 .65 .95 -.6 .95; poly #fed -.98 .42 .98 .42 .92 .54 -.9 .54"),
    "duck": ("duck", "swim", "yellow white brown grey",
     "poly main -.7 .5 -.98 0 -.3 .2; oval main -.1 .5 .75 .4; poly main .2 0 .7 0 .6 .4 .1 .4; oval dark -.2 .4 .4 .2;"
     "oval main .45 -.2 .35 .35; poly #e82 .74 -.3 .99 -.15 .74 -.04; oval #223 .55 -.28 .06 .06"),
    "fish": ("fish", "swim", BRIGHT,
     "poly dark -.4 .1 -.98 -.4 -.8 .1 -.98 .6; poly dark -.2 -.3 .3 -.75 .4 -.3; poly dark 0 .5 .2 .85 .3 .5;"
     "oval main .2 .1 .76 .5; arc light .06 .3 .1 .3 .4 110 250; oval white .66 0 .14 .14; oval #223 .7 0 .07 .08"),
    "balloon": ("balloon", "float", BRIGHT,
     "line #667 .04 0 .4 .1 .6 0 1; poly dark 0 .3 .1 .5 -.1 .5; oval main 0 -.3 .6 .7; oval light -.2 -.6 .1 .2"),
    "airship": ("hot-air balloon", "float", BRIGHT,
     "line #643 .05 -.45 .1 -.2 .65; line #643 .05 .45 .1 .2 .65; poly main -.74 -.1 .74 -.1 .22 .55 -.22 .55;"
     "oval main 0 -.28 .8 .7; oval #fed 0 -.28 .5 .7; poly #fed -.46 0 .46 0 .16 .54 -.16 .54; oval main 0 -.28 .2 .7;"
     "poly main -.19 -.1 .19 -.1 .08 .54 -.08 .54; box #a74 -.25 .65 .25 1"),
    "kite": ("kite", "fly", BRIGHT,
     "line #667 .04 0 .35 .15 .55 -.1 .75 .08 1; poly main 0 -.98 .62 -.35 0 .4 -.62 -.35;"
     "poly light 0 -.98 0 -.35 -.62 -.35; poly dark 0 -.35 .62 -.35 0 .4; poly main -.1 .42 -.1 .66 .34 .45 .34 .68"),
    "bird": ("bird", "fly", BRIGHT + " white black",
     "poly dark -.45 .1 -.98 -.05 -.9 .35; oval main 0 .15 .6 .3; oval main .55 -.05 .28 .26; oval light .1 .3 .35 .1;"
     "poly #ea2 .78 -.12 .99 0 .78 .08; oval #223 .62 -.1 .06 .06; poly dark .3 .05 -.25 -.95 -.5 -.75 -.4 .1"),
}
PLURALS = {"fish": "fish", "bus": "buses", "coach": "coaches", "puppy": "puppies"}
AIR, INDOORS = ("balloon", "airship", "kite", "bird"), ("room", "table")  # indoors only the first of AIR is found
# setting: what is on its ground (or water); where that is; where things in the air are; a noun for it; its strokes
SETTINGS = {
    "meadow": ("house tree cat dog flower mushroom ball", "in a meadow/on the grass", "over a meadow", "a meadow",
     "oval #8c7 -.7 .75 1.2 .8; oval #7b6 .8 .85 1.3 .85; oval #6a5 -.2 1.5 2 1.2;"
     "line #494 .02 -.8 .6 -.77 .5 -.74 .6; line #494 .02 .7 .5 .73 .4 .76 .5; line #494 .02 -.1 .9 -.07 .8 -.04 .9"),
    "beach": ("house dog umbrella ball", "on a beach/on the sand", "over a beach/above the sand", "a beach",
     "box #4ac -1.2 .02 1.2 .5; box #6cd -1.2 .16 1.2 .5; oval #eff -.5 .42 .9 .18; oval #eff .6 .4 .8 .15;"
     "oval #eda -.5 .75 1.4 .47; oval #eda .6 .72 1.2 .44; box #eda -1.2 .6 1.2 1.3; line #db7 .02 -.7 .7 -.4 .72"),
    "sea": ("boat duck fish", "at sea/in the water/on the ocean", "over the sea/above the ocean", "the sea",
     "box #38b -1.2 0 1.2 1.3; box #49c -1.2 .25 1.2 1.3; box #5ad -1.2 .6 1.2 1.3; line #ade .025 -.9 .15 -.6 .15;"
     "line #ade .025 .2 .12 .6 .12; line #ade .025 -.3 .35 .1 .35; line #cef .025 -.8 .62 -.3 .62"),
    "snow": ("house tree car bus cat dog", "in the snow/on a snowy field", "over the snow", "a winter scene",
     "poly #bcd -1.1 .3 -.6 -.15 -.2 .2 .3 -.25 1.1 .3; oval #dee -.7 .8 1.2 .75; oval #eef .8 .85 1.3 .8;"
     "oval #fff -.1 1.5 2 1.15; oval #dee -.6 .7 .25 .03; oval #dee .5 .8 .3 .03"),
    "desert": ("house car bus dog", "in a desert/among sand dunes", "over a desert/above the dunes", "a desert",
     "oval #da6 -.8 .7 1.1 .65; oval #d95 .7 .75 1.2 .7; oval #eb7 -.2 1.4 2 1.05; line #685 .07 -.86 .2 -.86 -.2;"
     "line #685 .05 -.86 .1 -.94 .06 -.94 -.06; line #685 .05 -.86 .04 -.76 0 -.76 -.12; line #685 .07 .9 .2 .9 -.06"),
    "city": ("tree car bus cat dog umbrella", "on a city street/in town", "over a city/above the street", "a city",
     "box #bbc -1.2 .16 1.2 .35; box #99a -1.2 .32 1.2 .37; box #667 -1.2 .36 1.2 1.3; box #eed -.95 .68 -.55 .73;"
     "box #eed -.2 .68 .2 .73; box #eed .55 .68 .95 .73"),
    "mountains": ("house tree car dog flower mushroom", "in a valley/near snowy peaks", "over a valley", "a valley",
     "poly #78a -1.3 .35 -.6 -.6 .1 .35; poly #eff -.6 -.6 -.78 -.35 -.66 -.4 -.58 -.3 -.5 -.4 -.4 -.33;"
     "poly #9ab -.3 .35 .45 -.42 1.3 .35; poly #eff .45 -.42 .25 -.21 .38 -.26 .46 -.16 .54 -.26 .68 -.21;"
     "oval #796 -.7 .8 1.3 .65; oval #696 .8 .85 1.3 .7; oval #7a6 0 1.5 2.1 1.15"),
    "room": ("cat dog ball umbrella", "in a room/on the floor/in a living room", "in a room/in a living room", "a room",
     "box #c86 -1.2 .2 1.2 1.3; line #a74 .012 -1 .4 1 .4; line #a74 .012 -1 .62 1 .62; line #a74 .012 -1 .85 1 .85;"
     "box #fee -1.2 .14 1.2 .21; oval #bcd 0 .72 .85 .22; oval #dde 0 .72 .7 .16"),
    "table": ("cup apple mushroom ball", "on a table/on a kitchen table", "above a table/in a kitchen", "a kitchen",
     "box #b85 -1.2 .36 1.2 1.3; line #963 .02 -1 .5 1 .5; line #963 .02 -1 .9 1 .9; oval #eee 0 .7 .9 .2"),
}
CLOUDS = ("oval {0} -.6 -.7 .3 .1; oval {0} -.7 -.77 .17 .13; oval {0} -.5 -.76 .14 .1; oval {0} .5 -.5 .3 .1;"
          "oval {0} .42 -.57 .15 .12; oval {0} .6 -.57 .13 .1; oval {0} .1 -.85 .34 .12; oval {0} 0 -.93 .17 .13")
# sky: what is said of it anywhere, outdoors only, and indoors only, seen through a window; its colors at the top and
# at the bottom; the color of its light, and how much of that falls on the ground; its strokes
SKIES = {
    "sunny": ("on a sunny day", "in the sunshine/under a bright sun", "with sunshine outside",
     "#4aa8ea", "#d3effc", "#fff2c0", 0.08, "oval #feb -.62 -.64 .3 .3; oval #fd4 -.62 -.64 .22 .22;"
     "oval white .5 -.62 .28 .09; oval white .44 -.7 .15 .12; oval white .6 -.68 .12 .1"),
    "cloudy": ("on a cloudy day", "under a cloudy sky/below the clouds", "with clouds outside",
     "#9db4c6", "#dbe5ea", "#8f9aa6", 0.18, CLOUDS.format("#f4f7f9")),
    "rainy": ("on a rainy day", "in the rain/in a shower of rain", "with rain outside",
     "#6d7c8e", "#a9b6c0", "#55606e", 0.32, CLOUDS.format("#58667a")),
    "sunset": ("at sunset/in the evening", "while the sun goes down", "with a sunset outside",
     "#6a4c93", "#ffb267", "#f0803c", 0.25, "oval #fc7 0 .02 .5 .5; oval #fd9 0 .02 .36 .36;"
     "oval #e87 -.6 -.45 .35 .04; oval #e87 .55 -.6 .4 .04; oval #c78 .2 -.75 .3 .03"),
    "night": ("at night/on a moonlit night", "under the moon", "with the moon outside",
     "#113", "#347", "#124", 0.55, "oval #fec -.62 -.64 .2 .2; oval #ed9 -.7 -.7 .06 .06; oval #ed9 -.56 -.6 .1 .1"),
    "rainbow": ("", "under a rainbow/near a rainbow", "with a rainbow outside",
     "#7cc0ee", "#e8f6fb", "#ffffff", 0.0, CLOUDS.format("white") +
     "; arc #d54 .05 0 .3 .92 .97 180 360; arc #e94 .05 0 .3 .87 .92 180 360; arc #fd5 .05 0 .3 .82 .87 180 360;"
     "arc #5b6 .05 0 .3 .77 .82 180 360; arc #48d .05 0 .3 .72 .77 180 360; arc #85b .05 0 .3 .67 .72 180 360"),
}
# fmt: on


@dataclass(frozen=True)
class Group:
    """One to five things of a kind that look alike; `size` is large, small, or empty: nothing to speak of."""

    thing: str
    color: str
    size: str
    count: int


@dataclass(frozen=True)
class Scene:
    """One group, or two of which the first is `relation` the second. `seed` decides wording and jitter."""

    setting: str
    sky: str
    groups: tuple[Group, ...]
    relation: str
    seed: str

    def describe(self) -> str:
        things = [" ".join(f"{g.count} {g.size} {g.color} {g.thing}".split()) for g in self.groups]
        return f"{self.setting}, {self.sky}: {f' {self.relation} '.join(things)}"


def plan(seed: int = 0, train: int = 1200, val: int = 200, test: int = 200) -> list[Scene]:
    """Return scenes in dataset order: train, val, test. All differ; asking for more never changes the first."""
    planned: dict[str, Scene] = {}
    numbers = itertools.count()
    while len(planned) < train + val + test:
        scene = _imagine(f"{seed}-{next(numbers)}")
        planned.setdefault(scene.describe(), scene)
    return list(planned.values())


def _imagine(seed: str) -> Scene:
    rng = random.Random(seed)
    setting, sky = rng.choice(list(SETTINGS)), rng.choice(list(SKIES))
    things = [*SETTINGS[setting][0].split(), *(AIR[:1] if setting in INDOORS else AIR)]
    first, second = rng.sample(things, 2)
    relation = rng.choice(("left of", "right of"))
    if (first in AIR) != (second in AIR):
        relation = "above" if first in AIR else "below"
    elif first not in AIR and rng.random() < 0.4:
        relation = rng.choice(("in front of", "behind"))
    if rng.random() < 0.2:
        return Scene(setting, sky, (_group(first, "", rng),), "", seed)
    groups = (_group(first, relation, rng), _group(second, OPPOSITE[relation], rng))
    return Scene(setting, sky, groups, relation, seed)


def _group(thing: str, relation: str, rng: random.Random) -> Group:
    """A group that hides no other: the larger the things, the fewer."""
    size = rng.choice({"in front of": ("", "small"), "behind": ("large", "")}.get(relation, tuple(SIZES)))
    max_count = {"large": 1 if relation in ("left of", "right of") else 2, "": 3, "small": 5}[size]
    return Group(thing, rng.choice(THINGS[thing][2].split()), size, rng.randint(1, max_count))


def captions(scene: Scene) -> tuple[str, ...]:
    """Return five different sentences, all true of the scene; the first says everything, the others less."""
    rng = random.Random(f"{scene.seed} captions")
    full, *others = ONE if len(scene.groups) == 1 else PAIR
    sentences = {_sentence(scene, full, 1.0, rng): None}  # a dict keeps the order, a set would not
    patterns = itertools.cycle(rng.sample(others, len(others)))
    while len(sentences) < 5:
        sentences[_sentence(scene, next(patterns), DETAIL, rng)] = None
    return tuple(sentences)


def _sentence(scene: Scene, pattern: str, detail: float, rng: random.Random) -> str:
    first, last = scene.groups[0], scene.groups[-1]
    _, ground, air, noun, _ = SETTINGS[scene.setting]
    anywhere, outdoors, indoors = SKIES[scene.sky][:3]
    verb, many = THINGS[first.thing][1], first.count > 1
    text = pattern.format(
        A=_phrase(first, detail, rng),
        B=_phrase(last, detail, rng),
        relation=_pick(RELATIONS[scene.relation], rng),
        opposite=_pick(RELATIONS[OPPOSITE[scene.relation]], rng),
        scene=noun,
        place=_pick(air if first.thing in AIR and last.thing in AIR else ground, rng),
        there=_pick(air if first.thing in AIR else ground, rng),
        sky=_pick(f"{anywhere}/{indoors if scene.setting in INDOORS else outdoors}", rng),
        stand=verb if many else "flies" if verb == "fly" else f"{verb}s",
        are="are" if many else "is",
        them="them" if many else "it",
    )
    return text[0].upper() + text[1:] + "."


def _phrase(group: Group, detail: float, rng: random.Random) -> str:
    """Like "two small red cars": the number always, the size and the color each with probability `detail`."""
    noun = _pick(THINGS[group.thing][0], rng)
    size = _pick(SIZE_WORDS[group.size], rng) if rng.random() < detail else ""
    color = _pick(COLOR_WORDS.get(group.color, group.color), rng) if rng.random() < detail else ""
    words = " ".join(f"{size} {color} {noun if group.count == 1 else PLURALS.get(noun, noun + 's')}".split())
    number = _pick(NUMBERS[group.count], rng)
    return f"{'an' if number == 'a' and words[0] in 'aeiou' else number} {words}"


def _pick(ways: str, rng: random.Random) -> str:
    return rng.choice(ways.strip("/").split("/"))


def draw(scene: Scene, size: int = 224) -> PILImage.Image:
    """Draw a scene, RGB, `size` pixels square; always the same image for the same scene."""
    rng = random.Random(f"{scene.seed} drawing")
    side, mirrored = size * SHARP, rng.random() < 0.5  # mirrored at the end: cars and cats look both ways
    image = _backdrop(scene, side, rng)
    pen, glaze = ImageDraw.Draw(image), ImageDraw.Draw(image, "RGBA")  # the second one lets shine through
    for x, y, wide, group in sorted(spots_of(scene, mirrored, rng), key=lambda spot: spot[1] + spot[2]):
        _thing(pen, glaze, group, (x * side, y * side, wide * side))
    if scene.sky == "rainy" and scene.setting not in INDOORS:
        for _ in range(70):
            x, y = rng.uniform(0, side), rng.uniform(0, side)
            glaze.line((x, y, x - 0.012 * side, y + 0.05 * side), (220, 235, 250, 150), max(1, side // 220))
    image = image.resize((size, size), PILImage.Resampling.LANCZOS)
    return ImageOps.mirror(image) if mirrored else image


def spots_of(scene: Scene, mirrored: bool, rng: random.Random) -> list[tuple[float, float, float, Group]]:
    """Return left, top and side of every thing, as shares of the image."""
    spots = []
    for group, relation in zip(scene.groups, (scene.relation, OPPOSITE[scene.relation]), strict=False):
        left, right = {"left of": (0.03, 0.49), "right of": (0.51, 0.97)}.get(relation, (0.04, 0.96))
        left, right = (1 - right, 1 - left) if mirrored else (left, right)
        side, flies = SIZES[group.size], group.thing in AIR
        front = group.count if group.count * side <= right - left else (group.count + 1) // 2
        rows = (front, group.count - front)
        top = {"behind": 0.72}.get(relation, 0.96) - side
        if flies:
            top = rng.uniform(0.05 + (side if rows[1] else 0), 0.47 - side)
        for row, count in enumerate(rows):
            slack = (right - left) / max(count, 1) - side
            for number in range(count):
                x = left + slack * rng.uniform(0.2, 0.8) + (slack + side) * number
                spots.append((x, top - row * side * (1.05 if flies else 0.8) - rng.uniform(0, 0.02), side, group))
    return spots


def _thing(pen: ImageDraw.ImageDraw, glaze: ImageDraw.ImageDraw, group: Group, spot: Spot) -> None:
    x, y, side = spot
    if group.thing not in AIR:  # a shadow, or the ripples around what swims, keeps it from hanging in the air
        shine = (255, 255, 255, 110) if group.thing in SETTINGS["sea"][0].split() else (20, 20, 40, 70)
        glaze.ellipse((x, y + 0.9 * side, x + side, y + 1.04 * side), shine)
    main, ink, art = COLORS[group.color], "#14121e", THINGS[group.thing][3]
    paints = {"main": main, "dark": _mix(main, ink, 0.25), "light": _mix(main, "#ffffff", 0.45)}
    _strokes(pen, art, spot, lambda paint: _mix(main, ink, 0.6), 0.025 * side)  # the outline: fatter and darker
    _strokes(pen, art, spot, lambda paint: paints.get(paint, paint))


def _backdrop(scene: Scene, side: int, rng: random.Random) -> PILImage.Image:
    """The setting under its sky, `side` pixels square; indoors the sky is behind a window."""
    *_, top, bottom, light, share, art = SKIES[scene.sky]
    image = PILImage.new("RGB", (side, side), bottom)
    fade = ImageOps.colorize(PILImage.linear_gradient("L").resize((1, side * 3 // 5)), top, bottom)
    image.paste(fade.resize((side, fade.height)))
    pen = ImageDraw.Draw(image)
    if scene.sky == "night":
        for _ in range(60):
            x, y, wide = rng.uniform(0, side), rng.uniform(0, 0.6 * side), rng.uniform(0.002, 0.008) * side
            pen.ellipse((x, y, x + wide, y + wide), "#fdf6d0")
    _strokes(pen, art, (0, 0, side), str)
    lit = functools.partial(_mix, other=light, share=share)
    if scene.setting in INDOORS:
        window = ImageOps.expand(image.resize((side * 3 // 8, side * 3 // 8)), side // 50, "#fffaf0")
        image.paste(lit(rng.choice(("#f3e3c8", "#dfe8d8", "#e6dcea", "#f4d9cf"))), (0, 0, side, side))
        image.paste(window, (side // 14, side // 14))
        _strokes(pen, "line #fffaf0 .03 -.45 -.82 -.45 -.06; line #fffaf0 .03 -.82 -.45 -.06 -.45", (0, 0, side), str)
    if scene.setting == "city":
        for x in range(8):
            roof = rng.uniform(0.22, 0.42)
            wall = lit(rng.choice(("#8fa3b8", "#b79f94", "#a5a8c4", "#7f95a0", "#c2b29b")))
            pen.rectangle((side * x / 8, side * roof, side * (x + 1) / 8, side * 0.62), wall)
            for row, column in itertools.product(range(int((0.58 - roof) / 0.055)), range(3)):
                left, upper = x / 8 + 0.017 + 0.035 * column, roof + 0.02 + 0.055 * row
                pane = [side * share for share in (left, upper, left + 0.02, upper + 0.03)]
                pen.rectangle(pane, rng.choice(("#fea", "#def", "#678")))
    _strokes(pen, SETTINGS[scene.setting][4], (0, 0, side), lit)
    return image


def _strokes(pen: ImageDraw.ImageDraw, art: str, spot: Spot, paint: Callable[[str], str], grow: float = 0) -> None:
    """Draw strokes into a square (left, top, side in pixels), every one fatter by `grow` pixels."""
    half = spot[2] / 2
    middle, center = spot[0] + half, spot[1] + half
    for stroke in art.split(";"):
        kind, name, *words = stroke.split()
        fill, numbers = paint(name), [half * float(word) for word in words]
        width = 2 * grow + (numbers.pop(0) if kind in ("line", "arc") else 0)
        x, y, right, low = middle + numbers[0], center + numbers[1], numbers[2] + grow, numbers[3] + grow
        if kind == "box":
            pen.rounded_rectangle((x - grow, y - grow, middle + right, center + low), 0.06 * half + grow, fill)
        elif kind == "oval":
            pen.ellipse((x - right, y - low, x + right, y + low), fill)
        elif kind == "pie":
            pen.pieslice((x - right, y - low, x + right, y + low), float(words[-2]), float(words[-1]), fill)
        elif kind == "arc":
            pen.arc((x - right, y - low, x + right, y + low), float(words[-2]), float(words[-1]), fill, round(width))
        else:
            points = [(middle + x, center + y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
            if kind == "poly":
                pen.polygon(points, fill)
                points += points[:2]  # closed, with its first corner rounded as well
            if width:
                pen.line(points, fill, round(width), joint="curve")


def _mix(paint: str, other: str, share: float) -> str:
    pairs = zip(ImageColor.getrgb(paint), ImageColor.getrgb(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def scenes(folder: Path, seed: int = 0, train: int = 1200, val: int = 200, test: int = 200) -> Dataset:
    """Draw the images that `folder` lacks, or holds cut short or of another seed or version; return the dataset."""
    folder = make_folder(folder, "images")
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    images = []
    for number, scene in enumerate(progress_bar(plan(seed, train, val, test), "drawing scenes", delay=2)):
        path = folder / f"scene-{number:04}.png"
        info, stamp = PngImagePlugin.PngInfo(), f"version {VERSION}, seed {scene.seed}: {scene.describe()}."
        info.add_text("scene", stamp)
        data = path.read_bytes() if path.is_file() else b""
        if stamp.encode() not in data[:500] or not data.endswith(PNG_END):
            with atomic_write(path, "wb") as file:
                draw(scene).save(file, "PNG", pnginfo=info, compress_level=2)
        images.append(Image(path.name, path, splits[number], captions(scene)))
    return Dataset("scenes", tuple(images))
