"""Tables from rows made by hand: means, intervals, the paper's numbers, readings beside the default."""

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from episodes_by_hand import DATA, EPISODES, FORGET, OTHER_READINGS, distances_of, many, rows

from saferule.paper import READINGS
from saferule.report import layouts, tables
from saferule.report.tables import TABLES
from saferule.runs import results
from saferule.runs.experiment import Data, get_profile, plan
from saferule.runs.store import Store
from saferule.unlearn import METHODS, Method

# The interval


def test_interval_is_students_t_over_replicates():
    half = 12.7062 * 10 / math.sqrt(2) / math.sqrt(2)  # t at 1 degree of freedom, the values' sd is 10 / sqrt(2)
    assert tables.interval([25, 35]) == pytest.approx((30 - half, 30 + half), rel=1e-4)
    half = 4.3027 / math.sqrt(3)  # 2 degrees of freedom, sd 1
    assert tables.interval([4, 5, 6]) == pytest.approx((5 - half, 5 + half), rel=1e-4)
    assert tables.interval([7, 7]) == (7, 7)
    assert all(math.isnan(bound) for bound in tables.interval([7]))


@pytest.mark.parametrize("replicates", [3, 5, 10])
def test_interval_covers_the_mean_as_often_as_it_says(replicates):
    """Of 4,000 samples 95 % have the mean in their interval, within 4 standard errors (0.34 %)."""
    drawn = np.random.default_rng(replicates).normal(3.0, 2.0, (4000, replicates))
    covered = np.mean([low <= 3.0 <= high for low, high in map(tables.interval, drawn)])
    assert abs(covered - 0.95) < 0.014


# Within a cell


def test_replicates_are_the_unit():
    """A replicate with more episodes does not weigh more."""
    more = pd.concat([EPISODES, rows("poisoned", 1, [60.0] * 50, [50.0] * 50)])
    for frame in (EPISODES, more):
        table = tables.over_replicates(tables.replicate_means(frame), ["cost", "return"])
        poisoned = table[table["method"] == "poisoned"].set_index("metric")
        assert poisoned["mean"].to_dict() == {"cost": 45.0, "return": 100.0}  # of 30 and 60, of 150 and 50
        assert poisoned.loc["cost", ["low", "high"]].tolist() == list(tables.interval([30, 60]))
        assert poisoned.loc["cost", ["n", "replicates", "episodes", "cost_limit"]].tolist() == [2, "0 1", 2, 10.0]


def test_one_replicate_has_no_interval():
    one = tables.over_replicates(tables.replicate_means(EPISODES[EPISODES["replicate"] == 0]), ["cost"])
    assert one[["low", "high"]].isna().all(axis=None) and set(one["n"]) == {1}


def test_improvement_is_within_a_replicate():
    table = tables.improvement(EPISODES).set_index(["method", "metric"])
    removed, gained = table.loc[("safe-rule", "cost_removed")], table.loc[("safe-rule", "return_gained")]
    assert removed["mean"] == ((30 - 5) + (60 - 25)) / 2 and gained["mean"] == ((110 - 150) + (60 - 50)) / 2
    assert (removed["low"], removed["high"]) == tables.interval([25, 35]) and removed["n"] == 2
    assert set(table.index.get_level_values("method")) == {"safe-rule", "fine-tuning"}


def test_with_clean_repeats_the_clean_rows_under_every_condition():
    second = rows("poisoned", 0, [1.0], [1.0], attack="min_reward", ratio=0.05)
    other_task = rows("poisoned", 0, [1.0], [1.0], task="PointGoal")
    frame = tables.with_clean(pd.concat([EPISODES, second, other_task], ignore_index=True))
    clean = frame[frame["method"] == "clean"]
    assert clean.groupby(["task", "attack", "ratio"]).size().to_dict() == {
        ("CarCircle", "max_cost", 0.15): 4,
        ("CarCircle", "min_reward", 0.05): 4,
    }
    assert list(frame.columns) == list(EPISODES.columns)


def test_replicate_means_say_what_is_safe_under_the_rows_own_limit():
    frame = tables.replicate_means(EPISODES).set_index(["method", "replicate"])
    assert frame.loc[("clean", 0), "cost"] == 6.0 and frame.loc[("clean", 0), "safe"]
    assert frame.loc[("fine-tuning", 0), "safe"]  # 10 is within the limit of 10
    assert not frame.loc[("safe-rule", 1), "safe"]
    assert tables.replicate_means(EPISODES.assign(cost_limit=25.0))["safe"].sum() == 6


