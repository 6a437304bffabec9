"""The paper as data: its tables, its settings, and the readings of its open points."""

from dataclasses import fields

import pytest

from saferule.errors import SettingsError
from saferule.paper.numbers import Cell, cell, table
from saferule.paper.readings import ATTACK, READINGS, UNLEARNING, check, default_readings
from saferule.paper.settings import TABLE7, Table7, read_table7

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
    assert not frame.isna().any().any()
    assert not frame.duplicated(key).any()


@pytest.mark.parametrize("number", [0, 8, "1"])
def test_there_are_seven_tables(number):
    with pytest.raises(SettingsError, match="choose 1 to 7"):
        table(number)


def one(number, column, **key):
    frame = table(number)
    for name, value in key.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame[column].item()


def test_cells_read_by_eye():
    assert cell("BCQ-Lag", "max_cost", "PointGoal", 0.05) == Cell(31.1, 17.5, 13.9, 18.3)
    assert cell("bcq-lag", "max_cost", "CarCircle", 0.15) == Cell(136.2, 34.4, 331.0, 365.4)
    assert cell("cpq", "max_cost", "AntVelocity", 0.05) == Cell(0.0, 0.4, -3000.1, 932.9)
    assert cell("cpq", "min_reward", "CarCircle", 0.15) == Cell(73.9, 4.4, -159.3, 294.2)
    assert cell("bcq-lag", "min_reward", "PointPush", 0.15) == Cell(38.9, 9.7, -6.9, 3.4)
    assert one(2, "delta_reward", policy="BCQ-Lag", variant="adaptive", task="CarCircle") == 10.8
    assert one(3, "minutes", method="Safe Unlearning", task="PointGoal") == 5.5
    assert one(3, "minutes", method="Retraining", task="CarCircle") == 276.1
    assert (
        one(
            4,
            "cost_aware",
            policy="BCQ-Lag",
            attack="max_cost",
            task="PointGoal",
            ratio=0.05,
            metric="cost",
        )
        == 7.4
    )
    assert one(5, "cost", policy="BCQ-Lag", variant="with_critic_unlearning", task="CarCircle") == 7.6
    assert one(6, "reward", policy="BCQ-Lag", task="PointGoal", percentile=50) == 18.8


def test_cells_that_do_not_exist():
    with pytest.raises(SettingsError, match="no policy 'bcq': choose one of BCQ-Lag, CPQ, BEAR-Lag, COptiDICE"):
        cell("bcq", "max_cost", "PointGoal", 0.05)
    with pytest.raises(SettingsError, match="no attack 'Max Cost': choose one of max_cost"):
        cell("cpq", "Max Cost", "PointGoal", 0.05)
    with pytest.raises(SettingsError, match="no task 'PointGoal1'"):
        cell("cpq", "max_cost", "PointGoal1", 0.05)
    with pytest.raises(SettingsError, match=r"no ratio 0.1: choose one of 0.05, 0.15"):
        cell("cpq", "max_cost", "PointGoal", 0.1)


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
    assert TABLE7.forget_cost_target == 10.5


def test_table_7_is_read_from_its_file(tmp_path):
    from saferule.paper.settings import TABLES

    text = (TABLES / "table7.csv").read_text().replace("kappa,10.0", "kappa,25.0").replace("10^6", "2000")
    (tmp_path / "other.csv").write_text(text)
    other = read_table7(tmp_path / "other.csv")
    assert (other.kappa, other.training_steps, other.gamma) == (25.0, 2000, 0.99)
    # every printed entry but one is a field: the range gives two, and kappa + sigma is a property
    assert len(fields(Table7)) == len(table(7))


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
    }
    assert {r.name: (list(r.options), r.default) for r in UNLEARNING} == expected


def test_readings_of_the_attack():
    assert {r.name: r.default for r in ATTACK} == {
        "poison_count": "clean",
        "poison_unit": "cut",
        "r_high": "0.95",
        "r_low": "0.05",
        "min_reward_label": "r_low",
        "adversary": "ppo",
        "adversary_start": "reward_first",
        "rollouts": "twice",
    }


@pytest.mark.parametrize("reading", READINGS.values(), ids=list(READINGS))
def test_every_reading_is_explained(reading):
    assert reading.default in reading.options
    assert reading.question.endswith("?")
    assert reading.reason.endswith(".") and reading.source.endswith(".")
    assert all(len(text) > 10 for text in reading.options.values())
    assert any(word in reading.source for word in ("Section", "Eq.", "Algorithm", "Table", "Appendix"))


def test_check_fills_in_defaults():
    assert check() == check({}) == default_readings()
    assert check({"gate": "data"}) == default_readings() | {"gate": "data"}
    assert len(default_readings()) == len(ATTACK) + len(UNLEARNING) == 17


def test_check_names_what_is_valid():
    with pytest.raises(SettingsError, match="no reading 'percentile': choose among poison_count, .*reward_percentile"):
        check({"percentile": "50"})
    with pytest.raises(SettingsError, match="'kappa' has no option '10': choose one of literal, per_step"):
        check({"kappa": "10"})
