"""Inspection of blocks, against direct computations; the pictures and the errors of the command."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.analysis.inspection import inspect_block
from hourglass_jax.cli import visualize as visualize_command
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.ops.clustering import cluster_tokens

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = np.random.default_rng(0).normal(size=(1, 70, 70, 3)).astype(np.float32)


@jax.jit
def tokens_before_block_2(model: Saliency) -> jax.Array:
    [tokens] = model.backbone(IMAGES, intermediates=(0,)).intermediates
    return tokens.tokens


def test_attention_is_that_of_the_tokens(tiny_model: Saliency) -> None:
    """Weights and values of the image's and the class token's, mixed, are what the block's attention mixes."""
    seen = inspect_block(tiny_model.backbone, IMAGES, plan=None, block=0, positions=(3, 12, 24))
    assert seen.attention.shape == (3, 25) and seen.entering.shape == (25, 32)
    block, tokens = tiny_model.backbone.blocks[0], seen.entering[None]
    x = jnp.concatenate([tiny_model.backbone.special_tokens[...][None], tokens], axis=1)
    query, key, _ = block.project(x)
    for row, position in zip(seen.attention, (3, 12, 24), strict=True):
        logits = [query[0, head, :, 1 + position] @ key[0, head] / 4 for head in range(2)]
        weights = np.mean([np.exp(each) / np.exp(each).sum() for each in np.array(logits, np.float64)], axis=0)
        np.testing.assert_allclose(row, weights[1:], atol=1e-5)


@pytest.mark.slow
def test_under_a_plan_it_is_that_of_the_nearest_cluster(tiny_model: Saliency) -> None:
    plan = hj.Hourglass(1, (3, 3))
    seen = inspect_block(tiny_model.backbone, IMAGES, plan=plan, block=1, positions=tuple(range(25)))
    z = tokens_before_block_2(tiny_model)
    clusters = cluster_tokens(z, token_grid=(5, 5), cluster_grid=(3, 3), temperature="auto")
    np.testing.assert_allclose(seen.entering, clusters[0], rtol=1e-4, atol=1e-4)
    nearest = jnp.argmin(jnp.sum((z[0, :, None] - clusters[0]) ** 2, axis=-1), axis=1)
    assert seen.attention.shape == (25, 9)
    for cluster in range(9):
        rows = seen.attention[nearest == cluster]
        np.testing.assert_allclose(rows, np.broadcast_to(rows[:1], rows.shape), rtol=1e-5)
    assert float(seen.attention.sum(axis=1).max()) < 1
    final = hj.expedite(tiny_model, plan).backbone(IMAGES).tokens.values
    assert seen.leaving.shape == (9, 32)
    cosine = jnp.sum(seen.restored * final[0], -1) / jnp.linalg.norm(seen.restored, axis=-1)
    assert float(jnp.min(cosine / jnp.linalg.norm(final[0], axis=-1))) > 0.9


def test_a_block_that_is_none_is_refused(tiny_model: Saliency) -> None:
    with pytest.raises(ValueError, match="block must be one of the backbone's, 0 to 2, got 3"):
        inspect_block(tiny_model.backbone, IMAGES, plan=None, block=3, positions=(0,))


Run = Callable[..., str]


@pytest.fixture
def run(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on a photograph and the tiny model; returns what it prints."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    given = [tmp_path / "photo.png", "--model", tiny_file, "--size", 70, "-o", tmp_path / "out"]

    def run(*options: object) -> str:
        arguments = [*map(str, (*given, *options))]
        tyro.cli(visualize_command.visualize, args=arguments, config=(tyro.conf.DisallowNone,))
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_the_command_writes_three_pictures(run: Run, tmp_path: Path) -> None:
    plan = ["--alpha", 1, "--clusters", 3, 4]
    printed = run(*plan, "--rows", 2, 1)
    names = ["photo_predictions.png", "photo_features.png", "photo_attention.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert printed == f"{tmp_path / 'photo.png'}: {', '.join(str(tmp_path / 'out' / name) for name in names)}\n"
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    [image] = json.loads(run(*plan, "--rows", 2, 1, "--position", 0, 1, "--block", 3, "--json"))["images"]
    assert list(image["files"]) == ["predictions", "features", "attention"]
    after = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    assert [before[name] == after[name] for name in names] == [True, False, False]
    for path in image["files"].values():
        with Image.open(path) as picture:
            assert min(picture.size) > 360 and np.asarray(picture).std() > 10


def test_grids_have_the_images_shape() -> None:
    assert visualize_command._grid(6, (12, 20)) == (6, 10)


def test_neighbours_stay_inside() -> None:
    assert visualize_command._neighbours((0.5, 0.5), (4, 5)) == [(2, 2), (2, 3), (3, 2)]
    assert visualize_command._neighbours((1, 1), (4, 5)) == [(3, 4), (3, 4), (3, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--position", 0.5, 1.5], r"position must be two numbers in 0..1, got 0.5 1.5"),
        (["--block", 1], "block must be one on clusters, 2 to 3, got 1"),
        (["--block", 4], "block must be one on clusters, 2 to 3, got 4"),
        (["--rows", 5], "photo.png: clusters must not outnumber the image's tokens"),
        (["--rows", 0], r"photo.png: clusters must be two positive integers"),
        (["--clusters", 5, 6], "photo.png: clusters must not outnumber the image's tokens"),
    ],
)
def test_wrong_input_is_refused_before_the_work(options: list, message: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run("--alpha", 1, "--clusters", 3, 3, *options)
    assert not (tmp_path / "out").exists()


def test_only_an_hourglass_has_clusters(run: Run, tmp_path: Path) -> None:
    path = hj.save_plan(hj.StagedMerging(0.7), tmp_path / "plan.json")
    with pytest.raises(ValueError, match="clusters are drawn of an Hourglass, got a plan of StagedMerging"):
        run("--plan", path)