def harmful(*costs: float, **where) -> pd.DataFrame:
    """Replicates whose clean policy costs 1, 2, ... and whose poisoned one costs so much more; returns are 100."""
    some = enumerate(costs)
    pairs = [(i, i + 1.0, i + 1.0 + cost) for i, cost in some]
    beside = {"task": where["task"]} if "task" in where else {}
    clean = [rows("clean", i, [low], [100.0], **beside) for i, low, _ in pairs]
    return pd.concat([*clean, *(rows("poisoned", i, [high], [100.0], **where) for i, _, high in pairs)])


def test_harm_is_more_than_its_interval_within_replicates():
    (row,) = tables.harm(harmful(20.0, 24.0, 22.0)).to_dict("records")
    half = 4.3027 * 2 / math.sqrt(3)  # differences 20, 24, 22: sd 2, two degrees of freedom
    assert row["cost_added"] == 22 and row["cost_added_low"] == pytest.approx(22 - half, rel=1e-4)
    assert row["return_lost"] == 0 and row["n"] == 3 and row["cost_harmed"] and not row["return_harmed"]
    assert not tables.harm(harmful(20.0, -15.0, 1.0))["cost_harmed"].any()  # the mean is 2, the interval holds 0
    assert not tables.harm(harmful(500.0))["cost_harmed"].any()  # one replicate says nothing
    less = harmful(0.0, 0.0, 0.0)
    less.loc[less["method"] == "poisoned", "return"] -= [50.0, 51.0, 49.0]
    assert tables.harm(less)[["return_harmed", "cost_harmed", "return_lost"]].to_numpy().tolist() == [
        [True, False, 50.0]
    ]
    assert tables.harm(EPISODES[EPISODES["method"] != "clean"]).empty


def test_conditions_with_harm_are_marked_and_counted_apart():
    harmed = harmful(20.0, 24.0, 22.0)
    harmless = harmful(20.0, -15.0, 1.0, task="PointGoal")
    both = pd.concat(
        [harmed, harmless, *(rows("safe-rule", 0, [5.0], [1.0], task=t) for t in ("CarCircle", "PointGoal"))]
    )
    shown = TABLES["methods"].shown(TABLES["methods"].build(both))
    starred = shown.stack(future_stack=True).loc[lambda texts: texts.str.contains("*", regex=False)]
    assert list(starred.index) == [("CarCircle", "CPQ", "Max Cost 15 %", "C ↓", "ours", "poisoned")]
    counted = [tables.counts(f).set_index("method")["cells"]["safe-rule"] for f in (both, tables.of_harmed(both))]
    assert counted == [2, 1] and tables.of_harmed(harmless).empty
    improved = tables.improvement(both).set_index("task")["cost_harmed"].to_dict()
    assert improved == {"CarCircle": True, "PointGoal": False}


@pytest.mark.parametrize("name", ["table2", "table5", "table6"])
def test_a_method_has_one_row_where_the_attack_harms_one_task_of_two(name):
    at = {"ratio": 0.05}
    both = [harmful(20.0, 24.0, 22.0, **at), harmful(20.0, -15.0, 1.0, task="PointGoal", **at)]
    variants = [m for m in METHODS if METHODS[m].part == "ablations"] + ["safe-rule"]
    both += [
        rows(m, r, [5.0], [1.0], task=t, **at) for m in variants for t in ("CarCircle", "PointGoal") for r in range(3)
    ]
    shown = TABLES[name].shown(TABLES[name].build(pd.concat(both)))
    assert not (shown == layouts.NOTHING).any(axis=None) and shown.index.is_unique
    texts = shown.stack(list(range(shown.columns.nlevels)), future_stack=True)
    starred = [("CarCircle" in at, "PointGoal" in at) for at, text in texts.items() if "*" in text]
    assert starred and set(starred) == {(True, False)}


