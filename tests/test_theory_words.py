"""Appendix A on finished repairs: what is drawn and said about rows made by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from critics_by_hand import KAPPA, LN2, SIGMA, cost_critic, four_samples, softplus, stage

from saferule.profiles import get_profile
from saferule.report import theory as report
from saferule.report import theory_words as words
from saferule.runs import theory_checks
from saferule.runs.inventory import ablated
from saferule.runs.theory_checks import CELL, FACTORS, SEARCH, ball_rows, inequality_rows


def by_hand(target: float) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows of two stages: a critic far below kappa, then `cost_critic` at ``target``."""
    where = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15, "training_seed": 0}
    inequalities, balls, searches = [], [], []
    for name, step, critic in (("before", 0, cost_critic(-20.0)), ("after", 9, cost_critic(target))):
        told, here = where | {"stage": name, "step": step}, stage(critic)
        inequalities += [told | row for row in inequality_rows(here, four_samples(), KAPPA, SIGMA)]
        ball, found = ball_rows(here, four_samples(), KAPPA, SIGMA)
        balls.append(told | ball)
        searches += [told | row for row in found]
    return pd.DataFrame(inequalities), pd.DataFrame(balls), pd.DataFrame(searches, columns=CELL + SEARCH)


def test_words_for_a_bound_that_says_something():
    told = words.in_words(*by_hand(10.0), ["cpq", "coptidice"])
    assert "COptiDICE: no Q critics" in told
    assert "22 inequalities were evaluated on the critics of 1 repaired policy: every one holds." in told
    assert "vacuous (eps_c >= sigma) for 1 of 1 before, 0 of 1 after unlearning" in told
    assert "the sharper one for 1 of 1 before, 0 of 1 after." in told and "says nothing about any" not in told
    assert "at u = 2 it allows 53.3 % (sharper: 50.1 %) where 25 % are found" in told  # eps_r = 1.07
    assert "eps_c is 0.453 with sigma = 0.5: (19) allows 90.6 %, the sharper bound allows 46.5 %, and 25 %" in told
    assert "3 certified balls were searched for an action that Q_c calls safe: none was found" in told
    assert (
        "Confined to the actions of the box, the same search finds one in 66.7 % of the balls 2 times as wide, in "
        "66.7 % of the balls 5 times as wide (66.7 % of them hold the whole box), in 66.7 % of the balls 20 times as "
        "wide (100 % of them hold the whole box) and for 66.7 % of the samples with a ball where every action of the "
        "box is allowed.\n"
    ) in told
    assert "75 % of the poisoned actions have a ball after unlearning, with a median radius of 17.7 %" in told
    assert "of the box's diameter (as printed 8.84 %); the product of spectral norms is 2 times the steepest" in told


def test_words_for_wider_balls_with_few_or_no_violations():
    searches = by_hand(10.0)[2].assign(violated=[0, 0, 1, 0, 0], whole=[0, 0, 0, 3, 3])
    told = words.in_words(*by_hand(10.0)[:2], searches, ["cpq"])
    assert (
        "finds none in the balls 2 times as wide, in the balls 20 times as wide (100 % of them hold the whole box) "
        "and among all actions of the box; and one in 33.3 % of the balls 5 times as wide.\n"
    ) in told
    told = words.in_words(*by_hand(10.0)[:2], searches.assign(violated=0), ["cpq"])
    assert "finds none in the balls 2 times" in told and "0 % of the balls" not in told and "and one" not in told


def test_words_where_only_certified_balls_were_searched():
    inequalities, balls, searches = by_hand(10.0)
    during = searches.iloc[:1].assign(stage="during", searched=1)
    told = words.in_words(inequalities, balls, during, ["cpq"])
    assert "- 1 certified ball was searched for an action that Q_c calls safe: none was found.\n" in told
    assert "same search" not in told


def test_words_for_policies_of_which_a_bound_says_something_for_some():
    one = by_hand(10.0)[0]
    two = one.assign(training_seed=1)
    after = two["stage"] == "after"
    two.loc[after & (two["inequality"] == "(15)"), "vacuous"] = True
    two.loc[after & (two["inequality"] == "(14)"), "residual"] = 3.0
    told = words.in_words(pd.concat([one, two]), pd.DataFrame(), pd.DataFrame(), ["cpq"])
    assert "eps_r went from 1.07 to 2.03 (1.07 to 3), and the mean excess that it bounds is 0.75;" in told
    assert "at u = 2, where it says something for 1 of 2 policies, it allows 53.3 %" in told
    assert "44 inequalities were evaluated on the critics of 2 repaired policies" in told


def test_words_for_bounds_that_say_nothing():
    told = words.in_words(*by_hand(-5.0), ["cpq"])
    assert "**(19) is vacuous**, the sharper bound says nothing either, and 100 %" in told
    assert "No forget sample has a certified ball at any stage: Eq. 23-25 say nothing here." in told
    assert "**nothing is certified**" in told
    assert "**Lemma A.2 as printed says nothing about any repaired policy here.**" in told
    assert "COptiDICE" not in told


