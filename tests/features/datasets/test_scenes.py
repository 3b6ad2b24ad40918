"""The sample dataset: the same from the same seed, no scene twice, captions that are true, drawing that continues."""

import random
import re

import numpy as np
import pytest
from PIL import Image as PILImage

from features.datasets import dataset, scenes
from features.datasets.scenes import Group, Scene

SOME = scenes.plan(seed=3, train=240, val=0, test=0)
NUMBERS = {"a": 1, "an": 1, "two": 2, "a pair of": 2, "three": 3, "four": 4, "five": 5}


def alternatives(table):
    """{word: key} of a table of words parted by slashes."""
    return {word: key for key, words in table.items() for word in words.split("/") if word}


COLORS = {color: color for color in scenes.COLORS} | alternatives(scenes.COLOR_WORDS)
SIZES = alternatives(scenes.SIZE_WORDS)
ONE = {name: thing for thing, (names, *_) in scenes.THINGS.items() for name in names.split("/")}
IRREGULAR = {"bus": "buses", "coach": "coaches", "fish": "fish", "puppy": "puppies"}
MANY = {IRREGULAR.get(name, name + "s"): thing for name, thing in ONE.items()}


def one_of(words):
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


NOUN = rf"\b(?P<noun>{one_of([*ONE, *MANY])})\b"
PHRASE = re.compile(
    rf"\b(?P<number>{one_of(NUMBERS)}) (?:(?P<size>{one_of(SIZES)}) )?(?:(?P<color>{one_of(COLORS)}) )?{NOUN}", re.I
)


def matches(found, group):
    """Whether a phrase in a caption is true of a group, in grammar too."""
    number, noun = found["number"].lower(), found["noun"]
    after = found.group().split(" ", 1)[1]
    return (
        NUMBERS[number] == group.count
        and (ONE if group.count == 1 else MANY).get(noun) == group.thing
        and (found["color"] is None or COLORS[found["color"]] == group.color)
        and (found["size"] is None or SIZES[found["size"]] == group.size)
        and (number not in ("a", "an") or (number == "an") == (after[0] in "aeiou"))
    )


def test_the_default_plan_has_enough_scenes_and_none_twice():
    plan = scenes.plan()
    assert len(plan) >= 1200 + 200 + 200
    assert len({scene.describe() for scene in plan}) == len(plan)
    assert {group.thing for scene in plan[-200:] for group in scene.groups} == set(scenes.THINGS)
    assert {scene.setting for scene in plan[-200:]} == set(scenes.SETTINGS)
    assert {scene.sky for scene in plan[-200:]} == set(scenes.SKIES)
    assert {scene.relation for scene in plan[-200:]} == set(scenes.RELATIONS)


def test_a_plan_follows_from_its_seed_and_a_longer_one_begins_with_the_shorter():
    assert scenes.plan(3, 20, 5, 5) == SOME[:30]
    assert [scene.describe() for scene in scenes.plan(4, 30, 0, 0)] != [scene.describe() for scene in SOME[:30]]


def test_descriptions_tell_scenes_apart_but_not_seeds():
    ball = Group("ball", "red", "small", 3)
    assert Scene("beach", "night", (ball,), "", "1").describe() == "beach, night: 3 small red ball"
    pair = Scene("beach", "night", (ball, Group("dog", "black", "", 1)), "left of", "1")
    assert pair.describe() == "beach, night: 3 small red ball left of 1 black dog"


def test_every_scene_has_five_different_captions_of_one_sentence_each():
    for scene in SOME:
        found = scenes.captions(scene)
        assert len(set(found)) == len(found) == 5
        assert found == scenes.captions(scene)
        for caption in found:
            assert re.fullmatch(r"[A-Z][a-z ,-]+\.", caption)
            assert "  " not in caption
            assert 4 <= len(caption.split()) <= 22