def test_stars_are_corrected_for_the_number_of_cells():
    """Of 40 harmless cells of three replicates one in twenty would be starred, were each tested alone."""
    generator = np.random.default_rng(0)
    alone = corrected = 0
    for _ in range(5):
        frames = [harmful(*generator.normal(0, 5, 3), ratio=r / 100) for r in range(1, 41)]
        clean, others = frames[0].query("method == 'clean'"), [f.query("method != 'clean'") for f in frames]
        found = tables.harm(pd.concat([clean, *others]))
        corrected += found["cost_harmed"].sum()
        alone += (found["cost_added_low"] > 0).sum()
    assert alone >= 4 and corrected == 0


def test_late_means_are_over_the_last_three_evaluations_on_their_seeds():
    frames = [
        rows("clean", 0, [cost, 2 * cost], [1.0, 3.0]).assign(step=step, final=False)
        for step, cost in ((10, 9.0), (20, 40.0), (30, 1.0))
    ]
    final = rows("clean", 0, [4.0, 8.0, 99.0], [1.0, 3.0, 99.0]).assign(step=40, final=True)
    found = tables.late(pd.concat([*frames, final]).assign(start="", readings="{}"))
    assert len(found) == 3 and found["final"].all()  # the third seed is the final policy's alone
    assert set(found["late_cost"]) == {(40 + 80 + 1 + 2 + 4 + 8) / 6} and set(found["late_return"]) == {2.0}
    other = rows("poisoned", 0, [10.0, 20.0, 60.0], [1.0, 1.0, 1.0], start="").assign(step=40, final=True)
    both = tables.late(pd.concat([*frames, final, other]).assign(start="", readings="{}"))
    assert set(both.loc[both["method"] == "poisoned", "late_cost"]) == {30.0}  # it has no snapshots
    stopped = pd.concat([*frames, frames[-1].assign(final=True)]).assign(start="", readings="{}")
    assert set(tables.late(stopped)["late_cost"]) == {(9 + 18 + 40 + 80 + 1 + 2) / 6}  # its end is its last snapshot
    alone = tables.late(final.assign(start="", readings="{}"))
    assert set(alone["late_cost"]) == {37.0}
    (row,) = tables.steadiness(found.assign(attack="max_cost", ratio=0.15)).to_dict("records")
    assert (row["cost"], row["median_cost"], row["safe_share"], row["n"]) == (37.0, 8.0, pytest.approx(2 / 3), 1)
    assert row["safe_replicates"] == 0


def test_both_ways_are_compared_within_a_replicate():
    ways = [
        rows("clean", i, [cost], [5.0]).assign(acting=way)
        for way, costs in (("mode", (1.0, 3.0)), ("drawn", (4.0, 8.0)))
        for i, cost in enumerate(costs)
    ]
    table = tables.both_ways(pd.concat(ways)).set_index("metric")
    assert table.loc["cost", ["mode", "drawn", "difference", "n"]].tolist() == [2.0, 6.0, 4.0, 2]
    assert (table.loc["cost", "low"], table.loc["cost", "high"]) == tables.interval([3.0, 5.0])
    assert table.loc["return", "difference"] == 0.0


def test_counts():
    """Means: clean 3 / 100, fine-tuning 10 / 10, Safe-RULE 15 / 85; the limit is 10."""
    names = ["within_limit", "lowest_cost", "best_within_limit", "cells"]

    def counted(frame):
        return tables.counts(frame).set_index("method")[names].T.to_dict("list")

    assert counted(EPISODES) == {"clean": [1, 1, 1, 1], "fine-tuning": [1, 0, 0, 1], "safe-rule": [0, 0, 0, 1]}
    tied = counted(pd.concat([EPISODES, rows("trajdeleter", 0, [3.0], [120.0])]))
    assert tied["clean"] == [1, 1, 0, 1] and tied["trajdeleter"] == [1, 1, 1, 1]
    none = counted(EPISODES[EPISODES["method"].isin(["poisoned", "safe-rule"])])
    assert none == {"safe-rule": [0, 1, 0, 1]}


# Beside the paper


