"""The audit's statistics on numbers that can be checked by hand, and what is told of them."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.stats import wasserstein_distance

from saferule import audit
from saferule.report import audit as report
from saferule.report import audit_figures

RNG = np.random.default_rng(0)
CELL = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15, "training_seed": 0}

# Actions


def test_action_distance_of_constant_policies():
    still, moved = np.zeros((7, 2)), np.full((7, 2), (0.3, -0.4))
    assert audit.action_distance(still, moved) == pytest.approx(0.5)
    assert audit.action_distance(moved, moved) == 0.0
    half = np.where(np.arange(7)[:, None] < 3, still, moved)
    assert audit.action_distance(still, half) == pytest.approx(0.5 * 4 / 7)


def test_floor_leaves_the_policy_itself_out():
    clean = [np.full((5, 1), value) for value in (0.0, 1.0, 3.0)]
    assert [audit.floor(clean, i) for i in range(3)] == pytest.approx([2.0, 1.5, 2.5])


def test_sample_is_seeded_without_repetition():
    few, again = audit.sample(100, 10), audit.sample(100, 10)
    assert few.tolist() == again.tolist() == sorted(set(few.tolist())) and len(few) == 10
    assert audit.sample(100, 10, seed=1).tolist() != few.tolist()
    assert audit.sample(3, 10).tolist() == [0, 1, 2]


# Value sequences


def test_windows_cover_a_trajectory():
    assert audit.windows(300) == [slice(0, 128), slice(128, 256), slice(256, 300)]
    assert audit.windows(128) == [slice(0, 128)] and audit.windows(5) == [slice(0, 5)]


def test_wasserstein_is_scipys():
    one, other = RNG.normal(size=(2, 50))
    assert audit.wasserstein(one, other) == pytest.approx(wasserstein_distance(one, other))
    assert audit.wasserstein(one, one + 3.5) == pytest.approx(3.5)
    assert audit.wasserstein(one, one[::-1]) == 0.0  # no order in time
    assert audit.wasserstein(one, np.stack((one, one - 2))).tolist() == pytest.approx([0.0, 2.0])


def test_sequence_distance_is_taken_in_windows():
    centre = np.zeros(300)
    shifted = np.where(np.arange(300) >= 256, 1.0, 0.0)  # the last window alone
    assert audit.sequence_distance(centre, shifted[None]) == pytest.approx([44 / 300])
    step = np.where(np.arange(256) < 128, 0.0, 1.0)  # the same values in another window are elsewhere
    assert audit.sequence_distance(step, step[::-1][None]) == pytest.approx([1.0])


def test_deviation_in_units_of_the_reference():
    reference = np.outer([-1.0, 0.0, 1.0], np.ones(10))  # distances to their mean: 1, 0, 1
    mean, spread = 2 / 3, math.sqrt(1 / 3)
    assert audit.deviation(reference, np.full((2, 10), 2.0)) == pytest.approx((2 - mean) / spread)
    assert audit.deviation(reference, np.zeros((2, 10))) == pytest.approx(-mean / spread)


def test_deviation_without_noise():
    same = np.ones((3, 10))
    assert audit.deviation(same, same) == 0.0
    assert audit.deviation(same, same + 1) == math.inf


def test_deviation_of_fresh_draws_of_the_reference_is_near_zero():
    base = RNG.normal(size=200)
    reference, fresh = (base + 0.1 * RNG.normal(size=(count, 200)) for count in (20, 4))
    assert abs(audit.deviation(reference, fresh)) < 2
    assert audit.deviation(reference, fresh + 1) > 10


def test_auc_counts_ties_half():
    assert audit.auc([1, 2, 3], [2, 0]) == pytest.approx((1 + 1.5 + 2) / 6)
    assert audit.auc([1, 1], [1, 1, 1]) == 0.5
    assert audit.auc([5, math.inf], [1]) == 1.0


def test_auc_of_equals_has_the_spread_of_mann_whitney():
    assert audit.auc_chance(1, 1) == 0.5
    drawn = [audit.auc(*RNG.normal(size=(2, 10))) for _ in range(2000)]
    assert audit.auc_chance(10, 10) == pytest.approx(np.std(drawn), abs=0.01)


# Relearning


@pytest.mark.parametrize(
    ("costs", "status", "steps"),
    [
        ([5, 20, 31, 10], "back", 100),  # the first evaluation at the level counts
        ([5, 30, 0, 0], "back", 50),  # at the level is back
        ([5, 20, 29, 29], "not back", 150),
        ([30, 0, 0, 0], "from the start", None),
    ],
)
def test_relearned(costs, status, steps):
    """Clean 10, poisoned 50: the level is 30."""
    told = audit.relearned([0, 50, 100, 150], costs, clean=10, poisoned=50)
    assert (told.status, told.level) == (status, 30)
    assert math.isnan(told.steps) if steps is None else told.steps == steps


def test_nothing_to_relearn():
    told = audit.relearned([0, 50], [5, 80], clean=20, poisoned=20)
    assert told.status == "no harm" and math.isnan(told.steps)


def curves(seed=0, **costs):
    """Two episodes, 2 apart, at steps 0, 50 and 100 for each method."""
    rows = [
        CELL
        | {"training_seed": seed, "method": method.replace("_", "-"), "step": step}
        | {"cost": cost + shift, "seed": shift}
        for method, values in costs.items()
        for step, cost in zip((0, 50, 100), values, strict=True)
        for shift in (-1, 1)
    ]
    return pd.DataFrame(rows).assign(cost_limit=10.0)


def test_relearning_table_and_summary():
    one = curves(0, clean=(10, 12, 14), poisoned=(50, 50, 50), safe_rule=(12, 15, 35), fine_tuning=(12, 31, 20))
    two = curves(1, clean=(0, 1, 2), poisoned=(20, 20, 20), safe_rule=(2, 3, 4), fine_tuning=(11, 12, 13))
    table = report.relearning_table(pd.concat([one, two]))
    told = {(row.method, row.training_seed): (row.status, row.steps, row.level) for row in table.itertuples()}
    assert told["safe-rule", 0] == ("back", 100, 30) and told["fine-tuning", 0] == ("back", 50, 30)
    assert told["safe-rule", 1] == ("not back", 100, 10) and told["clean", 0] == ("not back", 100, 30)
    assert told["fine-tuning", 1][0] == told["poisoned", 0][0] == "from the start"
    summary = report.relearning_summary(table).set_index("method")
    assert summary.loc["safe-rule", ["back", "not_back", "steps", "n_seeds"]].tolist() == [1, 1, 100, 2]
    assert summary.loc["fine-tuning", ["back", "from_the_start", "steps"]].tolist() == [1, 1, 50]
    said = report.relearning_sentences(table)
    assert ". Back: fine-tuning after 50 steps (1 of 2 seeds); Safe-RULE after 100 steps (1 of 2 seeds). " in said
    assert "The clean policy was not back within 100 steps: " in said
    assert "costs 30 ± 0 more than the clean one; back is a mean cost of 20" in said  # seeds: 40 and 20 more
    assert isinstance(audit_figures.relearning(pd.concat([one, two]), table, "title"), Figure)


def test_harm_within_the_noise_of_the_episodes_is_said_so():
    noisy = curves(clean=(10, 12, 14), poisoned=(20, 20, 20))
    noisy.loc[(noisy["method"] == "poisoned") & (noisy["step"] == 0), "cost"] = [5, 35]  # 9 - 13, 11 + 13
    table = report.relearning_table(noisy)
    assert (table["harm"] == 10).all() and table["harm_error"].to_numpy() == pytest.approx(14.0)  # of -4 and 24
    assert "costs 10 ± 14 more than the clean one (standard error over episodes: **not told" in (
        report.relearning_sentences(table)
    )


def test_a_poison_that_costs_nothing_is_said_so():
    table = report.relearning_table(curves(clean=(10, 12, 14), poisoned=(5, 5, 5), safe_rule=(1, 1, 1)))
    assert set(table["status"]) == {"no harm"}
    assert report.relearning_sentences(table).endswith("there is nothing to relearn.")
    assert not len(report.relearning_table(curves(clean=(10, 12, 14))))  # no level without a poisoned policy


# What is told of the other two


def test_action_sentences_and_figure():
    distances = {"clean": 0.2, "poisoned": 1.0, "safe-rule": 0.5, "fine-tuning": 1.1, "trajdeleter": 0.15}
    rows = [
        CELL | {"method": method, "states": side, "distance": value, "floor": 0.2}
        for method, value in distances.items()
        for side in ("forget", "keep")
    ]
    said = report.action_sentences(pd.DataFrame(rows))
    assert said.startswith("- **CarCircle, CPQ, Max Cost 15 %.** On states of D_f the floor is 0.20 and the poisoned ")
    told = "at the floor: Trajdeleter (0.15); between: Safe-RULE (0.50); no nearer: fine-tuning (1.10)."
    assert said.count(told) == 2
    means = report.over_seeds(pd.DataFrame(rows), ["states"])
    wide = report.side_by_side(means, "states", ["distance", "floor"])
    assert list(wide.columns[-4:]) == ["distance, forget", "distance, keep", "floor, forget", "floor, keep"]
    assert wide["method"].tolist()[:2] == ["clean", "poisoned"] and (wide["floor, keep"] == 0.2).all()
    assert isinstance(audit_figures.actions(pd.DataFrame(rows), "title"), Figure)


def test_value_sentences_and_figure():
    rows = [
        CELL
        | {"method": m, "judge": "bcq-lag", "critic": c, "z_forget": z, "z_keep": 1.0, "auc": auc, "auc_chance": 0.1}
        for m, z, auc in (("clean", 30.0, 0.9), ("poisoned", 0.1, 0.5), ("safe-rule", 12.0, 0.8))
        for c in ("reward", "cost")
    ]
    said = report.value_sentences(pd.DataFrame(rows), ["cpq", "coptidice"])
    assert said.startswith("- COptiDICE is left out")
    assert "reward critic of the poisoned BCQ-Lag policy. The scale: poisoned z 0.1, AUC 0.50; clean" in said
    assert "first: Safe-RULE (z 12.0, AUC 0.80)." in said
    assert isinstance(audit_figures.values(pd.DataFrame(rows), "title"), Figure)
    assert report.value_sentences(pd.DataFrame(), ["coptidice"]).count("\n") == 0


def test_one_seed_is_no_evidence():
    assert "n = 1 training seed.**" in report.limits(1) and "not evidence" in report.limits(2)
    assert report.limits(3) == "Means over 3 training seeds."
