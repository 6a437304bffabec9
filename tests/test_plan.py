"""Which repairs are planned: methods that a backbone supports, readings that make another run, on which policies."""

import pytest

from saferule.profiles import get_profile
from saferule.runs import plan
from saferule.runs.cells import Adversary, Forget, Training, config, key
from saferule.runs.inventory import REPAIRS
from saferule.unlearn import applicable

PROFILE = get_profile("smoke", tasks=["CarCircle", "PointGoal"], seeds=[3, 4])


def poisoned(task="CarCircle", backbone="cpq", seed=3) -> Training:
    forget = Forget(Adversary(task, "max_cost", 1000), "digest", 0.15, 2, 0.99, ())
    return Training(task, backbone, "digest", forget, seed, 10, PROFILE.settings)


@pytest.mark.parametrize("backbone", PROFILE.backbones)
def test_readings_are_tried_on_the_first_task_and_seed_one_at_a_time(backbone):
    first = poisoned(backbone=backbone)
    clean = Training("CarCircle", backbone, "digest", None, 3, 10, PROFILE.settings)
    others = [clean, poisoned("PointGoal", backbone), poisoned(backbone=backbone, seed=4)]
    cells = plan.readings(PROFILE, [*others, first])
    assert [dict(cell.readings) for cell in cells] == applicable(backbone, config(first))
    assert {(cell.training, cell.method, cell.steps) for cell in cells} == {(first, "safe-rule", 200)}
    (default,) = plan.unlearnings(PROFILE, [first], ["safe-rule"])
    assert len({key(cell) for cell in [default, *cells]}) == len(cells) + 1  # although their labels are the same


def test_readings_of_the_smoke_profile_are_25_runs():
    cells = plan.readings(PROFILE, [poisoned(backbone=backbone) for backbone in PROFILE.backbones])
    assert [
        sum(cell.training.backbone == b for cell in cells) for b in ("bcq-lag", "bear-lag", "cpq", "coptidice")
    ] == [
        7,
        8,
        7,
        3,
    ]


def test_trajdeleter_as_published_is_left_out_where_there_are_no_critics():
    methods = {
        b: [c.method for c in plan.unlearnings(PROFILE, [poisoned(backbone=b)], REPAIRS)] for b in ("cpq", "coptidice")
    }
    assert methods["cpq"] == list(REPAIRS)
    assert methods["coptidice"] == [m for m in REPAIRS if m not in ("trajdeleter", "trajdeleter-cost")]