def test_methods_have_the_papers_numbers_beside_ours():
    """CPQ, Max Cost 15 %, CarCircle: before and after of Table 1, Trajdeleter of Table 4."""
    more = [rows("trajdeleter", 0, [2.0, 4.0], [8.0, 6.0]), rows("trajdeleter-cost", 1, [7.0], [9.0])]
    table = TABLES["methods"].build(pd.concat([EPISODES, *more])).set_index(["method", "metric"])
    cost = table.xs("cost", level="metric")
    assert cost["mean"].to_dict() == {
        "clean": 3.0,
        "poisoned": 45.0,
        "fine-tuning": 10.0,
        "trajdeleter": 3.0,
        "trajdeleter-cost": 7.0,
        "safe-rule": 15.0,
    }
    assert cost.loc["poisoned", "normalised"] == 4.5 and table.loc[("clean", "return"), "normalised"] == 1.0
    papers = {"poisoned": 195.9, "safe-rule": 0.7, "trajdeleter": 4.0, "trajdeleter-cost": 7.2}
    assert cost["paper"].dropna().to_dict() == papers and cost.loc["trajdeleter", "source"] == "Table 4"
    assert table.xs("return", level="metric")["paper"].dropna().tolist() == [173.8, 77.0, 46.9, 345.2]
    shown = TABLES["methods"].shown(table.reset_index())
    ours, theirs = shown.loc[("CarCircle", "CPQ", "Max Cost 15 %", "C ↓")].to_dict("records")
    assert ours[("Safe-RULE",)] == "15.0 ± 127.1" and ours[("Trajdeleter",)] == "3.0"  # of 5 and 25; of one replicate
    assert theirs[("poisoned",)] == "195.9" and theirs[("Trajdeleter",)] == "4.0" and theirs[("fine-tuning",)] == ""
    assert ("Trajdeleter, released code",) not in shown


def test_tables_are_laid_out_as_in_the_paper():
    other = [rows(m, 0, [c], [2 * c], ratio=0.05, task="PointGoal") for m, c in (("poisoned", 4.0), ("safe-rule", 3.0))]
    table = TABLES["table1"]
    shown = table.shown(table.build(pd.concat([EPISODES, *other])))
    assert list(shown.columns) == [("PointGoal", "5 %"), ("CarCircle", "15 %")]  # the paper's order of tasks
    assert [index[2:] for index in shown.index] == [
        ("C ↓", "ours"),
        ("C ↓", "paper"),
        ("R ↑", "ours"),
        ("R ↑", "paper"),
    ]
    assert shown["PointGoal", "5 %"].tolist() == ["4.0 / 3.0", "42.1 / 4.7", "8.0 / 6.0", "0.1 / 12.6"]
    text = layouts.markdown(shown, "Table 1").splitlines()
    assert (
        text[0] == "**Table 1**" and text[2] == "| backbone | attack | metric |  | PointGoal, 5 % | CarCircle, 15 % |"
    )
    assert text[4] == "| CPQ | Max Cost | C ↓ | ours | 4.0 / 3.0 | 45.0 ± 190.6 / 15.0 ± 127.1 |"
    assert text[5].startswith("|  |  |  | paper | 42.1 / 4.7 |") and text[6].startswith("|  |  | R ↑ | ours |")
    tex = layouts.latex(shown, "C & R, 5 %", "table1")
    assert r"\caption{C \& R, 5 \%}" in tex and r"45.0 $\pm$ 190.6 / 15.0 $\pm$ 127.1 \\" in tex
    assert r"\cline" in tex and not re.search(r"\\cline\S+( \\cline|\s\\bottomrule)", tex)  # one rule at a place
    assert tex.isascii() and tex.count(r"\begin{tabular}") == tex.count(r"\resizebox{\textwidth}{!}{%") == 1


def test_missing_and_failed_policies_are_shown_as_such():
    """Of three replicates one is missing of Safe-RULE, one of the poisoned failed, all of fine-tuning are missing."""
    gone = rows("poisoned", 2, [1.0, np.nan], [1.0, np.nan], start="")
    stopped = rows("trajdeleter", 0, [1.0], [1.0]).assign(failed=True)
    episodes = pd.concat([EPISODES[EPISODES["method"] != "fine-tuning"], gone, stopped])
    names = ["clean", "poisoned", "safe-rule", "fine-tuning", "trajdeleter"]
    asked = pd.concat([rows(m, r, [0.0], [0.0]) for m in names for r in range(3 if m != "trajdeleter" else 1)])
    table = TABLES["methods"].build(episodes, asked[[*tables.POLICY, "method"]])
    (ours, _) = TABLES["methods"].shown(table).loc[("CarCircle", "CPQ", "Max Cost 15 %", "C ↓")].to_dict("records")
    assert {name: text for (name,), text in ours.items()} == {
        "clean (retrained)": "3.0 ± 38.1 (2 of 3)",
        "poisoned": "45.0 ± 190.6 (2 of 3)",
        "fine-tuning": "missing",
        "Trajdeleter": "failed",
        "Trajdeleter, cost-aware": "–",
        "Safe-RULE": "15.0 ± 127.1 (2 of 3)",
    }
    counted = table[table["metric"] == "cost"].set_index("method")[["asked", "n", "failed"]].T.to_dict("list")
    assert counted["poisoned"] == [3, 2, 1] and counted["trajdeleter"] == [1, 0, 1]
    assert counted["trajdeleter-cost"] == [0, 0, 0] and counted["fine-tuning"] == [3, 0, 0]


