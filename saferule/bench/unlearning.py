"""``saferule bench unlearning``: how long retraining, Safe-RULE and its baselines take (Table 3), in one process.

Timed is one step end to end, by the code of the training loop: drawing the batches, drawing the noise, the update of
one agent. All steps of a backbone, training and every method, are measured in alternating blocks, warm; the median
over the blocks counts, their range says how far it is to be trusted. A method with phases is timed phase by phase and
weighted by their shares of its steps. Seconds per step times the profile's gradient steps are the wall-clock of the
method.

Not in these times: evaluation in the simulator, reading the data, starting up and warming up, the log with its checks,
saving. What a method does once is given beside its total: ``start_s`` (frozen copies of the corrupted networks, cold
Adam, statistics of the data) and ``reference_s``, which only the reading reference = dataset costs (the Bellman targets
over all of D_k).

Time does not depend on the values, so the agents are freshly initialised, and the last trajectories of D are marked as
D_f. The ablations of Safe-RULE are other coefficients of the same computation and take as long; so does reward-only
here, whose cost terms are computed and multiplied by zero.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch

from saferule.agents import get_backbone
from saferule.agents.loop import inputs, keep_freed_memory
from saferule.agents.population import Algorithm, Population, create, member, stack, training, update
from saferule.attack.poison import split
from saferule.bench import block_times, processor, seconds_per_call
from saferule.data.batches import TransitionPool, draw_rows
from saferule.data.schema import Dataset
from saferule.paper import table
from saferule.profiles import Profile
from saferule.runs.cells import Training, config
from saferule.runs.inventory import REPAIRS
from saferule.unlearn import METHODS, supported, unlearning
from saferule.unlearn.start import CHUNK, adapt, begin, pairs, reward_targets, statistics

RETRAINING = "retraining"
PAPER_NAMES = {  # in Table 3, which is about CPQ
    RETRAINING: "Retraining",
    "fine-tuning": "Fine-tuning",
    "trajdeleter": "Trajdeleter",
    "reward-only": "Reward-only",
    "safe-rule": "Safe Unlearning",
}
PAPER_BACKBONE = "cpq"
EXCLUDED = "evaluation, reading the data, warm-up, log and saving are not in the times"
Row = dict[str, Any]


@dataclass(frozen=True)
class Timed:
    """What is timed of one method.

    functions  one step of each of its parts
    shares     of the parts in its steps; they add up to 1
    """

    method: str
    steps: int
    functions: tuple[Callable[[], Any], ...]
    shares: tuple[float, ...]
    start_s: float
    reference_s: float | None = None

    def seconds_per_step(self, seconds: Sequence[Sequence[float]]) -> list[float]:
        """The mean over all steps of the method for each block, from the blocks' seconds of one step of each part."""
        return [sum(s * share for s, share in zip(b, self.shares, strict=True)) for b in zip(*seconds, strict=True)]


class Bench:
    """Everything that is timed for one task and backbone: retraining on D_k, and methods that repair a policy."""

    def __init__(self, task: str, backbone: str, data: Dataset, profile: Profile, device: str) -> None:
        self.backbone, self.profile, self.device = get_backbone(backbone), profile, device
        cell = Training(task, backbone, "", None, 0, profile.training_steps, profile.settings)
        self.cfg = config(cell)
        self.pool = TransitionPool(marked(data, max(profile.ratios)), self.cfg.reward_scale, device)
        self.keep, self.forget = self.pool.rows_of(0), self.pool.rows_of(1)
        self._agent(self.keep)  # the first agent of a process waits for what torch imports late

    def retraining(self) -> Timed:
        """Training from scratch on the keep set."""
        started = time.perf_counter()
        population, algorithm = self._agent(self.keep), training(self.backbone, self.cfg)

        def draw(population: Population, agents: Sequence[int]) -> Any:
            return self.pool.gather(draw_rows(population.generators, [self.keep], self.cfg.batch_size))

        step = _step(population, algorithm, draw)
        return Timed(RETRAINING, self.profile.training_steps, (step,), (1.0,), time.perf_counter() - started)

    def repair(self, method: str) -> Timed:
        """An unlearning method on an agent that was trained on both sets."""
        steps, rows = self.profile.unlearning_steps, [(self.keep, self.forget)]
        population = self._agent(torch.cat((self.keep, self.forget)))
        algorithm = unlearning(method, self.backbone, self.cfg, steps)
        started = time.perf_counter()
        begin(population, algorithm, self.backbone.NAME, [method])
        adapt(population, self.backbone, self.cfg, self.pool, rows)
        start_s, draw = time.perf_counter() - started, pairs(self.pool, rows, self.cfg.batch_size)
        functions = tuple(
            _step(population, replace(algorithm, phases=(p,), phase=_first), draw) for p in algorithm.phases
        )
        reference = self.reference_s if METHODS[method].family == "safe_rule" else None
        return Timed(method, steps, functions, shares(algorithm, steps), start_s, reference)

    def _agent(self, seen: torch.Tensor) -> Population:
        population = create(self.backbone, self.cfg, [0], self.device)
        if self.backbone.statistics is not None:
            population.scalars |= stack([statistics(self.backbone, self.pool, seen)])
        return population

    @cached_property
    def reference_s(self) -> float | None:
        """Seconds of the reward targets over all of D_k, from those of a chunk; None for COptiDICE, which has none."""
        if not self.backbone.CRITICS:
            return None
        nets, rows = member(self._agent(self.keep).nets, 0), self.keep[:CHUNK]

        def chunk() -> None:
            reward_targets(self.backbone, nets, self.cfg, self.pool, rows).sum().item()

        chunk()
        return seconds_per_call(chunk, 2) * math.ceil(len(self.keep) / CHUNK)


