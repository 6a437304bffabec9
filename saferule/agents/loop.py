"""The loop around `population.update`: batches, log, guard against values that are not finite, saving and resuming.

On a CPU each step allocates and frees large temporaries. glibc returns them to the kernel, so they are page-faulted
afresh at every step; `keep_freed_memory` tells it to keep them, which nearly doubles the rate of the large steps.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saferule.agents.checkpoint import part_of, take, tensors_of
from saferule.agents.parts import Noise
from saferule.agents.population import Algorithm, Population, draw_noise, look, update

LOG_ROWS = 100  # about so many per agent, if that is not too seldom
LOOK_EVERY = 5  # logged steps
LOG_EVERY_AT_MOST = 500  # steps; logging is also when values are checked and states saved
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed memory in this process; False where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def log_every(steps: int) -> int:
    """After how many steps a run of so many steps logs."""
    return min(LOG_EVERY_AT_MOST, max(1, steps // LOG_ROWS))


@dataclass
class Log:
    """What the losses reported, for all agents: one row per agent and logged step."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, agents: Sequence[int], step: int, info: dict[str, Tensor]) -> None:
        """Append the values (P,) of one step."""
        columns = {name: value.cpu().tolist() for name, value in info.items()}
        for p, agent in enumerate(agents):
            self.rows.append({"agent": agent, "step": step} | {name: column[p] for name, column in columns.items()})


@dataclass
class Diverged:
    """An agent whose run ended early, with its last good state."""

    step: int
    quantity: str
    good_step: int
    tensors: dict[str, Tensor]

    def sentence(self, run: str) -> str:
        """What happened and what to do."""
        return (
            f"{run}: {self.quantity} was not finite at step {self.step}; the state of step {self.good_step} was kept "
            "and the other agents went on: lower the learning rate or check the data"
        )


def run(
    population: Population,
    algorithm: Algorithm,
    draw_batch: Callable[[Population, Sequence[int]], Any],
    steps: int,
    *,
    agents: list[int] | None = None,
    log: Log | None = None,
    log_every: int = 100,
    log_also: Collection[int] = (),
    on_log: Callable[[Population, list[int]], None] | None = None,
    on_stop: Callable[[int, Diverged], None] | None = None,
) -> tuple[Population, list[int]]:
    """Update until ``population.step == steps``.

    draw_batch(population, agents) -> batch with a leading P; ``agents``: numbers of the agents still in the population
    log_every  a step is logged when this divides it, as are the last one and those in ``log_also``; the first and every
               fifth of the former are looked into
    on_log     called after each logged step, to save
    on_stop    called for an agent that leaves the population because a loss or a parameter of it was not finite
    Returns the population of the agents that reached the end, and their numbers.
    """
    agents = list(range(len(population))) if agents is None else list(agents)
    log = Log() if log is None else log
    good, good_step = _snapshot(population), population.step
    # For each set of quantities: the step at which each first was not finite, 0 while all is well; (quantities, P),
    # read only when something is logged.
    first_bad: dict[tuple[str, ...], Tensor] = {}
    while population.step < steps and agents:
        batch, noise = inputs(population, algorithm, draw_batch, agents)
        looks = population.step + 1 == log_every or (population.step + 1) % (LOOK_EVERY * log_every) == 0
        seen = look(population, algorithm, batch, noise) if looks else {}
        info = update(population, algorithm, batch, noise)
        names = tuple(info)
        finite = torch.stack([value.isfinite() for value in info.values()])  # (quantities, P)
        known = first_bad.get(names)
        known = torch.zeros_like(finite, dtype=torch.long) if known is None else known
        first_bad[names] = torch.where((known == 0) & ~finite, population.step, known)
        if population.step % log_every and population.step != steps and population.step not in log_also:
            continue
        log.add(agents, population.step, info | seen)
        bad = _not_finite(population, first_bad)
        if bad:
            for p, (step, quantity) in bad.items():
                if on_stop is not None:
                    on_stop(agents[p], Diverged(step, quantity, good_step, part_of(good, [p])))
            keep = [p for p in range(len(agents)) if p not in bad]
            agents = [agents[p] for p in keep]
            if not agents:
                break
            population = take(population, keep, algorithm.cfg.learning_rates)
        first_bad = {}
        good, good_step = _snapshot(population), population.step
        if on_log is not None:
            on_log(population, agents)
    return population, agents


def inputs(
    population: Population,
    algorithm: Algorithm,
    draw_batch: Callable[[Population, Sequence[int]], Any],
    agents: Sequence[int],
) -> tuple[Any, Noise]:
    """What the next step takes: a batch from ``draw_batch``, and the noise."""
    batch = draw_batch(population, agents)
    dtype = next(iter(population.nets["actor"].values())).dtype
    return batch, draw_noise(population, algorithm.noise_shapes, dtype)


def _snapshot(population: Population) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors_of(population).items()}


def _not_finite(population: Population, first_bad: dict[tuple[str, ...], Tensor]) -> dict[int, tuple[int, str]]:
    """{position in the population: (first bad step, what was not finite)}."""
    bad: dict[int, tuple[int, str]] = {}
    for names, seen in first_bad.items():
        for name, steps in zip(names, seen.cpu().tolist(), strict=True):
            for p, step in enumerate(steps):
                if step and (p not in bad or step < bad[p][0]):
                    bad[p] = (step, name)
    for net, leaves in population.nets.items():
        whole = torch.stack([leaf.isfinite().flatten(1).all(1) for leaf in leaves.values()]).all(0)
        for p in (~whole).nonzero().flatten().tolist():
            bad.setdefault(p, (population.step, f"a parameter of {net}"))
    return bad
