"""Every loss against plain loops, in value and gradient."""

import itertools
import math

import pytest
import torch

from losses import cwcl, hal, hinge, infonce, siglip, smooth_hinge, structure

NEGATIVES = ("sum", "hardest", "semihard")


def gradient(leaf):
    assert leaf.grad is not None
    return leaf.grad


def plain_hinge(scores, images, margin, negatives, reduction):
    """The definition, pair by pair."""
    n, total = len(scores), torch.zeros((), dtype=scores.dtype)
    for i in range(n):
        positive = scores[i, i]
        others = [j for j in range(n) if images[j] != images[i]]
        for row in ([scores[i, j] for j in others], [scores[j, i] for j in others]):  # captions, then images
            if negatives == "semihard":
                row = [score for score in row if score < positive]
            costs = [torch.clamp(margin + score - positive, min=0) for score in row]
            if costs:
                total = total + (sum(costs) if negatives == "sum" else max(costs))
    return total / n if reduction == "mean" else total


@pytest.mark.parametrize(("negatives", "reduction"), list(itertools.product(NEGATIVES, ("sum", "mean"))))
@pytest.mark.parametrize("images", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 3], [7, 7, 7, 7, 7, 1]])
def test_value_and_gradient_equal_plain_loops(negatives, reduction, images):
    images = torch.tensor(images)
    for seed in range(5):
        scores = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 3
        mine, plain = scores.clone().requires_grad_(), scores.clone().requires_grad_()
        loss = hinge(mine, images, 0.2, negatives, reduction)
        reference = plain_hinge(plain, images, 0.2, negatives, reduction)
        torch.testing.assert_close(loss, reference)
        loss.backward()
        reference.backward()
        torch.testing.assert_close(gradient(mine), gradient(plain))


def test_by_hand():
    scores = torch.tensor([[0.9, 0.8], [0.1, 0.5]])
    images = torch.tensor([0, 1])
    # image 0: 0.2 + 0.8 - 0.9 = 0.1; image 1: none; caption 0: none; caption 1: 0.2 + 0.8 - 0.5 = 0.5
    assert hinge(scores, images, 0.2).item() == pytest.approx(0.6)
    # semihard: 0.8 lies above caption 1's positive, so what is left for it is nothing
    assert hinge(scores, images, 0.2, "semihard").item() == pytest.approx(0.1)
    assert hinge(scores, images, 0.2, reduction="mean").item() == pytest.approx(0.3)
    # one that scores as the positive does is not below it
    assert hinge(torch.zeros(2, 2), images, 0.2).item() == pytest.approx(0.8)
    assert hinge(torch.zeros(2, 2), images, 0.2, "semihard").item() == 0
    # smooth: a sharpness of 20, and log(1 + e^4) / 20 for each query
    smooth = smooth_hinge(torch.zeros(2, 2), images, 0.2)
    assert smooth.item() == pytest.approx(4 * math.log1p(math.exp(4)) / 20)
    assert smooth_hinge(torch.zeros(2, 2), images, 0.2, reduction="mean").item() == pytest.approx(smooth.item() / 2)


def test_random_takes_one_valid_negative_uniformly():
    images = torch.tensor([0, 0, 1, 2])
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4, 4)
    draws = 3000
    for _ in range(draws):
        leaf = scores.clone().requires_grad_()
        hinge(leaf, images, 10.0, "random", generator=generator).backward()  # so wide that every negative violates
        counts += (gradient(leaf) * (1 - torch.eye(4))).round()
    assert counts[0, 1] == 0, "captions of one image are never each other's negatives"
    assert counts[1, 0] == 0
    # caption queries draw along columns, image queries along rows: 1/valid each way
    valid = torch.tensor([2.0, 2.0, 3.0, 3.0])
    expected = draws * (1 / valid[:, None] + 1 / valid[None, :]) * (images[:, None] != images[None, :])
    assert (counts - expected).abs().max() < 0.06 * draws


def test_captions_of_one_image_get_no_gradient_as_negatives():
    images = torch.tensor([4, 4, 9])
    for negatives in (*NEGATIVES, "random"):
        scores = torch.zeros(3, 3, requires_grad=True)
        hinge(scores - torch.eye(3), images, 5.0, negatives).backward()
        assert gradient(scores)[0, 1] == 0
        assert gradient(scores)[1, 0] == 0


@pytest.mark.parametrize("negatives", [*NEGATIVES, "random"])
def test_a_batch_of_one_image_costs_nothing(negatives):
    scores = torch.randn(3, 3, requires_grad=True)
    loss = hinge(scores, torch.tensor([5, 5, 5]), 0.2, negatives)
    loss.backward()
    assert loss.item() == 0
    assert gradient(scores).abs().max() == 0


def test_finite_at_zero_violation_identical_embeddings_and_in_bfloat16():
    images = torch.arange(4)
    for negatives in (*NEGATIVES, "random"):
        for scores in (torch.eye(4), torch.ones(4, 4), torch.eye(4, dtype=torch.bfloat16)):
            leaf = scores.clone().requires_grad_()
            loss = hinge(leaf, images, 0.2, negatives)
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient(leaf)).all()
    assert hinge(torch.eye(4), images, 0.2) == 0


