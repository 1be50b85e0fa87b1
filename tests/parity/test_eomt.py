"""EoMT against transformers: the model under both namings, and what comes before and after it."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import yaml
from flax import nnx

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.segment_labels import segment_labels
from hourglass_jax.imaging.windows import SlidingWindow, whole_layout
from hourglass_jax.models.eomt import EoMT
from hourglass_jax.tasks.instances import Instances
from hourglass_jax.tasks.panoptic import Panoptic
from hourglass_jax.tasks.queries import QueryOutputs
from hourglass_jax.tasks.query_segmentation import QuerySegmentation
from tests.parity.vits import random_images, randomize

pytest.importorskip("transformers")

import transformers
from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil

from tests.parity.eomts import (
    BLOCKS,
    CLASSES,
    DEPTH,
    HEADS,
    QUERIES,
    as_outputs,
    build,
    expedited,
    official_names,
    outputs,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

ATOL = 1e-4


@nnx.jit
def run(model: EoMT, images: jax.Array) -> QueryOutputs:
    return model(images)


def converted(theirs: torch.nn.Module, folder: Path, **options: object) -> EoMT:
    theirs.save_pretrained(folder / "checkpoint")
    summary = convert(folder / "checkpoint", **options)
    assert summary.family == "eomt-transformers"
    return hj.load(summary.target)


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    return build()


@pytest.fixture(scope="module")
def ours(theirs: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> EoMT:
    return converted(theirs, tmp_path_factory.mktemp("eomt"))


def assert_close(found: QueryOutputs, expected: tuple[np.ndarray, np.ndarray]) -> None:
    for mine, their in zip(found, expected, strict=True):
        assert mine.shape == their.shape
        np.testing.assert_allclose(mine, their, rtol=0, atol=ATOL)


def test_the_outputs_of_square_images(ours: EoMT, theirs: torch.nn.Module) -> None:
    config, images = ours.config, random_images(64, 64)
    assert (config.queries, config.query_blocks, config.classes) == (QUERIES, BLOCKS, CLASSES)
    assert (config.backbone.heads, config.backbone.special_tokens, config.masked_blocks) == (HEADS, 5, ())
    found = run(ours, images)
    assert found.mask_logits.shape == (2, QUERIES, 16, 16)
    assert_close(found, outputs(theirs, images))


@pytest.mark.parametrize(
    ("grid", "masked", "gated"), [((2, 8), False, False), ((4, 4), True, False), ((2, 8), True, True)], ids=str
)
def test_the_outputs_of_other_grids_with_masked_attention_and_gated_mlps(
    grid: tuple[int, int], masked: bool, gated: bool, tmp_path: Path
) -> None:
    """No mask logit that decides what is read is near zero by chance."""
    theirs = build(grid, masked=masked, gated=gated)
    model = converted(theirs, tmp_path, grid=None if grid == (4, 4) else grid)
    assert model.config.masked_blocks == ((DEPTH - 2, DEPTH - 1) if masked else ())
    images = random_images(16 * grid[0], 16 * grid[1])
    assert_close(run(model, images), outputs(theirs, images))


@pytest.mark.parametrize("alpha", [1, 3])
def test_an_hourglass_that_begins_before_and_after_the_queries_join(
    alpha: int, ours: EoMT, theirs: torch.nn.Module
) -> None:
    plan = hj.Hourglass(alpha, (3, 3), window=3, temperature=30.0, neighbors=4)
    images = random_images(64, 64)
    found = run(hj.expedite(ours, plan), images)
    assert_close(found, expedited(theirs, images, plan))
    assert np.abs(found.mask_logits - run(ours, images).mask_logits).max() > 0.01


SETTINGS = {
    "model": {"class_path": "training.mask_classification_panoptic.MaskClassificationPanoptic"},
    "data": {
        "class_path": "datasets.somebodys.Somebodys",
        "init_args": {"stuff_classes": [1, 4]},
    },
}


def test_checkpoints_of_the_authors_training(ours: EoMT, theirs: torch.nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": official_names(theirs), "epoch": 12}, tmp_path / "eomt.ckpt")
    (tmp_path / "eomt.yaml").write_text(yaml.safe_dump(SETTINGS))
    with pytest.raises(ValueError, match="name its YAML with --config, or the data set with --dataset"):
        convert(tmp_path / "eomt.ckpt", heads=HEADS)
    summary = convert(tmp_path / "eomt.ckpt", heads=HEADS, settings=tmp_path / "eomt.yaml")
    assert summary.family == "eomt"
    model = hj.load(summary.target)
    assert (model.config.tasks[0], model.config.things) == ("panoptic", (0, 2, 3))
    images = random_images(64, 64)
    jax.tree.map(np.testing.assert_array_equal, run(model, images), run(ours, images))


def photograph(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)


SIZES = [(60, 100), (90, 45), (64, 64)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


@sizes
def test_images_become_squares_with_black(ours: EoMT, size: tuple[int, int]) -> None:
    processor = EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
    expected = processor(photograph(*size), return_tensors="np")["pixel_values"]
    found = ours._padded(ours.config.preprocessing(photograph(*size))[None])
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), rtol=0, atol=1e-5)


@sizes
def test_label_maps_see_windows(size: tuple[int, int]) -> None:
    processor = EomtImageProcessorPil(size={"shortest_edge": 32, "longest_edge": None}, do_split_image=True)
    expected = processor(photograph(*size), return_tensors="np")
    views, layout = SlidingWindow(32, None).cut(Preprocessing(32, 1, "shortest")(photograph(*size)))
    np.testing.assert_allclose(views, expected["pixel_values"].transpose(0, 2, 3, 1), rtol=0, atol=1e-5)
    starts = layout.tops if size[0] > size[1] else layout.lefts
    assert [start for _, start, _ in np.array(expected["patch_offsets"]).tolist()] == list(starts)


def random_logits(views: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class logits, some of them sure, and mask logits of blobs."""
    random = np.random.default_rng(seed)
    classes = random.normal(size=(views, 9, CLASSES + 1)).astype(np.float32)
    sure = random.integers(0, CLASSES + 1, (views, 9, 1))
    np.put_along_axis(classes, sure, 6, axis=2)
    coarse = torch.from_numpy(random.normal(size=(views, 9, 3, 3)).astype(np.float32))
    masks = 6 * torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return classes, masks.numpy()


