"""SAM as a model and as its predictor: what parity with transformers does not show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.imaging.padded_square import PaddedSquare
from hourglass_jax.models.registry import abstract_model
from hourglass_jax.models.sam import Sam, sam_backbone
from hourglass_jax.models.sam_prompts import MOST_POINTS
from hourglass_jax.prompt_predictor import Encoded, PromptPredictor, answer, encode
from hourglass_jax.tasks.prompted_masks import Masks, PromptedMasks, overlap
from tests.models.tiny import build, build_sam

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAN = hj.Hourglass(1, (2, 2))
SIZE = (50, 64)


def photo(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)


@pytest.fixture(scope="module")
def sam() -> Sam:
    return build_sam()


@pytest.fixture(scope="module")
def predictor(sam: Sam) -> PromptPredictor:
    return PromptPredictor(sam)


@pytest.fixture(scope="module")
def encoded(predictor: PromptPredictor) -> Encoded:
    return predictor.encode(photo(*SIZE))


def test_a_saved_model_is_the_same(sam: Sam, tmp_path) -> None:
    loaded = hj.load(hj.save(sam, tmp_path / "sam.safetensors"))
    assert (type(loaded), loaded.config) == (Sam, sam.config)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 32, 3)), jnp.float32)
    np.testing.assert_array_equal(encode(loaded, images), encode(sam, images))


def test_a_call_is_the_answer_to_a_click_on_the_middle(sam: Sam, predictor: PromptPredictor) -> None:
    image = photo(32, 32)
    found = jax.jit(lambda model, images: model(images))(sam, sam.config.preprocessing(image)[None])
    asked = predictor.masks(predictor.encode(image), points=[(16, 16)])
    np.testing.assert_allclose(found.logits[0, 0, 1:], asked.logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.qualities[0, 0, 1:], asked.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("plan", [None, PLAN], ids=str)
def test_an_image_is_encoded_once_for_many_prompts(sam: Sam, plan: hj.Plan | None) -> None:
    predictor = PromptPredictor(hj.expedite(sam, plan))
    photos = [photo(50, 64), photo(64, 40, seed=1)]
    both = predictor.encode(photos)
    before = np.array(both.features)
    first = predictor.masks(both[1], points=[[(5, 5)], [(30, 50)]])
    second = predictor.masks(both[1], points=[[(30, 50)], [(5, 5)]])
    np.testing.assert_array_equal(before, both.features)
    assert first.masks.shape == (2, 3, 64, 40)
    np.testing.assert_allclose(first.logits, second.logits[::-1], rtol=0, atol=1e-4)
    alone = predictor.masks(predictor.encode(photos[1]), points=[(5, 5)])
    np.testing.assert_allclose(alone.logits, first.logits[0], rtol=0, atol=1e-4)
    assert [len(each) for each in both] == [1, 1]


def test_a_plan_changes_the_encoding_and_shares_the_arrays(sam: Sam) -> None:
    fast, images = hj.expedite(sam, PLAN), jnp.asarray(sam.config.preprocessing(photo(32, 32)))[None]
    assert np.abs(encode(fast, images) - encode(sam, images)).max() > 1e-3
    assert all(
        a is b
        for a, b in zip(
            jax.tree.leaves(nnx.state(sam, nnx.Param)), jax.tree.leaves(nnx.state(fast, nnx.Param)), strict=True
        )
    )
    with pytest.raises(ValueError, match=r"a backbone with windows takes an Hourglass, .* got TokenMerging"):
        hj.expedite(sam, hj.TokenMerging(keep=0.5))
    with pytest.raises(ValueError, match=r"clusters must be k x k .* got 4 x 4 for windows of 3 x 3"):
        hj.expedite(sam, hj.Hourglass(1, (4, 4)))


def test_bfloat16_follows_float32(encoded: Encoded) -> None:
    half = PromptPredictor(build_sam(dtype=jnp.bfloat16))
    full = PromptPredictor(build_sam())
    found, wanted = (each.masks(each.encode(photo(*SIZE)), points=[(9, 9)]) for each in (half, full))
    assert found.logits.dtype == np.float32
    assert np.abs(found.logits - wanted.logits).mean() < 0.1 * np.abs(wanted.logits).mean() + 0.02


def test_every_form_of_a_prompt(predictor: PromptPredictor, encoded: Encoded) -> None:
    three = predictor.masks(encoded, points=[(20, 30)], labels=[1])
    assert isinstance(three, Masks)
    assert (three.masks.shape, three.masks.dtype) == ((3, *SIZE), bool)
    assert (three.scores.shape, three.logits.shape) == ((3,), (3, 16, 16))
    best = predictor.masks(encoded, points=[(20, 30)], multimask="best")
    np.testing.assert_array_equal(best.masks[0], three.masks[np.argmax(three.scores)])
    one = predictor.masks(encoded, boxes=(5, 5, 40, 40), multimask=False)
    assert one.masks.shape == (1, *SIZE)
    further = predictor.masks(encoded, points=[(20, 30)], mask=one.logits[0], multimask=False)
    assert not np.allclose(further.logits, one.logits, atol=1e-3)
    only_mask = predictor.masks(encoded, mask=one.logits[0], multimask=False)
    assert only_mask.masks.shape == (1, *SIZE)


def test_more_prompts_than_are_answered_at_once(sam: Sam, encoded: Encoded) -> None:
    points = np.random.default_rng(0).uniform(0, 50, (5, 1, 2))
    together = PromptPredictor(sam).masks(encoded, points=points)
    in_parts = PromptPredictor(sam, batch_size=2).masks(encoded, points=points)
    np.testing.assert_allclose(together.logits, in_parts.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "a prompt must have points, a box or a mask, got none of them"),
        ({"points": [(np.nan, 3)]}, "points must be finite numbers of at most 1e.06 pixels, got nan"),
        ({"points": [(1, -1e9)]}, "points must be finite numbers of at most 1e.06 pixels, got -1000000000.0"),
        ({"points": [1, 2]}, r"points must be numbers \[points, 2\] or .* got shape \[2\]"),
        ({"points": "here"}, r"points must be numbers \[points, 2\] or"),
        ({"points": np.zeros((MOST_POINTS + 1, 2))}, "a prompt must have at most 16384 points, got 16385"),
        (
            {"points": [(1, 2)], "labels": [7]},
            r"labels must be 1, 0 or -1 for each of the .* got \[\[7\]\]",
        ),
        ({"points": [(1, 2)], "labels": [1, 0]}, "labels must be 1, 0 or -1 for each of the points"),
        ({"labels": [1]}, "labels are those of points, of which there are none"),
        ({"boxes": (1, 2, 3)}, r"boxes must be numbers \[4\] or \[prompts, 4\], got shape \[3\]"),
        ({"boxes": (1, 2, np.inf, 4)}, "boxes must be finite numbers of at most .* got inf"),
        ({"boxes": np.zeros((0, 4))}, "prompts must be at least one, got none"),
        ({"mask": np.zeros((8, 8))}, r"mask must hold logits of 16 x 16, got \[8, 8\]"),
        ({"mask": np.full((16, 16), np.nan)}, "mask must be finite numbers, got nan"),
        ({"points": [[(1, 2)]] * 2, "boxes": [(1, 2, 3, 4)] * 3}, "got 2 of points, 3 of boxes"),
        ({"points": [(1, 2)], "multimask": "all"}, "multimask must be True, False or 'best', got 'all'"),
    ],
)
def test_bad_prompts_have_one_sentence(
    predictor: PromptPredictor, encoded: Encoded, prompt: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        predictor.masks(encoded, **prompt)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "prompt",
    [
        {"points": [(-500, 9000)]},
        {"boxes": (30, 30, 30, 30)},
        {"boxes": (40, 40, 3, 3)},
        {"points": np.zeros((0, 2))},
    ],
    ids=["outside", "empty box", "box turned round", "no points"],
)
def test_odd_prompts_are_answered_as_officially(
    predictor: PromptPredictor, encoded: Encoded, prompt: dict[str, object]
) -> None:
    found = predictor.masks(encoded, **prompt)
    assert np.isfinite(found.logits).all()


@pytest.mark.slow
def test_ten_thousand_points(predictor: PromptPredictor, encoded: Encoded) -> None:
    found = predictor.masks(encoded, points=np.random.default_rng(0).uniform(0, 50, (10_000, 2)))
    assert np.isfinite(found.logits).all()


def test_predictors_name_one_another(sam: Sam, encoded: Encoded, predictor: PromptPredictor) -> None:
    with pytest.raises(ValueError, match="a Sam answers prompts: give it to a PromptPredictor"):
        hj.Predictor(sam)
    with pytest.raises(ValueError, match="a Segmenter answers no prompts: give it to a Predictor"):
        hj.PromptPredictor(build("segmenter"))
    with pytest.raises(ValueError, match=r"prompts are about one photograph, got 2: take one with encoded\[i\]"):
        predictor.masks(predictor.encode([photo(9, 9), photo(9, 9)]), points=[(1, 1)])
    with pytest.raises(IndexError):
        _ = encoded[1]


def test_photographs_of_any_shape_are_filled_up_to_a_square() -> None:
    prepare = PaddedSquare(1024)
    assert prepare.target_size(1200, 1800) == (683, 1024)
    assert prepare.target_size(1, 5000) == (1, 1024)
    prepared = PaddedSquare(32)(photo(20, 64))
    assert prepared.shape == (32, 32, 3)
    assert not prepared[10:].any()
    assert prepared[:10].any(axis=2).all()
    assert PaddedSquare(32).at(64).size == 64
    with pytest.raises(ValueError, match="size must be the side of a square, in pixels, got 3 x 4"):
        prepare.at((3, 4))
    with pytest.raises(ValueError, match="size must be a multiple of the patch size, 16, got 40"):
        PaddedSquare(40).whole_patches(16)


@pytest.mark.parametrize(("name", "depth", "global_blocks"), [("base", 12, 4), ("large", 24, 4), ("huge", 32, 4)])
def test_the_published_sizes(name: str, depth: int, global_blocks: int) -> None:
    backbone = sam_backbone(name)
    assert (backbone.depth, len(backbone.windows.global_blocks)) == (depth, global_blocks)
    assert backbone.width // backbone.heads == (80 if name == "huge" else 64)


def test_presets_make_a_map_of_the_clusters_of_all_windows() -> None:
    huge = abstract_model("sam", {"backbone": dataclasses.asdict(sam_backbone("huge"))})
    names = [name for name in hj.PRESETS if name.startswith("sam-vit-h")]
    assert len(names) == 7
    for name in names:
        plan = hj.preset(name).plan
        fast = hj.expedite(huge, plan)
        assert fast.backbone.token_counts(1024, 1024) == (64**2, (5 * plan.clusters[0]) ** 2)


def test_flops_by_part(sam: Sam) -> None:
    parts, fast = count_macs(sam, (32, 32)), count_macs(hj.expedite(sam, PLAN), (32, 32))
    assert {"neck", "prompts", "head"} < {part for part, macs in parts.items() if macs}
    assert parts["neck"] == 16 * (16 * 16 + 9 * 16 * 16)
    assert fast["blocks"] < parts["blocks"] or fast["clustering"] > 0
    assert "other" not in parts


def test_the_task_of_masks(sam: Sam, predictor: PromptPredictor) -> None:
    image, task = photo(*SIZE), sam.tasks["masks"]
    assert task == PromptedMasks()
    found = predictor.masks(predictor.encode(image), points=[(20, 30)])
    rendering = task.render(image, found)
    assert [*rendering.pictures] == ["mask_0", "mask_1", "mask_2", "overlay"]
    assert rendering.pictures["mask_1"].max() in (0, 255)
    assert [each["image_id"] for each in rendering.documents["masks"]("7")] == [7, 7, 7]
    assert task.agreement(found, found) == 1
    assert task.difference(found, found).shape == SIZE
    a, b = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    a[0, :2], b[0, 1:3] = True, True
    np.testing.assert_allclose(overlap(a, b), [1 / 3, 1])


def test_answers_are_jitted_once_for_prompts_of_a_bucket(predictor: PromptPredictor, encoded: Encoded) -> None:
    predictor.masks(encoded, points=[(1, 1), (2, 2), (3, 3)])
    compiled = answer._cache_size()
    predictor.masks(encoded, points=[(1, 1), (2, 2)])
    assert answer._cache_size() == compiled