def _step(population: Population, algorithm: Algorithm, draw: Callable) -> Callable[[], None]:
    def step() -> None:
        update(population, algorithm, *inputs(population, algorithm, draw, [0]))

    return step


def marked(data: Dataset, ratio: float) -> tuple[Dataset, Dataset]:
    """(keep, forget): the last trajectories of D, this share of them and at least one, stand in for D_f."""
    count = len(data.episodes())
    return split(data, np.arange(count) >= count - max(1, round(ratio * count)))


def _first(step: int) -> int:
    return 0


def shares(algorithm: Algorithm, steps: int) -> tuple[float, ...]:
    """The share of its steps in which each phase of a method is done; (1,) for one without phases."""
    done = Counter(algorithm.phase(step) for step in range(steps))
    return tuple(done[part] / steps for part in range(len(algorithm.phases)))


def measure(
    data: Mapping[str, Dataset],
    profile: Profile,
    rounds: int = 5,
    block_seconds: float = 1.0,
    threads: int = 1,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Row], dict[str, Any]]:
    """Retraining and every supported method of Section 5, for all tasks in ``data`` and backbones of the profile.

    threads  of torch on a CPU; the engine gives each of its processes one
    Returns the rows of `rows_of` and a description of the machine.
    """
    keep_freed_memory()
    found: list[Row] = []
    synchronise = torch.cuda.synchronize if device != "cpu" else lambda: None
    with torch_threads(threads):
        for task, dataset in data.items():
            for backbone in profile.backbones:
                bench = Bench(task, backbone, dataset, profile, device)
                timed = [bench.retraining(), *(bench.repair(m) for m in REPAIRS if supported(m, backbone))]
                functions = [function for t in timed for function in t.functions]
                seconds = iter(block_times(functions, rounds, block_seconds, synchronise))
                rows = rows_of(
                    task, backbone, [(t, t.seconds_per_step([next(seconds) for _ in t.shares])) for t in timed]
                )
                say(f"{task} {backbone}: a training step takes {rows[0]['ms_per_step']:.1f} ms")
                found += rows
    machine = {
        "device": torch.cuda.get_device_name() if device != "cpu" else processor(),
        "threads": threads,
        "torch": torch.__version__,
        "profile": profile.name,
        "settings": ", ".join(f"{name} {value}" for name, value in profile.settings) or "osrl-lib's",
        "rounds": rounds,
        "block_seconds": block_seconds,
        "excluded": EXCLUDED,
    }
    return found, machine


@contextmanager
def torch_threads(count: int):
    """Torch with so many threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_of(task: str, backbone: str, timed: Sequence[tuple[Timed, Sequence[float]]]) -> list[Row]:
    """One row per method from the seconds of one of its steps in each block; the first is retraining.

    What is computed from a step's time is computed from its median over the blocks.

    steps          gradient steps of the whole method
    ms_per_step    wall-clock of one step
    relative_step  the same in training steps
    ..._low, ..._high  of these two the least and the greatest over the blocks; a ratio is of the same round's blocks
    seconds        of the whole method: steps times the time of one
    share, factor  of the time of retraining; retraining takes ``factor`` times as long
    start_s, reference_s         what is done once, not in ``seconds`` (head of this file)
    paper_minutes, paper_factor  Table 3, which is about CPQ only, or None
    """
    paper = paper_minutes(task) if backbone == PAPER_BACKBONE else {}
    training_steps, training_blocks = timed[0][0].steps, timed[0][1]
    whole = training_steps * median(training_blocks)
    rows = []
    for t, blocks in timed:
        seconds, ratios = median(blocks), [b / start for b, start in zip(blocks, training_blocks, strict=True)]
        row = {
            "task": task,
            "backbone": backbone,
            "method": t.method,
            "steps": t.steps,
            "ms_per_step": 1000 * seconds,
            "ms_per_step_low": 1000 * min(blocks),
            "ms_per_step_high": 1000 * max(blocks),
            "relative_step": seconds / median(training_blocks),
            "relative_step_low": min(ratios),
            "relative_step_high": max(ratios),
            "seconds": t.steps * seconds,
            "share": t.steps * seconds / whole,
            "factor": whole / (t.steps * seconds),
            "start_s": t.start_s,
            "reference_s": t.reference_s,
            "paper_minutes": paper.get(t.method),
            "paper_factor": paper[RETRAINING] / paper[t.method] if t.method in paper else None,
        }
        rows.append(row)
    return rows


def paper_minutes(task: str) -> dict[str, float]:
    """Table 3 by our names of the methods. Its Trajdeleter is set beside the published variant (it names none)."""
    rows = table(3)
    printed = rows[rows["task"] == task].set_index("method")["minutes"]
    return {method: float(printed[name]) for method, name in PAPER_NAMES.items() if name in printed}
