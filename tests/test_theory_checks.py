"""Appendix A on finished repairs: rows by hand, and on real small agents."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from critics_by_hand import KAPPA, LN2, SIGMA, cost_critic, four_samples, linear, softplus, stage
from helpers import random_dataset, tiny

from saferule.agents import get_backbone
from saferule.agents.checkpoint import Agent, load_agent
from saferule.agents.population import create, member
from saferule.attack.poison import save_forget_set
from saferule.data.schema import save
from saferule.report import theory_words as words
from saferule.runs import theory_checks
from saferule.runs.cells import Adversary, Forget, Training, Unlearning, settings
from saferule.runs.engine import Engine
from saferule.runs.interruptible import AGENT
from saferule.runs.store import Store
from saferule.runs.theory_checks import (
    BALL,
    CELL,
    FACTORS,
    INEQUALITY,
    LEVELS,
    SEARCH,
    ball_rows,
    check,
    draw_samples,
    inequality_rows,
    reward_reference,
)
from saferule.unlearn.start import reward_targets

STEPS = 6
BACKBONES = ("bcq-lag", "bear-lag", "cpq", "coptidice")


# By hand


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
    from saferule.data.batches import TransitionPool

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