def plain_log_sums(scores, images, sharpness, threshold):
    """For each pair i log(1 + Σ exp(sharpness x (score - threshold(i)))) / sharpness of its negatives, both ways."""
    sums = []
    for i in range(len(scores)):
        others = [j for j in range(len(scores)) if images[j] != images[i]]
        total = torch.zeros((), dtype=scores.dtype)
        for row in ([scores[i, j] for j in others], [scores[j, i] for j in others]):
            inside = torch.ones((), dtype=scores.dtype)
            for score in row:
                inside = inside + torch.exp(sharpness * (score - threshold(i)))
            total = total + torch.log(inside) / sharpness
        sums.append(total)
    return sums


def plain_smooth(scores, images, margin, sharpness):
    return sum(plain_log_sums(scores, images, sharpness, lambda i: scores[i, i] - margin))


def plain_infonce(scores, images, scale):
    n, total = len(scores), torch.zeros((), dtype=scores.dtype)
    for i in range(n):
        others = [j for j in range(n) if images[j] != images[i]]
        for row in ([scores[i, j] for j in others], [scores[j, i] for j in others]):
            wrong = sum(torch.exp(scale * score) for score in row)
            right = torch.exp(scale * scores[i, i])
            total = total - torch.log(right / (right + wrong))
    return total / (2 * n)


def plain_siglip(scores, images, scale, bias):
    n, total = len(scores), torch.zeros((), dtype=scores.dtype)
    for i in range(n):
        for j in range(n):
            if i == j or images[i] != images[j]:
                sign = 1 if i == j else -1
                total = total + torch.log(1 + torch.exp(-sign * (scale * scores[i, j] + bias)))
    return total / n


def plain_hal(scores, images, margin, sharpness):
    sums = plain_log_sums(scores, images, sharpness, lambda i: margin)
    rewards = [torch.log(1 + torch.clamp(scores[i, i], min=0)) for i in range(len(scores))]
    return (sum(sums) - sum(rewards)) / len(scores)


def plain_all_positives(scores, images, scale):
    """infonce where each caption of the image is as right as the others: the mean of their log shares."""
    n, total = len(scores), torch.zeros((), dtype=scores.dtype)
    for logits in (scale * scores, scale * scores.T):
        for i in range(n):
            everything = sum(torch.exp(logits[i, j]) for j in range(n))
            right = [j for j in range(n) if images[j] == images[i]]
            for j in right:
                total = total - torch.log(torch.exp(logits[i, j]) / everything) / len(right)
    return total / (2 * n)


def plain_sail(scores, images, scale, bias):
    n, total = len(scores), torch.zeros((), dtype=scores.dtype)
    for i in range(n):
        for j in range(n):
            sign = 1 if images[i] == images[j] else -1
            total = total + torch.log(1 + torch.exp(-sign * (scale * scores[i, j] + bias)))
    return total / n**2


SCALE, BIAS = 7.0, -2.5
OTHERS = {
    "smooth": (lambda s, i: smooth_hinge(s, i, 0.2, 9.0), lambda s, i: plain_smooth(s, i, 0.2, 9.0)),
    "infonce": (lambda s, i: infonce(s, i, SCALE), lambda s, i: plain_infonce(s, i, SCALE)),
    "siglip": (lambda s, i: siglip(s, i, SCALE, BIAS), lambda s, i: plain_siglip(s, i, SCALE, BIAS)),
    "hal": (lambda s, i: hal(s, i, 0.1, 9.0), lambda s, i: plain_hal(s, i, 0.1, 9.0)),
}
SEVERAL = {
    "infonce": (lambda s, i: infonce(s, i, SCALE, "image"), lambda s, i: plain_all_positives(s, i, SCALE)),
    "siglip": (
        lambda s, i: siglip(s, i, SCALE, BIAS, "image", "pairs"),
        lambda s, i: plain_sail(s, i, SCALE, BIAS),
    ),
}


@pytest.mark.parametrize("name", list(OTHERS))
@pytest.mark.parametrize("images", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 3], [7, 7, 7, 7, 7, 1]])
def test_smooth_and_contrastive_losses_equal_plain_loops(name, images):
    ours, loops = OTHERS[name]
    images = torch.tensor(images)
    for seed in range(5):
        scores = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 3
        mine, plain = scores.clone().requires_grad_(), scores.clone().requires_grad_()
        loss, reference = ours(mine, images), loops(plain, images)
        torch.testing.assert_close(loss, reference)
        loss.backward()
        reference.backward()
        torch.testing.assert_close(gradient(mine), gradient(plain))
        same = (images[:, None] == images[None, :]) & ~torch.eye(6, dtype=torch.bool)
        assert gradient(mine)[same].abs().sum() == 0, "captions of one image are never each other's negatives"