LABELS = segment_labels(None, CLASSES, things=(0, 2))


@sizes
@pytest.mark.parametrize("seed", [0, 1])
def test_panoptic_maps_follow_the_processor(size: tuple[int, int], seed: int) -> None:
    classes, masks = random_logits(1, 16, seed)
    processor = EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
    [expected] = processor.post_process_panoptic_segmentation(
        as_outputs(classes, masks), [size], threshold=0.6, overlap_mask_area_threshold=0.3, stuff_classes=[1, 3, 4]
    )
    layout = whole_layout(Preprocessing(64, 1).target_size(*size))
    found = Panoptic(LABELS, None, 0.6, 0.3).postprocess(QueryOutputs(classes, masks), layout, size)
    np.testing.assert_array_equal(found.segments, expected["segmentation"].numpy() + 1)
    assert [each.label for each in found.table] == [each["label_id"] for each in expected["segments_info"]]
    np.testing.assert_allclose(
        [each.score for each in found.table], [each["score"] for each in expected["segments_info"]], atol=1e-5
    )
    assert len(found.table) > 1


@sizes
def test_instances_follow_the_processor(size: tuple[int, int]) -> None:
    """There each query has its best class alone; its score and its mask are those of ours."""
    classes, masks = random_logits(1, 16, 3)
    processor = EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
    [expected] = processor.post_process_instance_segmentation(as_outputs(classes, masks), [size], threshold=0.0)
    layout = whole_layout(Preprocessing(64, 1).target_size(*size))
    found = Instances(LABELS, None, 9 * CLASSES).postprocess(QueryOutputs(classes, masks), layout, size)
    mine = {(int(label), round(float(score), 4)) for label, score in zip(found.labels, found.scores, strict=True)}
    theirs = {(each["label_id"], round(each["score"], 4)) for each in expected["segments_info"]}
    assert theirs <= mine
    assert len(theirs) > 4


@sizes
def test_label_maps_follow_the_processor(size: tuple[int, int]) -> None:
    processor = EomtImageProcessorPil(size={"shortest_edge": 32, "longest_edge": None}, do_split_image=True)
    prepared = processor(photograph(*size), return_tensors="np")
    views, layout = SlidingWindow(32, None).cut(Preprocessing(32, 1, "shortest")(photograph(*size)))
    classes, masks = random_logits(len(views), 8, 4)
    given = as_outputs(classes, masks, [*prepared["patch_offsets"]])
    [expected] = processor.post_process_semantic_segmentation(given, [size])
    found = QuerySegmentation(LABELS).postprocess(QueryOutputs(classes, masks), layout, size)
    assert (found == expected.numpy()).mean() > 0.999
    assert len(np.unique(found)) > 2


@pytest.mark.slow
def test_the_outputs_of_a_published_size(tmp_path: Path) -> None:
    """EoMT-S for COCO's panoptic maps at 640 x 640."""
    shape = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "num_blocks": 3}
    config = transformers.EomtConfig(**shape, image_size=640, num_queries=200, num_labels=133)
    theirs = randomize(transformers.EomtForUniversalSegmentation(config))
    theirs.attn_mask_probs.zero_()
    model = converted(theirs, tmp_path, dataset="coco_panoptic")
    assert model.config.tasks[0] == "panoptic"
    images = random_images(640, 640, batch=1)
    found, expected = run(model, images), outputs(theirs, images)
    for mine, their in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, their, rtol=0, atol=ATOL * np.abs(their).max())
