"""How long training and every method take (Table 3), side by side in one process; and measuring in alternating blocks.

Timed is one step end to end, by the code of the training loop: drawing the batches and the noise, the update of one
agent. All steps of a backbone are measured in alternating blocks, warm; the median over the blocks counts, their range
says how far it is to be trusted. A method with phases is timed phase by phase and weighted by their shares of its
steps. What a method does once (frozen copies, cold Adam, statistics of the data) is beside its total as ``start_s``.
Evaluation, reading the data, the log with its checks and saving are not in these times.

Time does not depend on the values: the agents are fresh, and the last trajectories of D stand in for D_f. The ablations
of Safe-RULE are other coefficients of the same computation and take as long; so does reward-only here, whose cost terms
are computed and multiplied by zero.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from timeit import timeit
from typing import Any

import numpy as np
import pandas as pd
import torch

from saferule.agents import get_backbone
from saferule.agents.loop import inputs, keep_freed_memory
from saferule.agents.population import Algorithm, Population, create, update
from saferule.attack.poison import split
from saferule.data.batches import TransitionPool
from saferule.data.schema import Dataset
from saferule.runs.spec import TimingRun, config
from saferule.unlearn import unlearning
from saferule.unlearn.start import draw_batches, prepare

RETRAINING = "clean"  # the method that the others are compared with
COLUMNS = ("method", "steps", "ms_per_step", "ms_per_step_low", "ms_per_step_high", "relative_step")
COLUMNS += ("relative_step_low", "relative_step_high", "seconds", "start_s", "share", "factor")
FORGET_SHARE = 0.15  # of the trajectories, at least one


def measure(run: TimingRun, data: Dataset, device: str) -> pd.DataFrame:
    """One row per method, retraining first; what is computed from a step's time is so from its median over the blocks.

    steps          gradient steps of the whole method
    ms_per_step    wall-clock of one step; relative_step: the same in training steps
    ..._low, ..._high  of these two the least and the greatest over the blocks; a ratio is of the same round's blocks
    seconds        of the whole method: steps times the time of one; start_s: what is done once, not in ``seconds``
    share, factor  of the time of retraining; retraining takes ``factor`` times as long
    """
    keep_freed_memory()
    count = len(data.episodes())
    forget = np.arange(count) >= count - max(1, round(FORGET_SHARE * count))
    backbone, cfg = get_backbone(run.backbone), config(run)
    pool = TransitionPool(split(data, forget), cfg.reward_scale, device)
    rows = [(pool.rows_of(0), pool.rows_of(1))]
    timed = []
    for method in (RETRAINING, RETRAINING, *run.methods):  # the first waits for what torch imports late, and goes
        began, steps = time.perf_counter(), run.training_steps if method == RETRAINING else run.unlearning_steps
        population, algorithm = create(backbone, cfg, [0], device), unlearning(method, backbone, cfg, steps)
        prepare(population, algorithm, backbone, [method], [{}], pool, rows)
        draw = draw_batches(method, backbone, pool, rows, cfg.batch_size)
        started = time.perf_counter() - began
        phases = Counter(map(algorithm.phase, range(steps)))
        functions = [_step(population, replace(algorithm, phase=lambda step, k=k: k), draw) for k in phases]
        timed.append((method, steps, started, functions, [n / steps for n in phases.values()]))
    methods, steps, started, functions, shares = zip(*timed[1:], strict=True)
    synchronise = torch.cuda.synchronize if device != "cpu" else lambda: None
    blocks = iter(block_times([f for own in functions for f in own], run.rounds, run.block_seconds, synchronise))
    # Of a mean step, (methods, rounds).
    ms = 1000 * np.array([sum(share * np.array(next(blocks)) for share in own) for own in shares])
    ratios, medians = ms / ms[0], np.median(ms, axis=1)
    seconds = np.array(steps) * medians / 1000
    values = (
        *(methods, steps, medians, ms.min(1), ms.max(1), medians / medians[0], ratios.min(1), ratios.max(1)),
        *(seconds, started, seconds / seconds[0], seconds[0] / seconds),
    )
    return pd.DataFrame(dict(zip(COLUMNS, values, strict=True)))


def _step(population: Population, algorithm: Algorithm, draw: Callable) -> Callable[[], None]:
    return lambda: update(population, algorithm, *inputs(population, algorithm, draw, [0]))


def block_times(
    functions: Sequence[Callable[[], Any]],
    rounds: int,
    block_seconds: float = 1.0,
    synchronise: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Seconds per call of each function in each round, run in turn (A B A B ...) in blocks of about equal time."""

    def seconds(function: Callable[[], Any], calls: int) -> float:
        return timeit(lambda: (function(), synchronise()), number=calls) / calls

    for function in functions:
        seconds(function, 1)  # first calls allocate and compile
    calls = [max(1, round(block_seconds / seconds(function, 2))) for function in functions]
    times = [[seconds(f, n) for f, n in zip(functions, calls, strict=True)] for _ in range(rounds)]
    return [list(own) for own in zip(*times, strict=True)]