def test_ratios_that_the_paper_does_not_have_have_none_of_its_numbers():
    ours = EPISODES.assign(ratio=EPISODES["ratio"].replace(0.15, 0.1))
    table = TABLES["methods"].build(ours)
    assert table[["paper", "source"]].isna().all(axis=None) and len(table) == 8
    assert "" not in TABLES["methods"].shown(table).index.names  # no row of the paper's
    both = TABLES["methods"].build(pd.concat([EPISODES, ours[ours["attack"] != "clean"]]))
    known = both[(both["method"] == "poisoned") & (both["metric"] == "cost")].set_index("ratio")["paper"]
    assert known[0.15] == 195.9 and np.isnan(known[0.1])


def test_ablations_beside_tables_2_5_and_6():
    """BCQ-Lag on CarCircle, of which Table 2 prints 81.2 less cost and 10.8 more return for the adaptive weight."""
    at = {"backbone": "bcq-lag", "ratio": 0.05}
    variants = [rows(m, 0, [1.0], [2.0], **at) for m in METHODS if METHODS[m].start == "poisoned"]
    variants += [rows("poisoned", 0, [9.0], [1.5], **at), rows("safe-rule", 0, [1.0], [2.0], backbone="bcq-lag")]

    def papers(name):
        table = TABLES[name].build(pd.concat(variants))
        assert set(table["ratio"]) == ({0.05, 0.15} if name == "table4" else {0.05})  # where there are variants
        wide = table[table["ratio"] == 0.05].pivot(index="method", columns="metric", values="paper")
        return {method: tuple(row) for method, row in zip(wide.index, wide.to_numpy(), strict=True)}

    assert papers("table2") == {"safe-rule": (81.2, 10.8), "fixed-weight": (81.9, -15.6)}
    table = TABLES["table2"].build(pd.concat(variants)).set_index(["method", "metric"])["mean"]
    assert table["safe-rule"].to_dict() == {"cost_removed": 8.0, "return_gained": 0.5}
    assert papers("table5") == {"safe-rule": (7.6, 296.0), "no-critic": (10.4, 264.1)}
    assert papers("table6")["percentile-0"] == (9.1, 270.8) and len(papers("table6")) == 3
    assert papers("table4") == {"trajdeleter": (10.4, 264.1), "trajdeleter-cost": (1.7, 272.3)}
    shown = TABLES["table6"].shown(TABLES["table6"].build(pd.concat(variants)))
    assert shown.to_numpy().tolist() == [["1.0 / 2.0"] * 3, ["9.1 / 270.8", "3.9 / 242.9", "9.5 / 271.4"]]


def test_settings_in_force_stand_beside_table_7():
    """Of the smoke profile's plan: what it changes differs, all else is as printed."""
    profile = get_profile("smoke", training_steps=1_000)
    runs = plan(profile, {"CarCircle": Data("0" * 64, 10_000)})["main"]
    table = tables.hyperparameters([run for run in runs if run.method == "safe-rule"]).set_index("name")
    assert table.loc["Offline safe RL training steps", ["paper", "ours"]].tolist() == ["10^6", "1000"]
    same = table.loc[["Discount factor", "Forget-cost target", "beta_f range", "Reward reference"], "ours"]
    assert same.tolist() == ["0.99", "10.5", "0.01; 1", "50"] and len(table) == 14
    assert set(tables.hyperparameters([])["ours"]) == {"", "; "}


