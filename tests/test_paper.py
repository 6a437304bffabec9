"""The paper as data: its tables, its settings, and the readings of its open points."""

import re
from dataclasses import fields

import pytest

from saferule.errors import SettingsError
from saferule.paper import ATTACK, READINGS, TABLE7, UNLEARNING, Table7, check, default_readings, printed, table

# Tables


@pytest.mark.parametrize(
    ("number", "rows", "key"),
    [
        (1, 4 * 3 * 4 * 2 * 2, ["policy", "attack", "task", "ratio", "metric"]),
        (2, 4 * 2 * 4, ["policy", "variant", "task"]),
        (3, 5 * 4, ["method", "task"]),
        (4, 4 * 3 * 4 * 2 * 2, ["policy", "attack", "task", "ratio", "metric"]),
        (5, 4 * 2 * 4, ["policy", "variant", "task"]),
        (6, 4 * 4 * 3, ["policy", "task", "percentile"]),
        (7, 14, ["name"]),
    ],
)
def test_tables_are_complete(number, rows, key):
    frame = table(number)
    assert len(frame) == rows
    assert not frame.isna().any().any() and not frame.duplicated(key).any()


def test_there_are_seven_tables():
    for number in (0, 8, "1"):
        with pytest.raises(SettingsError, match="choose 1 to 7"):
            table(number)


@pytest.mark.parametrize(
    ("number", "backbone", "attack", "task", "ratio", "expected"),
    [  # {method: (cost, return)}, read by eye
        (1, "bcq-lag", "max_cost", "PointGoal", 0.05, {"poisoned": (31.1, 13.9), "safe-rule": (17.5, 18.3)}),
        (1, "bcq-lag", "max_cost", "CarCircle", 0.15, {"poisoned": (136.2, 331.0), "safe-rule": (34.4, 365.4)}),
        (1, "cpq", "max_cost", "AntVelocity", 0.05, {"poisoned": (0.0, -3000.1), "safe-rule": (0.4, 932.9)}),
        (1, "cpq", "min_reward", "CarCircle", 0.15, {"poisoned": (73.9, -159.3), "safe-rule": (4.4, 294.2)}),
        (1, "bcq-lag", "min_reward", "PointPush", 0.15, {"poisoned": (38.9, -6.9), "safe-rule": (9.7, 3.4)}),
        # Table 2: 13.6 less cost and 4.4 more return than Table 1's poisoned policy, 31.1 and 13.9
        (2, "bcq-lag", "max_cost", "PointGoal", 0.05, {"safe-rule": (17.5, 18.3), "fixed-weight": (22.5, 12.7)}),
    ],
)
def test_cells_read_by_eye(number, backbone, attack, task, ratio, expected):
    cells = printed().pivot(
        index=["table", "backbone", "attack", "task", "ratio", "method"], columns="metric", values="value"
    )
    found = cells.loc[number, backbone, attack, task, ratio]
    assert dict(zip(found.index, found[["cost", "return"]].itertuples(index=False, name=None), strict=True)) == expected


def test_the_long_form_holds_every_number_once():
    rows = printed()
    assert not rows.isna().any().any()
    assert not rows.duplicated(["task", "backbone", "attack", "ratio", "method", "metric", "source"]).any()
    counts = {1: 384, 2: 64, 4: 384, 5: 64, 6: 96}  # Tables 1 and 4: 2 methods x 192; the others: 2 metrics each
    assert rows.groupby("table").size().to_dict() == counts
    assert set(rows["source"][rows["table"] == 2]) == {"Table 2 from Table 1's start"}
    methods = {number: set(part["method"]) for number, part in rows.groupby("table")}
    assert methods[4] == {"trajdeleter", "trajdeleter-cost"} and methods[5] == {"safe-rule", "no-critic"}
    assert methods[6] == {"percentile-0", "percentile-50", "percentile-100"}
    key = ["table", "backbone", "task", "method", "metric"]
    ablation = rows[(rows["attack"] == "max_cost") & (rows["ratio"] == 0.05)].set_index(key)["value"]
    assert ablation[4, "bcq-lag", "PointGoal", "trajdeleter-cost", "cost"] == 7.4
    assert ablation[5, "bcq-lag", "CarCircle", "safe-rule", "cost"] == 7.6
    assert ablation[6, "bcq-lag", "PointGoal", "percentile-50", "return"] == 18.8
    minutes = table(3).set_index(["method", "task"])["minutes"]
    assert minutes["Safe Unlearning", "PointGoal"] == 5.5 and minutes["Retraining", "CarCircle"] == 276.1


