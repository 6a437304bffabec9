"""The training loop: what is logged, and what happens to an agent whose values are not finite."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import Sampled, assert_same_state, frozen, tiny

from saferule.agents import get_backbone
from saferule.agents.loop import Log, keep_freed_memory, run
from saferule.agents.population import create, training

SEEDS = [4, 5, 6]
CFG = tiny("bcq-lag")
BACKBONE = get_backbone("bcq-lag")
ORDINARY = training(BACKBONE, CFG)


def train(seeds=SEEDS, steps=20, draw=None, algorithm=ORDINARY, start=None, **options):
    """Population, left agents, log and {agent: Diverged} of a run."""
    log, stopped = Log(), {}
    options = {"log_every": 5, "log": log, "on_stop": stopped.__setitem__} | options
    start = start or create(BACKBONE, CFG, seeds)
    population, agents = run(start, algorithm, draw or Sampled(CFG), steps, **options)
    return population, agents, log, stopped


def assert_as_alone(population, *seeds):
    """What is left of a population is what the agents of these seeds become without the others."""
    assert_same_state(frozen(train(seeds=seeds)[0]), frozen(population), 1e-5)


class Poisoned(Sampled):
    """Gives some agents NaN rewards in one step (counted from 1)."""

    def __init__(self, bad: dict[int, int]) -> None:
        super().__init__(CFG)
        self.bad = bad

    def __call__(self, population, agents):
        batch = super().__call__(population, agents)
        now = torch.tensor([self.bad.get(agent) == population.step + 1 for agent in agents])
        return batch._replace(rewards=batch.rewards.masked_fill(now.unsqueeze(1), math.nan))


def test_logged_steps():
    called = []
    population, agents, log, stopped = train(
        steps=12, log_also={7}, on_log=lambda now, left: called.append((now.step, list(left)))
    )
    assert called == [(5, [0, 1, 2]), (7, [0, 1, 2]), (10, [0, 1, 2]), (12, [0, 1, 2])]
    assert [(row["step"], row["agent"]) for row in log.rows] == [(s, a) for s in (5, 7, 10, 12) for a in range(3)]
    assert {"vae_loss", "critic_loss", "cost_critic_loss", "actor_loss", "multiplier"} <= set(log.rows[0])
    assert population.step == 12 and agents == [0, 1, 2] and stopped == {}


def test_logging_changes_nothing_and_a_finished_run_is_left_alone():
    often, *_ = train(log_every=1)
    seldom, *_ = train(log_every=100)
    state = frozen(often)
    assert_same_state(state, frozen(seldom))
    again, agents = run(often, ORDINARY, Sampled(CFG), 20)
    assert again is often and agents == [0, 1, 2]
    assert_same_state(state, frozen(often))


def test_nan_in_the_batch_of_one_agent_stops_that_agent_only():
    population, agents, log, stopped = train(draw=Poisoned({1: 8}))
    assert agents == [0, 2] and population.step == 20 and list(stopped) == [1]
    end = stopped[1]
    assert (end.step, end.quantity, end.good_step) == (8, "critic_loss", 5)
    sentence = end.sentence("CarCircle-bcq-lag")
    assert "critic_loss" in sentence and "step 8" in sentence and "step 5" in sentence and "CarCircle" in sentence
    at_five, *_ = train(steps=5)  # the last good state
    assert_same_state(frozen(at_five, [1]), end.tensors)
    assert_as_alone(population, SEEDS[0], SEEDS[2])
    steps = [row["step"] for row in log.rows if row["agent"] == 1]
    assert steps == [5, 10]  # the bad values are in the log, then nothing
    assert math.isnan(log.rows[4]["critic_loss"]) and math.isfinite(log.rows[3]["critic_loss"])
    others = [row for row in log.rows if row["agent"] != 1]
    assert [row["step"] for row in others] == [5, 5, 10, 10, 15, 15, 20, 20]
    assert all(math.isfinite(value) for row in others for value in row.values())


def spoil(net, index, value):
    """At step 10, one parameter."""

    def on_log(population, agents):
        if population.step == 10:
            with torch.no_grad():
                population.nets[net]["w0"][index] = value

    return on_log


def test_nan_in_a_parameter_mid_run():
    population, agents, _, stopped = train(on_log=spoil("actor", (0, 0, 0), math.nan))
    assert agents == [1, 2] and (stopped[0].step, stopped[0].good_step) == (11, 10)
    assert all(value.isfinite().all() for name, value in stopped[0].tensors.items() if name != "generators")
    assert_as_alone(population, *SEEDS[1:])


def test_a_parameter_that_no_loss_shows_is_found_too():
    population = create(BACKBONE, CFG, SEEDS)
    population.nets["spare"] = {"w0": torch.zeros(3, 2)}  # only the check of the parameters sees an unused network
    _, agents, _, stopped = train(start=population, on_log=spoil("spare", 2, math.inf))
    assert agents == [0, 1] and (stopped[2].step, stopped[2].quantity) == (15, "a parameter of spare")


def test_agents_that_stop_at_different_steps_and_in_the_last_one():
    population, agents, _, stopped = train(draw=Poisoned({2: 3, 0: 20}))
    assert agents == [1] and {a: (s.step, s.good_step) for a, s in stopped.items()} == {2: (3, 0), 0: (20, 15)}
    assert_as_alone(population, SEEDS[1])


def test_all_agents_bad_ends_cleanly():
    called = []
    _, agents, log, stopped = train(draw=Poisoned({0: 7, 1: 7, 2: 9}), on_log=lambda now, left: called.append(now.step))
    assert agents == [] and sorted(stopped) == [0, 1, 2] and called == [5]
    assert {s.step for s in stopped.values()} == {7, 9} and max(row["step"] for row in log.rows) == 10


def test_numbers_of_the_agents_of_a_continued_population():
    seen, poisoned = [], Poisoned({7: 2})

    def draw(population, agents):
        seen.append(list(agents))
        return poisoned(population, agents)

    _, agents, log, _ = train(draw=draw, agents=[3, 7, 9], steps=6, log_every=3)
    assert agents == [3, 9] and seen == [[3, 7, 9]] * 3 + [[3, 9]] * 3
    assert [row["agent"] for row in log.rows] == [3, 7, 9, 3, 9]


def test_phases_report_different_quantities():
    """Odd steps train the critics, even ones the actor; a bad value is found in either."""
    _, critics, actor = ((loss,) for loss in BACKBONE.LOSSES)
    phases = replace(ORDINARY, phases=(critics, actor), phase=lambda step: step % 2)
    _, agents, log, stopped = train(algorithm=phases, draw=Poisoned({0: 3}), steps=10)
    assert agents == [1, 2] and (stopped[0].step, stopped[0].quantity) == (3, "critic_loss")
    assert "critic_loss" in log.rows[0] and "actor_loss" in log.rows[-1] and "critic_loss" not in log.rows[-1]


@pytest.mark.skipif("not __import__('sys').platform.startswith('linux')")
def test_keep_freed_memory_is_accepted_by_glibc():
    assert keep_freed_memory() is True