def test_a_method_is_registered_by_its_entry_alone(monkeypatch):
    toy = Method("toy", "Toy method", "#123456", "fine_tune", part="main")
    monkeypatch.setitem(METHODS, "toy", toy)
    more = pd.concat([EPISODES, rows("toy", 0, [1.0], [2.0]), rows("toy", 1, [3.0], [2.0])])
    shown = TABLES["methods"].shown(TABLES["methods"].build(more))
    assert shown.columns.get_level_values(0).tolist()[-2:] == ["Safe-RULE", "Toy method"]
    assert shown["Toy method"].iloc[0].item() == "2.0 ± 12.7"
    for build in (tables.improvement, tables.counts):
        assert "toy" in set(build(more)["method"])
    assert tables.described("main")["method"].iloc[-1] == "toy"
    control = tables.described("controls").set_index("method")
    assert control.loc["on-clean", ["start", "forget", "with"]].tolist() == ["clean", "attack", ""]
    assert control.loc["critic-only", "with"] == "beta_f = 0, beta_min = 0, beta_max = 0"
    assert "forget_actor = repelling" in tables.described("main").set_index("method").loc["safe-rule-described", "with"]


# Across cells


def test_across_cells_by_hand():
    table = tables.across_cells(many()).set_index(["metric", "method"])
    assert table["backbone"].tolist() == ["all"] * 9 + ["cpq"] * 9
    table = table[table["backbone"] == "cpq"]
    cost, score, safe = (table.loc[metric] for metric, *_ in tables.ACROSS_METRICS.values())
    assert safe["value"].to_dict() == {"poisoned": 0.25, "fine-tuning": 0, "safe-rule": 0.25}  # a cost of 10 is safe
    assert cost["value"].to_dict() == {"poisoned": 2.5, "fine-tuning": 12.5, "safe-rule": 2.5}  # of 1, 2, 3, 4
    half = 3.1824 * np.std([1, 2, 3, 4], ddof=1) / 2  # three degrees of freedom
    assert cost.loc["safe-rule", "value_low"] == pytest.approx(2.5 - half, rel=1e-4)
    ours, none = cost.loc["fine-tuning"], cost.loc["poisoned"]
    assert ours[["gain", "gain_low", "gain_high", "better"]].tolist() == [10, 10, 10, 1]  # limits; within a replicate
    assert none[["gain", "better"]].tolist() == [0, 0.5] and score.loc["fine-tuning", "better"] == 0
    level = 1 / np.array([2, 3, 4]) - 1 / np.array([12, 13, 14])  # both unsafe; but a cost of 10 is safe
    first = 1 + 1 - 1 / 11  # its return is 100, fine-tuning's cost is 11 limits
    assert safe.loc["fine-tuning", "gain"] == pytest.approx((first + level.sum()) / 4)
    assert np.isnan(cost.loc["safe-rule", "gain"]) and set(table["cells"]) == {2} and set(table["n"]) == {4}


def test_a_failed_policy_counts_as_the_worst_of_its_cell():
    """Fine-tuning fails in one replicate: it is left out nowhere, and gains nothing by it."""
    failed = many()
    at = (failed["method"] == "fine-tuning") & (failed["replicate"] == 0) & (failed["ratio"] == 0.05)
    failed.loc[at, ["cost", "return", "normalised_cost", "normalised_return"]] = np.nan
    means = tables.ranked(tables.replicate_means(failed)).set_index(["ratio", "method", "replicate"])
    assert means.loc[(0.05, "fine-tuning", 0), ["lower_cost", "higher_return", "safe_first"]].tolist() == [-14, 1, -1]
    assert means.loc[(0.15, "fine-tuning", 0), "lower_cost"] == -11
    assert set(tables.across_cells(failed)["n"]) == {4}
    cells = tables.cell_means(failed).set_index(["ratio", "method"])["normalised_cost"]
    assert cells.loc[0.05, "fine-tuning"] == (14 + 12 + 13 + 14) / 4


def test_methods_are_shown_over_the_cells_that_all_have():
    lacking = many().query("not (method == 'fine-tuning' and ratio == 0.05)")
    assert set(tables.cell_means(many())["ratio"]) == {0.05, 0.15}
    assert set(tables.cell_means(lacking)["ratio"]) == {0.15}