def test_whatever_a_caption_names_is_in_the_scene():
    for scene in SOME:
        for caption in scenes.captions(scene):
            found = list(PHRASE.finditer(caption))
            assert len(found) == len(re.findall(NOUN, caption, re.I)) >= 1, caption
            for phrase in found:
                assert any(matches(phrase, group) for group in scene.groups), (caption, scene.describe())


def test_the_first_caption_says_everything():
    for scene in SOME:
        found = list(PHRASE.finditer(scenes.captions(scene)[0]))
        assert len(found) == len(scene.groups)
        for phrase, group in zip(found, scene.groups, strict=True):
            assert matches(phrase, group)
            assert phrase["color"]
            assert bool(phrase["size"]) == bool(group.size)


def test_relations_and_skies_in_captions_are_those_of_the_scene():
    relations = alternatives(scenes.RELATIONS)
    seen = set()
    for scene in SOME:
        for caption in scenes.captions(scene):
            for sky, ways in scenes.SKIES.items():
                wrong = [way for part in ways[:3] for way in part.split("/") if way and sky != scene.sky]
                assert not any(way in caption.lower() for way in wrong), (caption, scene.describe())
            found = list(PHRASE.finditer(caption))
            if len(found) == 2:
                between, rest = caption[found[0].end() : found[1].start()], caption[found[1].end() :]
                back = re.fullmatch(r" (.+) (it|them)\.", rest)  # B is so to A, which it calls "it" or "them"
                if " and " in between and not back:
                    continue
                words = back[1] if back else next(word for word in relations if f" {word} " in between)
                swapped = matches(found[0], scene.groups[1]) != bool(back)
                assert relations[words] == (scenes.OPPOSITE[scene.relation] if swapped else scene.relation), caption
                seen.add(relations[words])
    assert seen == set(scenes.RELATIONS) - {""}


def test_captions_by_hand():
    groups = (Group("dog", "black", "small", 1), Group("ball", "red", "", 3))
    first = scenes.captions(Scene("beach", "night", groups, "left of", "1"))[0]
    assert re.fullmatch(
        r"A (small|little|tiny) black (dog|puppy) (to|on) the left of three (red|scarlet) balls "
        r"on (a beach|the sand) (at night|on a moonlit night|under the moon)\.",
        first,
    )
    kite = scenes.captions(Scene("sea", "rainbow", (Group("kite", "orange", "", 1),), "", "1"))
    assert re.fullmatch(r"An orange kite (over the sea|above the ocean) (under|near) a rainbow\.", kite[0])
    assert any(
        " flies " in caption
        for seed in "123"
        for caption in scenes.captions(Scene("sea", "night", (Group("kite", "red", "", 1),), "", seed))
    )


def test_an_image_follows_from_its_scene():
    scene, other = SOME[:2]
    image = scenes.draw(scene)
    assert (image.mode, image.size) == ("RGB", (224, 224))
    assert image.tobytes() == scenes.draw(scene).tobytes() != scenes.draw(other).tobytes()
    assert scenes.draw(scene, size=96).size == (96, 96)


def test_every_thing_shows_in_its_color_and_no_setting_is_blank():
    for number, thing in enumerate(scenes.THINGS):
        setting = list(scenes.SETTINGS)[number % len(scenes.SETTINGS)]
        pixels = [
            np.asarray(scenes.draw(Scene(setting, "cloudy", (Group(thing, color, "large", 1),), "", "1"), 112), int)
            for color in ("red", "blue")
        ]
        assert pixels[0].std() > 10
        # the two images differ where the thing is, and inside it the first is the redder one and the second the bluer
        changed = np.abs(pixels[0] - pixels[1]).sum(axis=2) > 60
        assert 0.01 < changed.mean() < 0.2
        assert ((pixels[0] - pixels[1])[changed][:, 0] > 0).mean() > 0.9
        assert ((pixels[0] - pixels[1])[changed][:, 2] < 0).mean() > 0.9


