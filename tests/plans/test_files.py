"""Plan files: written and read back, and one sentence for every wrong one."""

import json
from pathlib import Path

import pytest

import hourglass_jax as hj
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.plans.files import plan_fields, plan_of
from hourglass_jax.plans.registry import METHODS

HOURGLASS = {"alpha": 4, "clusters": [3, 3]}
NAMED = {"method": "Hourglass", **HOURGLASS}
PLANS = [
    hj.Hourglass(4, (26, 20)),
    hj.Hourglass(0, (1, 2), beta=3, window=7, iterations=0, temperature=0.03, neighbors=1, representative="medoid"),
    *(method.scaled(0.6, 12, (10, 8)) for method in METHODS.values()),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: type(plan).__name__)
def test_a_plan_is_read_as_it_was_written(plan: hj.Plan, tmp_path: Path) -> None:
    path = hj.save_plan(plan, tmp_path / "new" / "plan.json")
    assert json.loads(path.read_text())["method"] == type(plan).__name__
    found = hj.load_plan(path)
    assert found == plan and hash(found) == hash(plan)
    assert plan_of(plan_fields(plan)) == plan
    assert [each.name for each in path.parent.iterdir()] == ["plan.json"]


def test_fields_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"method": "Hourglass", "alpha": 4, "clusters": [3, 2], "temperature": 1}')
    assert hj.load_plan(path) == hj.Hourglass(4, (3, 2), temperature=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "is no plan: expected JSON such as"),
        ("{", "is no plan: expected JSON such as"),
        ("\x00\xff", "is no plan: expected JSON such as"),
        ([1], "a plan must name its method"),
        (HOURGLASS, "a plan must name its method"),
        ({"method": "Sandglass"}, "unknown method 'Sandglass'; known: Hourglass"),
        ({"method": ["Hourglass"]}, "unknown method"),
        ({"method": "Hourglass", "alpha": 4}, "Hourglass needs the field 'clusters'"),
        ({**NAMED, "gamma": 1}, "has no field 'gamma'; it has alpha"),
        ({**NAMED, "alpha": "4"}, "alpha of Hourglass must be of type int, got '4'"),
        ({**NAMED, "alpha": True}, "alpha of Hourglass must be of type int, got True"),
        ({**NAMED, "clusters": [3]}, r"must be of type \[int, int\], got \[3\]"),
        ({**NAMED, "clusters": 3}, r"must be of type \[int, int\], got 3"),
        ({**NAMED, "temperature": "hot"}, "or \"auto\".*, got 'hot'"),
        ({**NAMED, "beta": 1.5}, "int or null, got 1.5"),
        ({**NAMED, "alpha": -4}, "alpha must be an integer of at least 0, got -4"),
    ],
)
def test_what_is_no_plan_is_said_in_one_sentence(fields: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(fields.encode("latin-1") if isinstance(fields, str) else json.dumps(fields).encode())
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        hj.load_plan(path)


def test_expedite_takes_the_path_of_a_plan_file(
    tiny_model: Saliency, tiny_plan: hj.Hourglass, tmp_path: Path
) -> None:
    path = hj.save_plan(tiny_plan, tmp_path / "plan.json")
    for each in (path, str(path)):
        assert hj.expedite(tiny_model, each).backbone.plan == tiny_plan
    with pytest.raises(ValueError, match=r"missing.json cannot be read"):
        hj.expedite(tiny_model, tmp_path / "missing.json")


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: expected a plan file"):
        hj.load_plan(tmp_path / name)


def test_only_known_kinds_of_plans_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a plan of .*, got int"):
        hj.save_plan(3, tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []
