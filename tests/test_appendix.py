"""Appendix A on finished repairs: rows by hand, and on real small agents."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from critics_by_hand import KAPPA, LN2, SIGMA, cost_critic, four_samples, linear, softplus, stage
from helpers import random_dataset, tiny

from saferule.agents import BACKBONES, get_backbone
from saferule.agents.checkpoint import Agent, load_agent
from saferule.agents.population import create, member
from saferule.attack.poison import save_forget_set
from saferule.data.batches import TransitionPool
from saferule.data.schema import save
from saferule.report import appendix
from saferule.report.appendix import BALL, INEQUALITY, LEVELS, WHERE, ball_row, check, inequality_rows
from saferule.report.figures import FIGURES
from saferule.runs.engine import make
from saferule.runs.execute import InProcess
from saferule.runs.interruptible import AGENT, LOG
from saferule.runs.spec import AdversaryRun, ForgetRun, PolicyRun, frozen
from saferule.runs.store import Store
from saferule.runs.work import FORGET, Workspace
from saferule.unlearn.start import reward_targets

STEPS = 6
PLACE = dict(zip(WHERE[:5], ("CarCircle", "cpq", "max_cost", 0.15, 0), strict=True))

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
    row = inequality_rows(stage(linear((0.0, 0.0, KAPPA + SIGMA))), four_samples(), KAPPA, SIGMA)[-1]
    assert row["vacuous"] and row["bound"] == pytest.approx(1.38629, abs=1e-5)
    assert row["observed"] == 0.0 and row["sharper"] == pytest.approx(0.71159, abs=1e-5)


def test_certified_balls_by_hand():
    ball = ball_row(stage(cost_critic(10.0)), four_samples(), KAPPA, SIGMA)
    assert list(ball) == BALL and ball["samples"] == 4 and ball["nonempty"] == 0.75
    # Q_c - kappa is 2.5, 0.5, 0 and 4.5: divided by the smallest member's slope of 5, and as printed by the largest.
    assert ball["radius"] == pytest.approx(0.5) and ball["radius_max"] == pytest.approx(0.9)
    assert ball["printed"] == pytest.approx(0.25)
    assert ball["slope_bound"] == pytest.approx(10.0) and ball["slope_found"] == pytest.approx(5.0)
    assert ball["diameter"] == pytest.approx(math.sqrt(8)) and (ball["searched"], ball["violated"]) == (3, 0)
    assert ball["lowest"] == pytest.approx(0.0, abs=0.01)  # the certificate is tight for a linear critic


def test_no_ball_where_the_critic_calls_everything_safe():
    ball = ball_row(stage(linear((0.0, 1.0, 0.0))), four_samples(), KAPPA, SIGMA)
    assert ball["nonempty"] == ball["searched"] == 0 and math.isnan(ball["radius"]) and math.isnan(ball["lowest"])


# Samples and references


def test_samples_are_seeded_and_at_most_all():
    forget, keep = random_dataset(2, 0), random_dataset(3, 1)
    one, two, every = (appendix.draw_samples(forget, keep, count) for count in (5, 5, 999))
    assert torch.equal(one.actions, two.actions) and one.actions.shape == (5, 2) and len(one.keep) == 5
    assert len(every.actions) == len(forget) and len(every.keep) == len(keep)
    rows = {tuple(row) for row in np.hstack((forget.observations, forget.actions)).tolist()}
    assert {tuple(row) for row in torch.cat((every.observations, every.actions), 1).tolist()} == rows


def test_reference_is_the_percentile_of_the_bellman_targets():
    cfg = tiny("cpq")
    population = create(get_backbone("cpq"), cfg, [0])
    agent = Agent("CarCircle", get_backbone("cpq"), cfg, member(population.nets, 0), population, {})
    keep = random_dataset(4, 0)
    low, median, high = (appendix.reward_reference(agent, keep, p) for p in (0.0, 0.5, 1.0))
    pool = TransitionPool([keep], cfg.reward_scale)
    y_r = reward_targets(agent.backbone, agent.nets, cfg, pool, pool.rows_of(0))
    assert (low, high) == (y_r.min().item(), y_r.max().item()) and low < median < high
    assert (y_r < median).float().mean().item() == pytest.approx(0.5, abs=0.03)


# Real agents, before, during and after


@pytest.fixture(scope="module")
def repaired(tmp_path_factory, car_data, car_forget):
    """A workspace and the Safe-RULE repair of a tiny policy of each backbone; the last again without a snapshot."""
    root = tmp_path_factory.mktemp("theory")
    save(car_data, root / "data" / "CarCircle.hdf5")
    workspace = Workspace(Store(root / "store"), root / "data", "cpu")
    forget = ForgetRun(AdversaryRun("CarCircle", "max_cost", 1000), car_data.digest(), 0.15, 2, 0.99, ())
    with workspace.store.write(forget) as folder:
        save_forget_set(car_forget, folder / FORGET)
    sizes = frozen(hidden=(8, 8), vae_hidden=8, batch_size=8, samples=3)
    starts = [
        PolicyRun("CarCircle", b, car_data.digest(), forget, "poisoned", STEPS, 0, config=sizes) for b in BACKBONES
    ]
    repairs = [replace(start, start=start, method="safe-rule", snapshots=1) for start in starts]
    repairs.append(replace(repairs[2], snapshots=0))
    make(repairs, workspace, InProcess(), say=lambda line: None)
    return workspace, repairs


@pytest.fixture(scope="module")
def checks(repaired):
    workspace, repairs = repaired
    return check(workspace, repairs[:4], repairs[:2])


def test_every_stage_of_every_repair_with_critics(checks):
    rows = checks.inequalities
    assert list(rows.columns) == WHERE + INEQUALITY
    stages = rows.drop_duplicates(["backbone", "stage"])[["backbone", "stage", "step"]]
    assert list(stages.itertuples(index=False, name=None)) == [
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
    assert list(checks.balls.columns) == WHERE + BALL
    assert (checks.balls["slope_found"] <= checks.balls["slope_bound"]).all()


def test_a_row_repeats_from_the_saved_critics(repaired, checks, car_forget):
    workspace, repairs = repaired
    agent, forget = load_agent(workspace.store.folder(repairs[2]) / AGENT), car_forget.dataset
    states, actions = torch.from_numpy(forget.observations), torch.from_numpy(forget.actions)
    with torch.no_grad():
        values = agent.backbone.q_reward(agent.nets, states, actions)
    row = checks.inequalities.query("backbone == 'cpq' and stage == 'after' and inequality == '(14)'").iloc[0]
    excess = (values.amin(0) - row["reference"]).clamp_min(0).mean().item()
    assert row["samples"] == len(forget) < 2048 and row["observed"] == pytest.approx(excess, rel=1e-4, abs=1e-7)


def test_during_unlearning_the_reference_is_the_logged_one(repaired, checks):
    workspace, repairs = repaired
    log = pd.read_csv(workspace.store.folder(repairs[0]) / LOG).set_index("step")["reward_reference"]
    row = checks.inequalities.query("backbone == 'bcq-lag' and stage == 'during'").iloc[0]
    assert row["reference"] == log[STEPS // 2]


def test_many_repairs_are_checked_in_other_processes(repaired, checks, monkeypatch):
    workspace, repairs = repaired
    monkeypatch.setattr(appendix, "FEW", 0)
    found = check(workspace, repairs[:2], repairs[:2])
    expected = checks.inequalities[checks.inequalities["backbone"] != "cpq"]
    pd.testing.assert_frame_equal(found.inequalities, expected)
    pd.testing.assert_frame_equal(found.balls, checks.balls)


def test_without_snapshots_before_and_after_are_left_and_without_critics_nothing(repaired):
    workspace, repairs = repaired
    found = check(workspace, repairs[4:], [])
    assert found.inequalities["stage"].unique().tolist() == ["before", "after"] and found.balls.empty
    found = check(workspace, repairs[3:4], repairs[3:4])
    assert found.inequalities.empty and list(found.inequalities.columns) == WHERE + INEQUALITY
    assert appendix.short_inequalities(found.inequalities).empty and appendix.short_balls(found.balls).empty
    assert not list(FIGURES["theory-bounds"].figures(found.inequalities))


# What is shown


def by_hand(target):
    """Rows of two stages: a critic far below kappa, then `cost_critic` at ``target``."""
    inequalities, balls = [], []
    for name, step, critic in (("before", 0, cost_critic(-20.0)), ("after", 9, cost_critic(target))):
        told, here = PLACE | {"stage": name, "step": step}, stage(critic)
        inequalities += [told | row for row in inequality_rows(here, four_samples(), KAPPA, SIGMA)]
        balls.append(told | ball_row(here, four_samples(), KAPPA, SIGMA))
    return pd.DataFrame(inequalities), pd.DataFrame(balls)


def test_short_tables_count_policies():
    inequalities, balls = by_hand(10.0)
    twice = pd.concat([inequalities, inequalities.assign(replicate=1)])
    short = appendix.short_inequalities(twice).set_index(["stage", "inequality"])
    assert set(short["policies"]) == {2} and (short["violated"] == 0).all() and len(short) == 8
    safe = short.xs("(19)", level="inequality")
    assert safe["vacuous"].to_dict() == safe["vacuous_sharper"].to_dict() == {"before": 2, "after": 0}
    assert safe.loc["after", "observed"] == 0.25 and safe.loc["after", "bound"] == pytest.approx(0.906, abs=1e-3)
    assert safe.loc["after", "tightness"] == pytest.approx(0.25 / 0.906, abs=1e-3)
    broken = inequalities.assign(holds=[*inequalities["holds"][:-1], False])
    assert appendix.short_inequalities(broken)["violated"].sum() == 1
    three = pd.concat([balls, balls.assign(replicate=1), balls.assign(replicate=2, radius=math.nan, violated=1)])
    short = appendix.short_balls(three).set_index("stage")
    assert short["nonempty"].tolist() == [0, 0.75] and short["policies"].tolist() == [3, 3]
    assert short["with_ball"].tolist() == [0, 2] and short["radius"].iloc[1] == pytest.approx(0.5)
    assert short["searched"].tolist() == [0, 9] and short["violated"].tolist() == [1, 1]


def test_numbers_in_the_derivations_of_the_notebook():
    source = (Path(__file__).resolve().parent.parent / "notebooks" / "theory.ipynb").read_text(encoding="utf-8")
    on_target, needed = LN2 / softplus(SIGMA), -math.log(math.expm1(SIGMA))
    assert f"{LN2:.3f} / {softplus(SIGMA):.3f} = {on_target:.3f}$" in source
    assert f"the bound is ${LN2 / SIGMA:.3f}$" in source and f"more than ${needed:.3f}$ above the target" in source
    assert f"{appendix.SAMPLES:,} transitions" in source and f"the first {appendix.BALLS} of these" in source


def test_figures_show_the_rows():
    inequalities, balls = by_hand(10.0)
    (_, during), *_ = FIGURES["theory-bounds"].figures(inequalities)
    cost = inequalities[inequalities["inequality"] == "(19)"]
    drawn = [list(line.get_ydata()) for line in during.axes[1].lines]
    assert all(cost[side].tolist() in drawn for side in ("observed", "bound", "sharper"))
    (_, tails), *_ = FIGURES["theory-tails"].figures(inequalities)
    after = inequalities[(inequalities["inequality"] == "(15)") & (inequalities["stage"] == "after")]
    assert after["observed"].tolist() in [list(line.get_ydata()) for line in tails.axes[1].lines]
    (_, around), *_ = FIGURES["theory-neighbourhood"].figures(balls)
    assert [0.0, 0.75] in [list(line.get_ydata()) for line in around.axes[0].lines]
    assert len(around.axes) == 3


def test_a_constant_critic_meets_one_where_the_bounds_begin_to_say_something():
    rows = appendix.constant_critic(SIGMA)
    left, right = (part for _, part in rows.groupby("against", sort=False))
    assert np.interp(SIGMA, left["x"], left["bound"]) == pytest.approx(1.386, abs=2e-3)
    assert np.interp(SIGMA, left["x"], left["sharper"]) == pytest.approx(0.71159, abs=5e-4)
    assert np.interp(0.0, left["x"], left["sharper"]) == pytest.approx(1.0, abs=1e-3)  # any Q_c above kappa
    assert np.interp(LN2, right["x"], right["bound"]) == pytest.approx(1.0, abs=1e-3)
    assert len(list(FIGURES["theory-constant-critic"].figures(rows))) == 1
