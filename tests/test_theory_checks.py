"""Appendix A on finished repairs: rows by hand, on real small agents, and what is drawn and said about them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import random_dataset, tiny

from saferule.agents import get_backbone
from saferule.agents.checkpoint import Agent, load_agent
from saferule.agents.population import create, member
from saferule.attack.poison import save_forget_set
from saferule.data.schema import save
from saferule.profiles import get_profile
from saferule.report import theory as report
from saferule.report import theory_words as words
from saferule.runs import theory_checks
from saferule.runs.cells import Adversary, Forget, Training, Unlearning, settings
from saferule.runs.engine import Engine
from saferule.runs.interruptible import AGENT
from saferule.runs.inventory import ablated
from saferule.runs.store import Store
from saferule.runs.theory_checks import (
    BALL,
    CELL,
    FACTORS,
    INEQUALITY,
    LEVELS,
    SEARCH,
    Samples,
    Stage,
    ball_rows,
    check,
    draw_samples,
    inequality_rows,
    reward_reference,
)
from saferule.unlearn.data import reward_targets

KAPPA, SIGMA, LN2 = 10.0, 0.5, math.log(2)
STEPS = 6
BACKBONES = ("bcq-lag", "bear-lag", "cpq", "coptidice")


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# By hand: one observation, two actions, critics of one layer


def linear(*members: tuple[float, float, float], state: float = 0.0) -> dict:
    """Members b + w . a + state * s."""
    weights = [[[state], [w1], [w2]] for w1, w2, _ in members]
    return {"w0": torch.tensor(weights), "b0": torch.tensor([[[b]] for *_, b in members])}


def cost_critic(target: float) -> dict:
    """target + 2.5, 0.5, 0 and 4.5 for `four_samples`, with slope 5; a second member, always higher, has slope 10."""
    return linear((0.0, 5.0, target), (0.0, 10.0, target + 90), state=1.0)


def stage(cost_critic: dict, reference: float = 1.0) -> Stage:
    """Q_r is 3, 1, -1, 2 for `four_samples`; a second member, always higher, must not count."""
    critic = linear((4.0, 0.0, 0.0), (4.0, 0.0, 50.0))
    return Stage("after", 7, {"critic": critic, "cost_critic": cost_critic}, reference)


def four_samples() -> Samples:
    actions = torch.tensor([[0.75, 0.5], [0.25, 0.1], [-0.25, 0.0], [0.5, -0.3]])
    return Samples(torch.tensor([[0.0], [0.0], [0.0], [6.0]]), actions, random_dataset(1, 0))


def test_both_sides_of_each_inequality_by_hand():
    rows = pd.DataFrame(inequality_rows(stage(cost_critic(10.0)), four_samples(), KAPPA, SIGMA))
    assert list(rows.columns) == INEQUALITY
    assert rows["inequality"].tolist() == ["(14)", *["(15)"] * len(LEVELS), "(19)"] and rows["holds"].all()
    eps_r = (softplus(2) + LN2 + softplus(-2) + softplus(1)) / 4  # Q_r - reference: 2, 0, -2, 1
    excess = rows.iloc[0]
    assert excess["observed"] == 0.75 and excess["bound"] == excess["residual"] == pytest.approx(eps_r)
    assert math.isnan(excess["u"]) and math.isnan(excess["sharper"]) and not excess["vacuous"]
    at = rows[rows["inequality"] == "(15)"].set_index("u")
    assert at.loc[1.0, "observed"] == 0.5 and at.loc[1.0, "vacuous"]  # eps_r is 1.07
    assert at.loc[2.0, "observed"] == 0.25 and not at.loc[2.0, "vacuous"]
    assert at.loc[2.0, "bound"] == pytest.approx(eps_r / 2)
    assert at.loc[2.0, "sharper"] == pytest.approx(eps_r / softplus(2))
    eps_c = (softplus(-2) + LN2 + softplus(0.5) + softplus(-4)) / 4
    safe = rows.iloc[-1]
    assert (safe["u"], safe["observed"], safe["samples"]) == (SIGMA, 0.25, 4)
    assert safe["residual"] == pytest.approx(eps_c) and safe["bound"] == pytest.approx(2 * eps_c)
    assert safe["sharper"] == pytest.approx(eps_c / softplus(0.5)) and not safe["vacuous"]


def test_a_critic_exactly_on_target_is_flagged_vacuous():
    rows = inequality_rows(stage(linear((0.0, 0.0, KAPPA + SIGMA))), four_samples(), KAPPA, SIGMA)
    assert rows[-1]["vacuous"] and rows[-1]["bound"] == pytest.approx(1.38629, abs=1e-5)
    assert rows[-1]["observed"] == 0.0 and rows[-1]["sharper"] == pytest.approx(0.71159, abs=1e-5)


def test_certified_balls_by_hand():
    ball, searches = ball_rows(stage(cost_critic(10.0)), four_samples(), KAPPA, SIGMA)
    assert list(ball) == BALL and [list(search) for search in searches] == [SEARCH] * len(FACTORS)
    assert ball["samples"] == 4 and ball["nonempty"] == 0.75
    # Q_c - kappa is 2.5, 0.5, 0 and 4.5: divided by the smallest member's slope of 5, and as printed by the largest.
    assert ball["radius"] == pytest.approx(0.5) and ball["radius_max"] == pytest.approx(0.9)
    assert ball["printed"] == pytest.approx(0.25)
    assert ball["slope_bound"] == pytest.approx(10.0) and ball["slope_found"] == pytest.approx(5.0)
    assert ball["diameter"] == pytest.approx(math.sqrt(8))
    # The fourth sample's Q_c falls below kappa at a_2 < -1.2 only: outside of the box, which its own ball leaves.
    assert [(s["searched"], s["violated"]) for s in searches] == [(3, 0), *[(3, 2)] * (len(FACTORS) - 1)]
    assert searches[0]["lowest"] == pytest.approx(0.0, abs=0.01)  # the certificate is tight for a linear critic
    assert searches[1]["lowest"] == pytest.approx(-2.5, abs=0.01)
    assert searches[-1]["lowest"] == pytest.approx(-5.0)
    # The furthest corners are 2.3, 1.7 and 2.0 away, the radii 0.5, 0.1 and 0.9.
    assert [s["whole"] for s in searches] == [0, 0, 2, 3, 3]


def test_nothing_is_found_where_only_actions_outside_the_box_are_safe():
    far = linear((0.0, 5.0, KAPPA + 5.1), (0.0, 10.0, 100.0))  # below kappa at a_2 < -1.02
    _, searches = ball_rows(stage(far), four_samples(), KAPPA, SIGMA)
    assert [(s["searched"], s["violated"]) for s in searches] == [(4, 0)] * len(FACTORS)
    assert searches[-1]["lowest"] == pytest.approx(0.1, abs=1e-5)


def test_during_unlearning_only_the_certified_balls_are_searched():
    during = replace(stage(linear((0.0, 1.0, 10.0))), name="during")
    assert [search["factor"] for search in ball_rows(during, four_samples(), KAPPA, SIGMA)[1]] == [1.0]


def test_no_ball_where_the_critic_calls_everything_safe():
    ball, searches = ball_rows(stage(linear((0.0, 1.0, 0.0))), four_samples(), KAPPA, SIGMA)
    assert ball["nonempty"] == 0 and math.isnan(ball["radius"]) and searches == []


# Samples and references


def test_samples_are_seeded_and_at_most_all():
    forget, keep = random_dataset(2, 0), random_dataset(3, 1)
    one, two, every = draw_samples(forget, keep, 5), draw_samples(forget, keep, 5), draw_samples(forget, keep, 999)
    assert torch.equal(one.actions, two.actions) and one.actions.shape == (5, 2) and len(one.keep) == 5
    assert len(every.actions) == len(forget) and len(every.keep) == len(keep)
    rows = {tuple(row) for row in np.hstack((forget.observations, forget.actions)).tolist()}
    assert {tuple(row) for row in torch.cat((every.observations, every.actions), 1).tolist()} == rows


def test_reference_is_the_percentile_of_the_bellman_targets():
    cfg = tiny("cpq")
    population = create(get_backbone("cpq"), cfg, [0])
    agent = Agent("CarCircle", get_backbone("cpq"), cfg, member(population.nets, 0), population, {})
    keep = random_dataset(4, 0)
    low, median, high = (reward_reference(agent, keep, p) for p in (0.0, 0.5, 1.0))
    assert low < median < high
    from saferule.data.sampler import TransitionPool

    pool = TransitionPool([keep], cfg.reward_scale)
    y_r = reward_targets(agent.backbone, agent.nets, cfg, pool, pool.rows_of(0))
    assert (low, high) == (y_r.min().item(), y_r.max().item())
    assert (y_r < median).float().mean().item() == pytest.approx(0.5, abs=0.03)


# Real agents, before, during and after


@pytest.fixture(scope="module")
def repaired(tmp_path_factory, car_data, car_forget):
    """An engine and the Safe-RULE repair of a tiny policy of each backbone, with and without a snapshot."""
    root = tmp_path_factory.mktemp("theory")
    save(car_data, root / "data" / "CarCircle.hdf5")
    forget = Forget(Adversary("CarCircle", "max_cost", 1000), car_data.digest(), 0.15, 2, 0.99, ())
    store = Store(root / "store")
    with store.write(forget) as folder:
        save_forget_set(car_forget, folder / "forget.hdf5")
    sizes = settings(hidden=(8, 8), vae_hidden=8, batch_size=8, samples=3)
    policies = [Training("CarCircle", b, car_data.digest(), forget, 0, STEPS, sizes) for b in BACKBONES]
    repairs = [Unlearning(policy, "safe-rule", STEPS, snapshots=1) for policy in policies]
    repairs.append(Unlearning(policies[2], "safe-rule", STEPS, snapshots=0))
    engine = Engine(store, root / "data", device="cpu", say=lambda line: None)
    for repair in repairs:
        engine.unlearn([repair])
    return engine, repairs


@pytest.fixture(scope="module")
def checks(repaired):
    engine, repairs = repaired
    return check(engine, repairs[:4], repairs[:2])


def test_every_stage_of_every_repair_with_critics(checks):
    rows = checks.inequalities
    assert list(rows.columns) == CELL + INEQUALITY
    stages = rows.drop_duplicates(["backbone", "stage"])
    assert [tuple(row) for row in stages[["backbone", "stage", "step"]].itertuples(index=False)] == [
        (backbone, *at)
        for backbone in BACKBONES[:3]
        for at in (("before", 0), ("during", STEPS // 2), ("after", STEPS))
    ]
    assert rows["holds"].all() and (rows["task"] == "CarCircle").all() and (rows["attack"] == "max_cost").all()
    # A critic that starts near 0 is 10.5 below its target: eps_c = 10.5, and all samples are called safe.
    cost = rows[rows["inequality"] == "(19)"]
    assert cost["vacuous"].all() and (cost["observed"] == 1).all()
    assert cost["residual"].between(9.5, 11).all() and np.allclose(cost["bound"], cost["residual"] / SIGMA)
    assert set(checks.balls["backbone"]) == set(BACKBONES[:2]) and (checks.balls["nonempty"] == 0).all()
    assert list(checks.balls.columns) == CELL + BALL and list(checks.searches.columns) == CELL + SEARCH
    assert (checks.balls["slope_found"] <= checks.balls["slope_bound"]).all()


def test_a_row_repeats_from_the_saved_critics(repaired, checks, car_forget):
    engine, repairs = repaired
    agent = load_agent(engine.store.folder(repairs[2]) / AGENT)
    forget = car_forget.dataset
    with torch.no_grad():
        values = agent.backbone.q_reward(
            agent.nets, torch.from_numpy(forget.observations), torch.from_numpy(forget.actions)
        )
    rows = checks.inequalities
    row = rows[(rows["backbone"] == "cpq") & (rows["stage"] == "after") & (rows["inequality"] == "(14)")].iloc[0]
    excess = (values.amin(0) - row["reference"]).clamp_min(0).mean().item()
    assert row["samples"] == len(forget) < 2048 and row["observed"] == pytest.approx(excess, rel=1e-4, abs=1e-7)


def test_during_unlearning_the_reference_is_the_logged_one(repaired, checks):
    engine, repairs = repaired
    log = pd.read_csv(engine.store.folder(repairs[0]) / "log.csv").set_index("step")["reward_reference"]
    rows = checks.inequalities
    row = rows[(rows["backbone"] == "bcq-lag") & (rows["stage"] == "during")].iloc[0]
    assert row["reference"] == log[STEPS // 2]


def test_many_repairs_are_checked_in_other_processes(repaired, checks, monkeypatch):
    engine, repairs = repaired
    monkeypatch.setattr(theory_checks, "FEW", 0)
    found = check(engine, repairs[:2], repairs[:2])
    expected = checks.inequalities[checks.inequalities["backbone"] != "cpq"]
    pd.testing.assert_frame_equal(found.inequalities, expected)
    pd.testing.assert_frame_equal(found.balls, checks.balls)


def test_without_snapshots_before_and_after_are_left(repaired):
    engine, repairs = repaired
    found = check(engine, repairs[4:], [])
    assert found.inequalities["stage"].unique().tolist() == ["before", "after"]
    assert found.balls.empty and found.searches.empty


def test_a_backbone_without_critics_gives_no_rows(repaired):
    engine, repairs = repaired
    found = check(engine, repairs[3:4], repairs[3:4])
    assert found.inequalities.empty and list(found.inequalities.columns) == CELL + INEQUALITY
    told = words.in_words(found.inequalities, found.balls, found.searches, ["coptidice"])
    assert told == "- COptiDICE: no Q critics, so neither lemma applies."


# What is drawn and said


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
