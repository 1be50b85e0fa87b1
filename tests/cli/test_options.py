"""The options that all commands share: sizes of inputs, and plans by the fields of their classes."""

import dataclasses
import inspect

import pytest
import tyro

import hourglass_jax as hj
from hourglass_jax.cli import _commands
from hourglass_jax.cli.options import ModelOptions, PlanOptions, ReadingOptions
from hourglass_jax.cli.plan_options import COMMANDS_OWN, chosen_plan, described_fields, is_given, plan_arguments
from hourglass_jax.cli.prompts import PromptOptions
from hourglass_jax.plans.registry import METHODS


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


def test_every_field_of_every_method_is_an_option_with_a_help_text() -> None:
    options = {field.name for field in dataclasses.fields(plan_arguments())}
    fields = {field.name for cls in METHODS.values() for field in dataclasses.fields(cls)}
    assert options == {"fast", "share", "faster", "plan", "strict_plan", "method", *fields}
    for name, cls in METHODS.items():
        assert described_fields(cls).keys() >= {field.name for field in dataclasses.fields(cls)}, name


def test_help_texts_are_those_of_the_docstring() -> None:
    class Parent:
        """One.

        Attributes:
            a, b: both
                and more: of it.
            c: of the parent.

        Raises:
            d: no field.
        """

    class Child(Parent):
        """Two.

        Attributes:
            c: of the child.
        """

    both = "both and more: of it."
    assert described_fields(Child) == {"a": both, "b": both, "c": "of the child."}


def test_the_commands_own_options_are_left_to_them() -> None:
    """What is not listed would be an option twice, if a plan had a field of that name."""
    own = {field.name for cls in (ModelOptions, ReadingOptions, PromptOptions) for field in dataclasses.fields(cls)}
    for command in _commands():
        if command.__name__ not in ("models", "convert"):  # these take no plan
            own |= inspect.signature(command).parameters.keys()
    assert own - {"model", "plan", "reading", "methods", "prompts"} <= COMMANDS_OWN
    assert COMMANDS_OWN.isdisjoint(field.name for cls in METHODS.values() for field in dataclasses.fields(cls))


def test_options_that_are_given_in_code_are_those_of_the_command_line() -> None:
    given = PlanOptions(method="staged", keep=0.8, stages=(0, 2))
    read = tyro.cli(
        plan_arguments(),
        args=["--method", "staged", "--keep", "0.8", "--stages", "0", "2"],
        config=(tyro.conf.DisallowNone,),
    )
    assert chosen_plan(given) == chosen_plan(read) == hj.StagedMerging(0.8, (0, 2))
    assert is_given(given) and is_given(read)
    assert not is_given(PlanOptions(strict_plan=True)) and chosen_plan(PlanOptions()) is None


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        (PlanOptions(window=3), hj.Hourglass(5, (24, 24), window=3, iterations=2, representative="medoid")),
        (PlanOptions(method="hourglass"), hj.Hourglass(5, (24, 24), iterations=2, representative="medoid")),
        (PlanOptions(alpha=1, clusters=(2, 3)), hj.Hourglass(1, (2, 3))),
        (PlanOptions(method="evit", keep=0.5), hj.EViT(0.5)),
    ],
)
def test_the_preset_of_a_model_is_meant_unless_another_plan_is_given(options: PlanOptions, plan: hj.Plan) -> None:
    assert chosen_plan(options, default_preset="dinov2-vits14-saliency") == plan
