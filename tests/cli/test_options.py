"""The options that all commands share: sizes of inputs, as one number or as rows and columns."""

import pytest
import tyro

from hourglass_jax.cli.options import ModelOptions


@pytest.mark.parametrize(
    ("arguments", "size"), [([], None), (["--size", "518"], 518), (["--size", "352x1216"], (352, 1216))]
)
def test_a_size_is_one_number_or_rows_and_columns(arguments: list[str], size: int | tuple[int, int] | None) -> None:
    assert tyro.cli(ModelOptions, args=arguments).size == size


@pytest.mark.parametrize("wrong", ["1x2x3", "large", "3x"])
def test_a_size_that_is_none_is_named(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        tyro.cli(ModelOptions, args=["--size", wrong])
    assert exit.value.code == 2
    assert "--size" in capsys.readouterr().err