def test_short_tables():
    inequalities, balls, searches = by_hand(10.0)
    twice = [pd.concat([rows, rows.assign(training_seed=1)]) for rows in (inequalities, balls, searches)]
    table = words.short_inequalities(words.with_tightness(twice[0]))
    assert table["inequality"].tolist() == ["(14)", "(15)", "(15)", "(19)"] * 2 and (table["policies"] == 2).all()
    after = table.iloc[7]
    assert after["observed"] == 0.25 and after["tightness"] == pytest.approx(0.25 / after["bound"])
    assert table["vacuous"].tolist() == [0, 2, 0, 2, 0, 2, 0, 0] and (table["violated"] == 0).all()
    short = words.short_balls(pd.concat([twice[1], balls.assign(training_seed=2, radius=math.nan)]))
    assert short["nonempty"].tolist() == [0, 0.75] and short["policies"].tolist() == [3, 3]
    assert short["with_ball"].tolist() == [0, 2] and short["radius"].iloc[1] == pytest.approx(0.5)
    found = words.short_searches(twice[2])
    assert found["searched"].tolist() == [6] * len(FACTORS) and found["violated"].tolist() == [0, 4, 4, 4, 4]
    assert found["whole"].tolist() == [0, 0, 4, 6, 6]


def test_a_table_without_rows_is_a_sentence():
    balls = by_hand(10.0)[1]
    assert list(words.table_or_sentence(words.short_balls(balls), 4, "nothing")["with_ball"]) == [0, 1]
    empty = words.table_or_sentence(words.short_balls(balls.iloc[:0]), 4, words.NO_CRITICS)
    assert empty.data == words.NO_CRITICS


def test_what_is_checked_names_the_condition_and_the_sizes():
    profile = get_profile("smoke", attacks=["min_reward"], ratios=[0.05, 0.15])
    told = words.what_is_checked(ablated(profile))
    assert "policies of the ablations (Min Reward 5 %)" in told and "Max Cost" not in told
    assert f"{theory_checks.SAMPLES:,} transitions" in told and f"first {theory_checks.BALLS} of these" in told
    assert r"$\kappa = 10$ and $\sigma = 0.5$" in told
    assert "balls 2, 5 and 20 times as wide" in words.how_searched()


def test_numbers_in_the_derivations_of_the_notebook():
    source = (Path(__file__).resolve().parent.parent / "notebooks" / "theory.ipynb").read_text(encoding="utf-8")
    on_target, needed = LN2 / softplus(SIGMA), -math.log(math.expm1(SIGMA))
    assert f"{LN2:.3f} / {softplus(SIGMA):.3f} = {on_target:.3f}$" in source
    assert f"the bound is ${LN2 / SIGMA:.3f}$" in source and f"more than ${needed:.3f}$ above the target" in source


def test_words_for_an_error():
    inequalities, balls, searches = by_hand(10.0)
    inequalities.loc[3, "holds"] = False
    searches.loc[0, "violated"] = 2
    told = words.in_words(inequalities, balls, searches, ["cpq"])
    assert "**for 1 this fails, which is an error**" in told and "**in 2 one was found, which is an error**" in told


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 %"), (0.0004, "less than 0.1 %"), (0.9999, "more than 99.9 %"), (1, "100 %"), (12.34, "1,230 %")],
)
def test_shares_are_not_rounded_away(value, shown):
    assert words.percent(value) == shown


def test_numbers_and_ranges():
    assert [words.number(v) for v in (12345, 0.69314, 10.5, 0, 1e-7)] == ["12,300", "0.693", "10.5", "0", "~0"]
    assert words.span(pd.Series([0.4, 3.2])) == "0.4 to 3.2" and words.span(pd.Series([2.0])) == "2"
    assert words.middle(pd.Series([0.4, 3.2])) == "1.8 (0.4 to 3.2)" and words.middle(pd.Series([2.0])) == "2"


def test_figures_show_the_rows():
    inequalities, balls, searches = by_hand(10.0)
    during = report.bounds_during_unlearning(inequalities, "title")
    assert during.get_label() == "title" and len(during.axes) == 2
    cost = inequalities[inequalities["inequality"] == "(19)"]
    drawn = [np.asarray(line.get_ydata()).tolist() for line in during.axes[1].lines]
    for column in ("observed", "bound", "sharper"):
        assert cost[column].tolist() in drawn
    tails = report.tails(inequalities, "title")
    after = inequalities[(inequalities["inequality"] == "(15)") & (inequalities["stage"] == "after")]
    assert after["observed"].tolist() in [np.asarray(line.get_ydata()).tolist() for line in tails.axes[1].lines]
    around = report.neighbourhood(balls, searches, "title")
    assert len(around.axes) == 4 and [2 / 3] * 4 == list(around.axes[3].lines[0].get_ydata())[1:]
    empty = report.neighbourhood(*by_hand(-5.0)[1:], "title")
    assert [text.get_text() for text in empty.axes[3].texts] == ["no ball to search"]


def test_figure_of_a_constant_critic_meets_one_where_the_bounds_begin_to_say_something():
    left, right = report.bounds_for_a_constant_critic(SIGMA).axes
    (_, printed, sharper), (printed_on_target, *_) = left.lines[:3], right.lines
    above = printed.get_xdata()
    assert np.interp(SIGMA, above, printed.get_ydata()) == pytest.approx(1.386, abs=2e-3)
    assert np.interp(SIGMA, above, sharper.get_ydata()) == pytest.approx(0.71159, abs=5e-4)
    assert np.interp(0.0, above, sharper.get_ydata()) == pytest.approx(1.0, abs=1e-3)  # any Q_c above kappa
    assert np.interp(LN2, printed_on_target.get_xdata(), printed_on_target.get_ydata()) == pytest.approx(1.0, abs=1e-3)