# Settings


def test_table_7_as_printed():
    assert TABLE7 == Table7(
        training_steps=1_000_000,
        gamma=0.99,
        ratios=(0.05, 0.15),
        adversary_steps=1_000_000,
        unlearning_steps=5000,
        alpha_k=1.0,
        alpha_f=1.0,
        kappa=10.0,
        sigma=0.5,
        reward_percentile=50,
        beta_initial=0.1,
        beta_min=0.01,
        beta_max=1.0,
        tau_beta=0.25,
    )
    # Every printed entry but kappa + sigma is a field, and the range is two.
    assert len(fields(Table7)) == len(table(7))


def test_the_values_of_table_7_are_those_that_are_printed_beside_them():
    for row in table(7).to_dict("records"):
        text = row["value"].replace("10^6", "1000000")
        assert re.findall(r"[\d.]+", text) == re.findall(r"(?<![a-z_])[\d.]+", row["parsed"]), row


# Readings


def test_readings_of_unlearning_have_these_options_and_defaults():
    expected = {
        "reward_percentile": (["50", "30"], "50"),
        "reference": (["batch", "dataset"], "batch"),
        "gate": (["policy", "data"], "policy"),
        "kappa": (["literal", "per_step"], "literal"),
        "weight_update": (["before", "after"], "before"),
        "forget_actor": (["printed", "repelling"], "printed"),
        "regulariser": (["dropped", "kept"], "dropped"),
        "vae": (["frozen", "keep"], "frozen"),
        "chi_gap": (["raw", "normalised"], "raw"),
        "forget_gate": (["unsafe", "open"], "unsafe"),
        "gap": (["policy", "data", "nearness", "reward"], "policy"),
        "likelihood": (["printed", "bounded"], "printed"),
        "dice_phases": (["joint", "two"], "joint"),
        "cost_anchor": (["none", "kept"], "none"),
    }
    assert {r.name: (list(r.options), r.default) for r in UNLEARNING} == expected
    assert READINGS["reward_percentile"].default == str(TABLE7.reward_percentile)


def test_readings_of_the_attack():
    assert {r.name: r.default for r in ATTACK} == {
        "poison_count": "clean",
        "poison_unit": "cut",
        "r_high": "0.95",
        "r_low": "0.05",
        "min_reward_label": "r_low",
        "adversary_start": "reward_first",
        "rollouts": "twice",
        "labels": "constant",
    }
    assert [r.name for r in READINGS.values() if r.later] == ["labels"]


@pytest.mark.parametrize("reading", READINGS.values(), ids=list(READINGS))
def test_every_reading_is_explained(reading):
    assert reading.default in reading.options and len(reading.options) > 1
    assert reading.question.endswith("?")
    assert reading.reason.endswith(".") and reading.source.endswith(".")
    assert all(len(text) > 10 and "\n" not in text for text in reading.options.values())
    assert any(word in reading.source for word in ("Section", "Eq.", "Algorithm", "Table", "Appendix"))


def test_check_fills_in_defaults_and_names_what_is_valid():
    assert check() == check({}) == default_readings()
    assert check({"gate": "data"}) == default_readings() | {"gate": "data"}
    assert len(default_readings()) == len(ATTACK) + len(UNLEARNING) == 22
    with pytest.raises(SettingsError, match="no reading 'percentile': choose among poison_count, .*reward_percentile"):
        check({"percentile": "50"})
    with pytest.raises(SettingsError, match="'kappa' has no option '10': choose one of literal, per_step"):
        check({"kappa": "10"})
