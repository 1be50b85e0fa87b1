"""Automatic masks: equal to the rules written out plainly, and the parts that these have."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import hourglass_jax as hj
from hourglass_jax.automatic_predictor import AutomaticPredictor
from hourglass_jax.metrics.run_lengths import decode_runs, encode_mask, run_lengths
from hourglass_jax.models.sam_prompts import PromptArrays, check_prompts
from hourglass_jax.prompt_predictor import Encoded, PromptPredictor
from hourglass_jax.tasks.automatic_masks import (
    AutomaticMask,
    AutomaticSettings,
    connected_regions,
    crop_boxes,
    grid_points,
    is_cut,
    keep_best,
    remove_small,
    render,
)
from tests.models.tiny import build_sam
from tests.reference import automatic_masks as reference

pytestmark = pytest.mark.usefixtures("quick_compilation")

VIEW = 32


class Discs:
    """Stands for a predictor: answers every point with three discs of noisy edges, holes and islands around it."""

    model = SimpleNamespace(mask_size=lambda view: view)

    def encode(self, part: np.ndarray) -> Encoded:
        return Encoded(jnp.zeros((1, 1, 1, 1)), (part.shape[:2],), (VIEW, VIEW))

    def answers(self, encoded: Encoded, asked: PromptArrays) -> tuple[np.ndarray, np.ndarray]:
        places = asked.points[:, 0] * VIEW / max(encoded.sizes[0])
        y, x = np.mgrid[:VIEW, :VIEW] + 0.5
        logits, qualities = (
            np.zeros((len(places), 4, VIEW, VIEW), np.float32),
            np.zeros((len(places), 4), np.float32),
        )
        for number, place in enumerate(places):
            random = np.random.default_rng((place * 64).astype(int).tolist())
            distance = np.hypot(x - place[0], y - place[1])
            for answer, radius in enumerate((1, 3, 5, 8)):
                noise = random.normal(0, 0.9, distance.shape)
                logits[number, answer] = np.where(distance < radius + 1, radius - distance + noise, -3)
            qualities[number] = random.uniform(0.6, 1.0, 4)
        return logits, qualities


@pytest.fixture(scope="module")
def predictor() -> PromptPredictor:
    model = build_sam()
    last = model.mask_decoder.quality.layers[-1]
    last.bias[...] += 2.5
    return PromptPredictor(model)


def photo(rows: int = 60, columns: int = 84) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (rows // 12, columns // 12, 3), np.uint8)
    return coarse.repeat(12, axis=0).repeat(12, axis=1)


LOOSE = {"points": 4, "batch_size": 6, "quality": 0.7, "stability": 0.4, "offset": 0.5}
SETTINGS = {
    "points alone": AutomaticSettings(**LOOSE),
    "strict": AutomaticSettings(**{**LOOSE, "quality": 0.8, "stability": 0.6}, box_overlap=0.3),
    "crops": AutomaticSettings(**LOOSE, crop_layers=1, crop_downscale=2, crop_box_overlap=0.4),
    "small regions": AutomaticSettings(**LOOSE, least_region=150),
    "crops, small regions": AutomaticSettings(**LOOSE, crop_layers=1, least_region=60),
}


def check_rules(predictor: PromptPredictor, settings: AutomaticSettings, image: np.ndarray) -> list[AutomaticMask]:
    """The masks that were found, which must be those of the reference."""
    automatic, steps = AutomaticPredictor(predictor, settings), []
    found = automatic(image, on_progress=lambda: steps.append(1))
    assert len(steps) == automatic.steps(image.shape[:2])

    def answer(part: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked = check_prompts(points[:, None], None, None, None, predictor.model.mask_size((VIEW, VIEW)))
        logits, qualities = predictor.answers(predictor.encode(part), asked)
        return logits[:, 1:], qualities[:, 1:]

    expected = reference.automatic_masks(image, answer, VIEW, settings)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.mean(ours.mask() != theirs["mask"]) < 1e-4
        assert ours.box == theirs["box"]
        np.testing.assert_allclose(ours.quality, theirs["quality"], atol=1e-4)
        np.testing.assert_allclose(ours.stability, theirs["stability"], atol=1e-3)
        np.testing.assert_allclose(ours.point, theirs["point"])
        assert (ours.crop, ours.area) == (theirs["crop"], ours.mask().sum())
    return found


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_masks_are_those_of_the_rules(settings: AutomaticSettings) -> None:
    found = check_rules(Discs(), settings, photo(144, 204))
    assert len(found) > 5
    assert len({each.crop for each in found}) > 1 or not settings.crop_layers


def test_the_masks_of_a_model_are_those_of_the_rules(predictor: PromptPredictor) -> None:
    assert check_rules(predictor, AutomaticSettings(4, 6, 0.2, 0.4, 0.05, box_overlap=0.999), photo())


def test_they_are_written_as_coco_has_them(predictor: PromptPredictor) -> None:
    image = photo()
    found = hj.AutomaticPredictor(predictor, AutomaticSettings(4, 16, 0.2, 0.4, 0.05))(image)
    rendering = render(image, found)
    annotations = rendering.documents["everything"]("12")
    json.dumps([annotations, rendering.records])
    first, mask = annotations[0], found[0].mask()
    assert first["segmentation"] == encode_mask(mask)
    y, x = np.nonzero(mask)
    assert first["bbox"] == [x.min(), y.min(), np.ptp(x), np.ptp(y)]
    assert (first["area"], first["image_id"], first["crop_box"]) == (mask.sum(), 12, [0, 0, 84, 60])
    assert rendering.overview.dtype == np.uint8
    assert render(image, []).overview.shape[0] >= 60


def test_points_are_the_middles_of_cells_x_fastest() -> None:
    np.testing.assert_allclose(grid_points(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])


def test_crops_overlap_and_end_with_the_photograph() -> None:
    boxes = crop_boxes((1000, 1500), 2, 512 / 1500)
    assert [layer for _, layer in boxes] == [0] + [1] * 4 + [2] * 16
    assert boxes[0][0] == (0, 0, 1500, 1000)
    assert boxes[1][0] == (0, 0, 921, 671)
    assert boxes[2][0] == (0, 330, 921, 1000)
    assert max(right for (_, _, right, _), _ in boxes) == 1500


def test_boxes_at_the_edge_of_a_crop_are_cut_unless_it_is_that_of_the_photograph() -> None:
    assert is_cut((100, 100, 285, 200), (50, 50, 300, 300), (600, 600))
    assert not is_cut((100, 100, 250, 200), (50, 50, 300, 300), (600, 600))
    assert not is_cut((5, 100, 250, 200), (0, 50, 300, 300), (600, 600))


@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_suppressed_greedily(seed: int) -> None:
    random = np.random.default_rng(seed)
    corner, side = random.integers(0, 30, (40, 2)), random.integers(0, 20, (40, 2))
    boxes = np.concatenate([corner, corner + side], axis=1)
    scores = random.integers(0, 5, 40) / 4
    assert keep_best(boxes, scores, 0.3).tolist() == reference.suppress(boxes.tolist(), scores.tolist(), 0.3)
    assert keep_best(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (13, 17)])
def test_regions_touch_at_corners_too(shape: tuple[int, int]) -> None:
    for seed in range(8):
        mask = np.random.default_rng(seed).random(shape) < 0.2 + 0.08 * seed
        labels, sizes = connected_regions(mask)
        expected, count = ndimage.label(mask, structure=np.ones((3, 3)))
        np.testing.assert_array_equal(labels, expected)
        assert sizes.tolist() == [(expected == number).sum() for number in range(1, count + 1)]
        for holes in (True, False):
            ours, theirs = remove_small(mask, 4, holes=holes), reference.small(mask, 4, holes)
            np.testing.assert_array_equal(ours[0], theirs[0])
            assert ours[1] == theirs[1]


def test_runs_are_masks() -> None:
    for seed in range(4):
        mask = np.random.default_rng(seed).random((5, 7)) < seed / 3
        np.testing.assert_array_equal(decode_runs(run_lengths(mask), mask.shape), mask)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"points": 0}, r"points must be an integer in 1\.\.1024, got 0"),
        ({"crop_overlap": 1.0}, "crop_overlap must be less than 1, got 1.0"),
        ({"quality": float("nan")}, "quality must be a number of at least 0, got nan"),
        ({"least_region": -1}, "least_region must be an integer at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutomaticSettings(**fields).check()
