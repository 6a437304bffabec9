"""Tiny agents and batches for the tests of training and unlearning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saferule.agents import BACKBONES, get_backbone
from saferule.agents.checkpoint import part_of, restore, tensors_of
from saferule.agents.loop import inputs
from saferule.agents.population import Algorithm, Population, create, reset_optimisers, training, update
from saferule.data.batches import Batch, TransitionPool, draw_rows
from saferule.data.schema import Dataset
from saferule.unlearn import unlearning
from saferule.unlearn.start import draw_batches, prepare

ACTOR_CRITIC = [name for name in BACKBONES if get_backbone(name).CRITICS]

# What is looked at in every fifth logged step of a repair.
LOOKS = {f"{side}_{what}" for side in ("keep", "forget") for what in ("gradient", "distance", "saturated")}

SMALL = {
    "observation_dim": 3,
    "action_dim": 2,
    "episode_len": 300,
    "hidden": (8, 8),
    "vae_hidden": 8,
    "samples": 3,
    "batch_size": 6,
}


def tiny(backbone: str, **changes: Any) -> Any:
    """A backbone's settings at the smallest sizes that still have every shape."""
    config = get_backbone(backbone).Config
    known = {field.name for field in fields(config)}
    return config(**{name: value for name, value in (SMALL | changes).items() if name in known})


def random_dataset(episodes: int, seed: int, length: int = 10) -> Dataset:
    """Standard normal observations and rewards, actions in the box, costs 0 or 1; episodes end by the time limit."""
    generator, rows = np.random.default_rng(seed), episodes * length
    states = generator.normal(size=(rows + 1, SMALL["observation_dim"]))
    return Dataset(
        states[:-1],
        states[1:],
        generator.uniform(-1, 1, (rows, SMALL["action_dim"])),
        generator.normal(size=rows),
        generator.integers(0, 2, rows),
        np.zeros(rows),
        np.arange(rows) % length == length - 1,
    )


class Sampled:
    """``draw_batch`` of the training loop: each agent draws from the whole pool with its own generator."""

    def __init__(self, cfg: Any, seed: int = 0) -> None:
        self.pool, self.size = TransitionPool([random_dataset(4, seed)], cfg.reward_scale), cfg.batch_size

    def __call__(self, population: Population, agents: Any = None) -> Batch:
        rows = [self.pool.rows_of(0)] * len(population)
        return self.pool.gather(draw_rows(population.generators, rows, self.size))


def advance(population: Population, algorithm: Algorithm, draw: Callable, steps: int = 1) -> list[dict[str, Tensor]]:
    """Some steps, as the training loop makes them; what each reported."""
    agents = range(len(population))
    return [update(population, algorithm, *inputs(population, algorithm, draw, agents)) for _ in range(steps)]


STEPS = 20  # of unlearning


class Corrupted:
    """Trained agents of one backbone that are ready for unlearning: 4 keep and 3 forget episodes.

    One for each of ``methods`` and each of ``readings``, all with the same networks and generator.
    """

    def __init__(self, name: str, *methods: str, readings: Sequence[dict[str, str]] = ({},)) -> None:
        self.backbone, self.cfg = get_backbone(name), tiny(name)
        self.ordinary = training(self.backbone, self.cfg)
        every = [(method, chosen) for method in methods for chosen in readings]
        self.population = create(self.backbone, self.cfg, [5] * len(every))
        advance(self.population, self.ordinary, Sampled(self.cfg), 3)
        self.algorithm = unlearning(methods[0], self.backbone, self.cfg, STEPS, readings[0])
        self.pool = TransitionPool([random_dataset(4, 0), random_dataset(3, 1)], self.cfg.reward_scale)
        self.rows = [(self.pool.rows_of(0), self.pool.rows_of(1))] * len(every)
        chosen = zip(*every, strict=True)
        prepare(self.population, self.algorithm, self.backbone, *chosen, self.pool, self.rows)
        self.draw = draw_batches(methods[0], self.backbone, self.pool, self.rows, self.cfg.batch_size)

    def run(self, steps: int = STEPS) -> list[dict[str, Tensor]]:
        """What every step reported."""
        return advance(self.population, self.algorithm, self.draw, steps)

    def step(self) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """One step: batch, noise and what was reported."""
        batch, noise = inputs(self.population, self.algorithm, self.draw, range(len(self.population)))
        return batch, noise, update(self.population, self.algorithm, batch, noise)

    def beside(self) -> Population:
        """The same agents, about to train as usual."""
        other = restore(frozen(self.population), self.cfg.learning_rates, self.population.step)
        reset_optimisers(other, self.ordinary)
        return other


def frozen(population: Population, members: list[int] | None = None) -> dict[str, Tensor]:
    """A copy of the complete state, of all agents or of some."""
    return part_of(tensors_of(population), list(range(len(population))) if members is None else members)


def changed_networks(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the networks of which any parameter differs."""
    names = [name for name in before if name.startswith("nets/")]
    return {name.split("/")[1] for name in names if not torch.equal(before[name], after[name])}


def assert_same_state(one: dict[str, Any], other: dict[str, Any], tolerance: float = 0.0) -> None:
    """Equal names and values, in dictionaries of dictionaries too: bit for bit, or to an absolute tolerance."""
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
