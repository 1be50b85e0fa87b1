"""Panoptic quality against torchmetrics."""

import numpy as np
import pytest
import torch

from hourglass_jax.metrics.panoptic import PanopticMap, PanopticMetric, Segment

torchmetrics = pytest.importorskip("torchmetrics.detection")

CLASSES, THINGS = 6, (0, 1, 2)


def random_map(random: np.random.Generator, base: np.ndarray, share: float) -> PanopticMap:
    """Twelve numbers at most, two for each class of things, and a part that belongs to none."""
    segments = np.where(random.random(base.shape) < share, random.integers(1, 10, base.shape), base)
    labels = [0, 0, 1, 1, 2, 2, 3, 4, 5]
    present = set(np.unique(segments).tolist()) - {0}
    table = tuple(
        Segment(number, labels[number - 1], labels[number - 1] in THINGS, 1.0, int((segments == number).sum()))
        for number in sorted(present)
    )
    return PanopticMap(segments.astype(np.int32), table)


def pairs(panoptic: PanopticMap) -> torch.Tensor:
    """Class and number of every pixel; class 99 is none."""
    labels = np.full(int(panoptic.segments.max()) + 1, 99)
    for each in panoptic.table:
        labels[each.id] = each.label
    found = labels[panoptic.segments]
    numbers = np.where(np.isin(found, THINGS), panoptic.segments, 0)
    return torch.from_numpy(np.stack([found, numbers], axis=-1))[None]


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_figures_of_several_images(share: float) -> None:
    random = np.random.default_rng(0)
    metric = PanopticMetric(CLASSES, THINGS)
    theirs = torchmetrics.PanopticQuality(
        things=set(THINGS),
        stuffs=set(range(CLASSES)) - set(THINGS),
        allow_unknown_preds_category=True,
        return_sq_and_rq=True,
    )
    counts = metric.zeros()
    for _ in range(4):
        base = np.kron(random.integers(0, 10, (5, 6)), np.ones((6, 6), int))
        # Where a prediction says nothing, torchmetrics counts less than COCO's own code: so it says something.
        truth, found = random_map(random, base, 0.0), random_map(random, np.where(base == 0, 9, base), share)
        counts += metric.count(found, truth)
        theirs.update(pairs(found), pairs(truth))
    scores = metric.scores(counts)
    np.testing.assert_allclose([scores.pq, scores.sq, scores.rq], theirs.compute().numpy(), rtol=1e-5)
    assert 0 < scores.pq < 1
