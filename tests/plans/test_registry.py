"""Methods by name: their short names, classes that are registered, and those of installed packages."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import hourglass_jax as hj
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.plans import registry
from hourglass_jax.plans.files import plan_of
from hourglass_jax.plans.registry import METHODS, all_methods, find_method, register_plan
from hourglass_jax.search.budget import Costs
from hourglass_jax.search.tune import Target, Tuner


@dataclass(frozen=True)
class Unchanged(hj.Plan):
    """Changes nothing."""

    strength: float = 1.0


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """Leaves the methods as they were."""
    before = dict(METHODS)
    yield
    registry._METHODS.clear()
    registry._METHODS.update(before)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that offers a plan, one that is none, one under another name, and one that cannot be imported."""
    module = ModuleType("plans_of_others")
    vars(module).update(Unchanged=Unchanged, Number=3)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    targets = {"Unchanged": "Unchanged", "Number": "Number", "Renamed": "Unchanged", "Missing": "Missing"}
    points = [EntryPoint(name, f"{module.__name__}:{value}", registry.GROUP) for name, value in targets.items()]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points if group == registry.GROUP else [])


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("StagedMerging", hj.StagedMerging),
        ("staged", hj.StagedMerging),
        ("tome", hj.TokenMerging),
        ("ToMe", hj.TokenMerging),
        ("HOURGLASS", hj.Hourglass),
        ("evit", hj.EViT),
        ("dynamicvit", hj.DynamicViT),
        ("act", hj.ACT),
        ("pooling", hj.Pooling),
        ("downsampling", hj.Downsampling),
    ],
)
def test_methods_have_short_names_in_upper_and_lower_case(name: str, cls: type[hj.Plan]) -> None:
    assert find_method(name) is cls


def test_a_plan_that_is_registered_is_known_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of a class that `register_plan` was given, got Unchanged"):
        hj.save_plan(Unchanged(), tmp_path / "plan.json")
    assert register_plan(Unchanged) is Unchanged is register_plan(Unchanged)
    assert METHODS["Unchanged"] is find_method("unchanged") is Unchanged
    path = hj.save_plan(Unchanged(0.5), tmp_path / "plan.json")
    assert hj.load_plan(path) == Unchanged(0.5)


def plain() -> type:
    return type("Plain", (hj.Plan,), {})


def thawed() -> type:
    @dataclass
    class Thawed:
        keep: float = 1.0

    return Thawed


def another_hourglass() -> type:
    @dataclass(frozen=True)
    class Hourglass(hj.Plan):
        pass

    return Hourglass


def tome() -> type:
    @dataclass(frozen=True)
    class ToMe(hj.Plan):
        pass

    return ToMe


def with_a_method() -> type:
    @dataclass(frozen=True)
    class Own(hj.Plan):
        method: str = ""

    return Own


def with_a_list() -> type:
    @dataclass(frozen=True)
    class Own(hj.Plan):
        blocks: tuple[list[int], ...] = ()

    return Own


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 3, "a plan must be a frozen dataclass and a subclass of Plan, got 3"),
        (lambda: hj.Plan, "a plan must be a frozen dataclass and a subclass of Plan, got .*Plan"),
        (plain, "a plan must be a frozen dataclass and a subclass of Plan, got .*Plain"),
        (thawed, "a plan must be a frozen dataclass and a subclass of Plan, got .*Thawed"),
        (another_hourglass, "the name Hourglass is taken by hourglass_jax.plans.hourglass.Hourglass"),
        (tome, "the name ToMe is taken by hourglass_jax.plans.token_merging.TokenMerging"),
        (with_a_method, "Own cannot have a field 'method'"),
        (with_a_list, r"Own.blocks must be of a type that a plan file can hold .*, got tuple\[list\[int\], ...\]"),
    ],
)
def test_what_cannot_be_registered_is_refused_in_a_sentence(make, message: str) -> None:
    before = dict(METHODS)
    with pytest.raises(ValueError, match=f"^{message}"):
        register_plan(make())
    assert before == METHODS


def test_plans_of_installed_packages_are_found(installed: None) -> None:
    assert plan_of({"method": "Unchanged", "strength": 0.5}) == Unchanged(0.5)
    assert METHODS["Unchanged"] is Unchanged


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Number", "plans_of_others:Number must be a class called Number, as its entry point says, got 3"),
        ("renamed", "plans_of_others:Unchanged must be a class called Renamed"),
        ("Missing", "the plan Missing cannot be imported from plans_of_others:Missing: .*'Missing'"),
        ("Sandglass", "unknown method 'Sandglass'; known: Hourglass, "),
    ],
)
def test_what_installed_packages_do_wrong_is_said_when_it_is_asked_for(
    name: str, message: str, installed: None
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        find_method(name)
    assert "Unchanged" in all_methods() and "Missing" not in all_methods()


def test_the_tuner_says_which_plan_is_not_made_for_a_cost(tiny_model: Saliency) -> None:
    register_plan(Unchanged)
    with pytest.raises(ValueError, match="Unchanged makes no plans for a cost: it does not override `scaled`"):
        Costs(tiny_model, (70, 70)).solve("unchanged", 0.5)


def test_the_tuner_refuses_unknown_methods_and_none(tiny_model: Saliency, tmp_path: Path) -> None:
    photographs = dict.fromkeys("ab", np.zeros((70, 70, 3), "uint8"))
    tuner = Tuner(tiny_model, photographs, tmp_path / "tune.jsonl", weights="random")
    for methods, message in (
        (("Sandglass",), "unknown method 'Sandglass'"),
        ((), "expected methods of .* got none"),
    ):
        with pytest.raises(ValueError, match=message):
            tuner.tune(Target("share", 0.8), methods)


def test_what_the_tuner_tries_are_fields_of_the_plan() -> None:
    assert hj.Plan.search_space(12) == Unchanged.search_space(12) == {}
    for name, cls in METHODS.items():
        plan = cls.scaled(0.5, 12, (8, 8))
        for field, values in cls.search_space(12).items():
            assert len(values) > 1, name
            for value in values:
                replace(plan, **{field: value}).check(12)
    assert hj.StagedMerging.search_space(24)["stages"][0] == (0, 2, 4, 6)