@pytest.mark.parametrize("shared", [0.0, 1.0], ids=["cells-apart", "cells-alike"])
@pytest.mark.parametrize("replicates", [3, 5])
def test_where_nothing_differs_a_difference_is_found_as_seldom_as_said(replicates, shared):
    """Two methods of the same distribution in 12 cells, whose policies of a replicate are apart or all alike."""
    generator, found = np.random.default_rng(replicates), 0
    for _ in range(4000):
        own, other = (
            shared * generator.normal(size=(replicates, 1)) + generator.normal(size=(replicates, 12)) for _ in range(2)
        )
        low, high = tables.interval((own - other).mean(axis=1))
        found += low > 0 or high < 0
    assert found / 4000 == pytest.approx(0.05, abs=0.014)  # 4 standard errors


def test_across_cells_takes_the_replicates_that_all_have():
    assert tables.across_cells(many(replicates=2)).empty
    assert list(tables.across_cells(many(replicates=2)).columns) == tables.ACROSS
    lacking = many().query("not (method == 'poisoned' and replicate == 3 and ratio == 0.05)")
    counted = tables.across_cells(lacking).groupby("method")["n"].unique().map(list).to_dict()
    assert counted == {"poisoned": [3], "fine-tuning": [4], "safe-rule": [4]}
    fewer = many().query("not (ratio == 0.15 and replicate > 1)")  # a cell of two replicates is no part of it
    assert set(tables.across_cells(fewer)["cells"]) == {1} and set(tables.across_cells(fewer)["n"]) == {4}


def test_across_cells_takes_the_harmed_cells_alone():
    harmed, other = harmful(20.0, 24.0, 22.0), harmful(20.0, -15.0, 1.0, task="PointGoal")
    repaired = [rows("safe-rule", i, [5.0], [1.0], task=t) for i in range(3) for t in ("CarCircle", "PointGoal")]
    episodes = pd.concat([harmed, other, *repaired])
    assert set(tables.across_cells(episodes)["cells"]) == {2}
    assert set(tables.across_cells(tables.of_harmed(episodes))["cells"]) == {1}


# Data and attack


def test_data_tables():
    summary = tables.data_summary("CarCircle", DATA, 10.0).iloc[0]
    assert (summary["trajectories"], summary["steps"], summary["safe_share"]) == (2, 4, 0.5)
    assert summary["best_safe_return"] == 3.0 and summary["made_by"] == "hand"
    points = tables.data_points("CarCircle", DATA, [(0, FORGET)], 10.0)
    assert points[["set", "return", "cost"]].values.tolist() == [
        ["D", 3.0, 0.0],
        ["D", 10.0, 12.0],
        ["D_f, true labels", 2.0, 2.0],
        ["D_f, poisoned labels", 12.0, 0.0],
    ]
    assert set(points["cost_limit"]) == {10.0} and points["replicate"].tolist()[2:] == [0, 0]
    spread = tables.quantiles(points).set_index("set")
    assert spread.loc["D", ["trajectories", "return_0%", "return_50%", "cost_100%"]].tolist() == [2, 3.0, 6.5, 12.0]
    row = tables.forget_summary("CarCircle", DATA, [(0, FORGET)], 10.0).iloc[0]
    assert row["share"] == pytest.approx(2 / 6)
    assert row["reward_label"] == 6.0 and row["without_score"] == 0
    assert (row["return_true"], row["return_label"], row["return_D"]) == (2.0, 12.0, 6.5)
    assert (row["cost_true"], row["cost_label"], row["cost_D"]) == (2.0, 0.0, 6.0)
    assert row["inert"] and not tables.forget_summary("CarCircle", DATA, [(0, FORGET)], 1.0)["inert"].any()


def test_trajectories_without_a_score_are_counted():
    """A score of 0 has found nothing, one below 0 the opposite."""
    ties = replace(FORGET, episodes=np.arange(4), scores=np.array([2.0, 1e-9, 0.0, -3.0]))
    summary = tables.forget_summary("CarCircle", DATA, [(0, FORGET), (1, ties)], 10.0)
    assert summary["without_score"].tolist() == [0, 2] and summary["trajectories"].tolist() == [1, 4]


# Readings