@pytest.mark.parametrize("name", list(SEVERAL))
@pytest.mark.parametrize("images", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 3], [7, 7, 7, 7, 7, 1]])
def test_several_positives_equal_plain_loops(name, images):
    ours, loops = SEVERAL[name]
    scores = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
    scores.requires_grad_()
    images = torch.tensor(images)
    torch.testing.assert_close(ours(scores, images), loops(scores, images))
    assert torch.autograd.gradcheck(lambda s: ours(s, images), scores)
    if len(images.unique()) == 6:  # nothing to share: the loss of pairs
        pairs = OTHERS[name][0](scores, images)
        torch.testing.assert_close(ours(scores, images), pairs / (6 if name == "siglip" else 1))


def plain_cwcl(scores, images, similarities, scale, sharpness):
    n, total = len(scores), torch.zeros((), dtype=scores.dtype)
    for i in range(n):
        everything = sum(torch.exp(scale * scores[i, j]) for j in range(n))
        weights = [((1 + similarities[i, j]) / 2) ** sharpness for j in range(n)]
        for j in range(n):
            share = torch.exp(scale * scores[i, j]) / everything
            total = total - weights[j] / sum(weights) * torch.log(share)
        wrong = sum(torch.exp(scale * scores[j, i]) for j in range(n) if images[j] != images[i])
        right = torch.exp(scale * scores[i, i])
        total = total - torch.log(right / (right + wrong))
    return total / (2 * n)


@pytest.mark.parametrize("sharpness", [1.0, 20.0])
@pytest.mark.parametrize("images", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 3]])
def test_soft_targets_equal_plain_loops(sharpness, images):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    unit = torch.nn.functional.normalize(torch.randn(6, 3, dtype=torch.float64, generator=generator))[images]
    similarities, images = unit @ unit.T, torch.tensor(images)
    ours = cwcl(scores, images, similarities, SCALE, sharpness)
    torch.testing.assert_close(ours, plain_cwcl(scores, images, similarities, SCALE, sharpness))
    assert torch.autograd.gradcheck(lambda s: cwcl(s, images, similarities, SCALE, sharpness), scores)


def test_very_sharp_soft_targets_are_those_of_infonce():
    scores, images = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    similarities = torch.full((4, 4), 0.2).fill_diagonal_(1.0)
    torch.testing.assert_close(cwcl(scores, images, similarities, SCALE, 500.0), infonce(scores, images, SCALE))


def plain_structure(before, after, temperature, levels):
    n, steps = len(before), []
    for x in (before, after):
        rows = [row / row.norm() for row in x]
        mean = sum(rows) / n
        rows = [row - mean for row in rows]
        steps.append(torch.stack([torch.softmax(torch.stack([a @ b / temperature for b in rows]), 0) for a in rows]))
    total = torch.zeros((), dtype=before.dtype)
    for level in range(1, levels + 1):
        p, q = (torch.linalg.matrix_power(step, level) for step in steps)
        for i in range(n):
            for j in range(n):
                m = (p[i, j] + q[i, j]) / 2
                halves = p[i, j] * torch.log(p[i, j] / m) + q[i, j] * torch.log(q[i, j] / m)
                total = total + halves / (2 * n * level)
    return total / levels


@pytest.mark.parametrize("levels", [1, 3])
def test_the_structure_term_equals_plain_loops(levels):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    after = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    torch.testing.assert_close(structure(before, after, 0.3, levels), plain_structure(before, after, 0.3, levels))
    assert torch.autograd.gradcheck(lambda x: structure(before, x, 0.3, levels), after)
    assert structure(before, 7 * before, 0.3, levels) == pytest.approx(0, abs=1e-12), "lengths do not count"


def test_the_structure_term_is_finite_where_shares_vanish():
    before, after = torch.eye(4), torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    total = structure(before, after, 1e-3, 3)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(gradient(after)).all()


def test_learned_temperature_and_bias_get_a_gradient():
    images = torch.arange(4)
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    scale, bias = torch.tensor(5.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    (infonce(scores, images, scale) + siglip(scores, images, scale, bias)).backward()
    assert gradient(scale) != 0
    assert gradient(bias) != 0


def test_the_smooth_hinge_tends_to_the_hardest():
    images = torch.arange(5)
    scores = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hardest = hinge(scores, images, 0.2, "hardest")
    assert smooth_hinge(scores, images, 0.2, 1e4) == pytest.approx(hardest.item(), abs=1e-3)
    assert smooth_hinge(scores, images, 0.2, 10.0) > hardest


@pytest.mark.parametrize("name", list(OTHERS))
def test_other_losses_are_finite_everywhere(name):
    ours, _ = OTHERS[name]
    for images in (torch.arange(4), torch.zeros(4, dtype=torch.int64)):
        for scores in (torch.eye(4), torch.ones(4, 4), 100 * torch.eye(4), torch.eye(4, dtype=torch.bfloat16)):
            leaf = scores.clone().requires_grad_()
            loss = ours(leaf, images)
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient(leaf)).all()


def test_infonce_of_equal_scores_is_the_logarithm_of_the_choices():
    images = torch.tensor([0, 0, 1])
    assert infonce(torch.zeros(3, 3), images, 10.0) == pytest.approx((2 * math.log(2) + math.log(3)) / 3)
