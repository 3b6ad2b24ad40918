"""What a step does to its batch, against plain loops."""

from collections import Counter

import numpy as np
import pytest
import torch

from losses import structure
from settings import LossSettings
from training.steps import Mixup, draw_mixup, grouped_order, similarities, structure_loss, vectors

IMAGES = np.repeat(np.arange(9), [5, 5, 4, 1, 3, 5, 2, 5, 5])


@pytest.mark.parametrize("size", [2, 3, 10])
def test_captions_of_one_image_come_together(size):
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(50):
        order = grouped_order(IMAGES, size, np.random.default_rng(seed))
        assert sorted(order.tolist()) == list(range(len(IMAGES)))
        position, left = 0, Counter(IMAGES.tolist())
        while position < len(order):  # each run of captions is as long as `size` and what is left of the image let it
            image = int(IMAGES[order[position]])
            group = order[position : position + size]
            length = next((n for n, row in enumerate(group) if IMAGES[row] != image), len(group))
            full = min(size, left[image])
            remainder = left[image] % size
            assert length >= full or length >= remainder > 0
            step = full if length >= full else remainder
            seen[tuple(sorted(order[position : position + step].tolist()))] += image == 0
            left[image] -= step
            position += step
        assert not any(left.values())
    if size == 2:
        assert len([pair for pair, count in seen.items() if count and len(pair) == 2]) == 10, "any two come together"


def test_pairs_are_mixed_with_one_share_on_both_sides():
    mix = Mixup(0.3)
    x = torch.randn(5, 2, 3)
    mixed = mix(x)
    assert mixed.shape == (2, 2, 3), "an odd row is left out"
    for i in range(2):
        torch.testing.assert_close(mixed[i], 0.3 * x[i] + 0.7 * x[i + 2])
    images = torch.tensor([3, 1, 3, 0, 3, 1, 1, 0, 3, 1])
    pairs = [(3, 1), (1, 1), (3, 0), (0, 3), (3, 1)]
    numbers = mix.images(images).tolist()
    for i, pair in enumerate(pairs):
        assert [number == numbers[i] for number in numbers] == [pair == other for other in pairs]


def test_shares_are_drawn_of_torchs_generator():
    assert draw_mixup(0.0, 10) is None
    assert draw_mixup(1.0, 1) is None
    shares = []
    for _ in range(2):
        torch.manual_seed(0)
        shares.append([mix.share for mix in (draw_mixup(1.0, 2) for _ in range(400)) if mix])
    assert shares[0] == shares[1]
    assert 0.45 < np.mean(shares[0]) < 0.55
    assert 0.2 < np.std(shares[0]) < 0.37, "Beta(1, 1) is uniform"


def test_frozen_features_of_maps_are_means():
    maps = torch.randn(3, 2, 2, 4)
    torch.testing.assert_close(vectors(maps), maps.mean(dim=(1, 2)))
    assert torch.equal(vectors(maps[:, 0, 0]), maps[:, 0, 0])
    a, b = vectors(maps)[:2]
    assert similarities(maps, maps)[0, 1].item() == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-6)


def test_the_structure_term_is_over_the_frozen_sides():
    s = LossSettings(structure=2.0, structure_levels=2, structure_temperature=0.3)
    images, captions, before = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 5)
    of_images, of_captions = (structure(before, x, 0.3, 2) for x in (images, captions))
    torch.testing.assert_close(structure_loss(s, [(before, images), (None, captions)]), 2 * of_images)
    both = structure_loss(s, [(before, images), (before, captions)])
    torch.testing.assert_close(both, 2 * (of_images + of_captions))