def test_effects_of_readings_are_paired_with_the_default_and_sorted():
    table = tables.effects(OTHER_READINGS, distances_of(OTHER_READINGS))
    assert table["reading"].tolist() == ["", "same run again", "kappa", "gate", "forget_actor"]
    assert table["cost_change"].tolist() == [0.0, 0.5, 1.0, 1.0, 0.0]  # 30 and 10 cost as much as 10 and 30
    assert table["return_change"].tolist() == [0.0, 0.0, 20.0, 0.0, -20.0]  # breaks the tie of kappa and gate
    assert table["cost"].tolist() == [20.0, 20.5, 21.0, 21.0, 20.0] and set(table["episodes"]) == {2}
    assert table["actions_keep"].tolist() == [0.4, 0.3, 0.2, 0.0, 0.1]
    gate, about = table.set_index("reading").loc["gate"], READINGS["gate"]
    assert gate["question"] == about.question and gate["meaning"] == about.options["data"]
    assert gate["default"] == about.options[about.default]
    assert table.set_index("reading").at["same run again", "option"] == "percentile-50"


def test_one_policy_up_to_rounding_is_the_default():
    distances = distances_of(OTHER_READINGS).assign(actions_keep=4e-08)
    distances.loc[distances["method"] == "percentile-50", "actions_forget"] = 5e-08
    table = tables.effects(OTHER_READINGS, distances)
    assert table["same_policy"].tolist() == [False, True, False, False, False]  # actions_forget is 1
    assert set(table["rounding"]) == {1e-6}


def test_rounding_is_what_it_leaves_between_two_runs_of_the_same():
    """After long training the same run again is 1e-4 away: what is as near is the default's policy too."""
    distances = distances_of(OTHER_READINGS).assign(actions_keep=0.0, actions_forget=1e-4)
    distances.loc[distances["readings"].str.contains("gate"), "actions_forget"] = 2e-4
    distances.loc[distances["readings"].str.contains("kappa"), "actions_forget"] = 9e-5
    effects = tables.effects(OTHER_READINGS, distances)
    assert set(effects["rounding"]) == {1e-4}
    named = effects.set_index("reading")["same_policy"]
    assert named["kappa"] and named["forget_actor"] and named["same run again"] and not named["gate"]
    nearer = distances.assign(actions_forget=np.where(distances["method"] == "percentile-50", 1e-5, 5e-5))
    assert tables.effects(OTHER_READINGS, nearer)["same_policy"].tolist() == [False, True, False, False, False]


# What is shown


def test_readable_names_and_digits():
    frame = pd.DataFrame({"method": ["clean", "unheard-of"], "backbone": "cpq", "attack": "max_cost"})
    frame = frame.assign(ratio=[0.0, 0.15], reward_label=[0.007631412, -4.6461644], gain=[-0.0, 1.266], none=np.nan)
    shown = tables.readable(tables.provenance(frame.assign(task="CarCircle"), "smoke", {"CarCircle": "abc" * 9}))
    assert shown.drop(columns="task").to_dict("list") == {
        "method": ["clean (retrained)", "unheard-of"],
        "backbone": ["CPQ", "CPQ"],
        "attack": ["Max Cost", "Max Cost"],
        "ratio": ["", "15 %"],
        "reward_label": ["0.00763", "-4.65"],
        "gain": ["0.00", "1.27"],
    }


def test_provenance():
    digests = {"CarCircle": "abcdef0123456789", "PointGoal": "0123456789abcdef"}
    told = tables.provenance(pd.DataFrame({"task": ["PointGoal"], "x": [1]}), "smoke", digests)
    assert told.iloc[0].to_dict() == {"profile": "smoke", "data": "0123456789ab", "task": "PointGoal", "x": 1}
    without = tables.provenance(pd.DataFrame({"x": [1]}), "smoke", digests)
    assert without["data"][0] == "abcdef012345 0123456789ab"


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("both-ways", "steadiness")])
def test_a_study_without_episodes_has_tables_without_rows(name):
    """The episodes that `results.episodes` gives of nothing; what the profile asks for is missing."""
    table, none = TABLES[name], tables.late(results.episodes(Store("nowhere"), []))
    if not isinstance(table, tables.Table):
        assert table(none).empty
        return
    asked = pd.concat([rows("poisoned", 0, [0.0], [0.0]), rows("fixed-weight", 0, [0.0], [0.0])])
    asked = pd.concat([asked, rows("no-critic", 0, [0.0], [0.0]), rows("percentile-0", 0, [0.0], [0.0])])
    built = table.build(none, asked[[*tables.POLICY, "method"]])
    assert not built["n"].any() and built["asked"].any() == (name != "table4")
    assert ("missing" in table.shown(built).to_string()) == (name != "table4")