def center_of(scene, which):
    """Mean x and y of the pixels that change when one group of a scene changes its color."""
    groups = list(scene.groups)
    group = groups[which]
    groups[which] = Group(group.thing, "blue", group.size, group.count)
    other = Scene(scene.setting, scene.sky, tuple(groups), scene.relation, scene.seed)
    changed = np.asarray(scenes.draw(scene, 96), int) - np.asarray(scenes.draw(other, 96), int)
    y, x = np.nonzero(np.abs(changed).sum(axis=2) > 60)
    return x.mean(), y.mean()


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below", "in front of", "behind"])
def test_things_stand_as_the_relation_says(relation):
    things = {"above": ("kite", "house"), "below": ("house", "kite")}.get(relation, ("house", "ball"))
    for seed in range(4):  # some of them are mirrored
        groups = (Group(things[0], "red", "", 1), Group(things[1], "red", "", 2))
        scene = Scene("meadow", "sunny", groups, relation, str(seed))
        (x0, y0), (x1, y1) = center_of(scene, 0), center_of(scene, 1)
        true = {"left of": x0 < x1, "right of": x0 > x1, "above": y0 < y1, "below": y0 > y1}
        true |= {"in front of": y0 > y1, "behind": y0 < y1}
        assert true[relation]


def test_things_are_inside_the_frame_and_as_many_as_said():
    for scene in SOME:
        for mirrored in (False, True):
            spots = scenes.spots_of(scene, mirrored, random.Random(1))
            assert len(spots) == sum(group.count for group in scene.groups)
            for x, y, side, _ in spots:
                assert min(x, y) >= 0
                assert max(x, y) + side <= 1
    for *_, art in scenes.THINGS.values():
        for stroke in art.split(";"):
            numbers = [float(word) for word in stroke.split()[2:]]
            assert all(abs(number) <= 1 for number in numbers if not number > 2)  # larger ones are degrees


def small(folder, seed=0):
    return scenes.scenes(folder, seed, train=5, val=2, test=2)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_dataset_names_what_it_drew(tmp_path):
    drawn = small(tmp_path / "new" / "folder")
    assert drawn.name == "scenes"
    assert [image.split for image in drawn.images] == ["train"] * 5 + ["val"] * 2 + ["test"] * 2
    assert len({image.id for image in drawn.images}) == 9
    assert dataset.check(drawn, tmp_path) == drawn
    for image, scene in zip(drawn.images, scenes.plan(0, 5, 2, 2), strict=True):
        assert image.path is not None
        assert image.captions == scenes.captions(scene)
        with PILImage.open(image.path) as opened:
            assert opened.tobytes() == scenes.draw(scene).tobytes()


def test_interrupted_drawing_continues_and_repeating_draws_nothing(tmp_path, monkeypatch):
    draw = scenes.draw
    drawn: list[Scene | None] = []

    def counting(scene):
        if len(drawn) == 4:
            raise KeyboardInterrupt
        drawn.append(scene)
        return draw(scene)

    small(tmp_path / "whole")
    monkeypatch.setattr(scenes, "draw", counting)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "cut")
    assert len(contents(tmp_path / "cut")) == 4
    drawn[:] = [None] * 5  # counts on without another interruption
    small(tmp_path / "cut")
    assert len(drawn) == 5 + 5
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    small(tmp_path / "cut")
    assert len(drawn) == 5 + 5


def test_what_is_cut_short_or_of_another_seed_or_version_is_drawn_anew(tmp_path, monkeypatch):
    small(tmp_path)
    whole = contents(tmp_path)
    first = tmp_path / min(whole)
    first.write_bytes(first.read_bytes()[:-20])
    small(tmp_path)
    assert contents(tmp_path) == whole
    small(tmp_path, seed=1)
    other = contents(tmp_path)
    assert other.keys() == whole.keys()
    assert all(other[name] != whole[name] for name in whole)
    small(tmp_path)
    assert contents(tmp_path) == whole
    monkeypatch.setattr(scenes, "VERSION", scenes.VERSION + 1)
    small(tmp_path)
    assert all(contents(tmp_path)[name] != whole[name] for name in whole)
