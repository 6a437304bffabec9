"""Our training steps beside osrl-lib's, at osrl-lib's settings. On an idle machine, from the repository:

    python -m benchmarks.agents [--json FILE] [--backbones cpq coptidice] [--device cuda] [--profile]

Cases: step-float32, on a fixed batch; end-to-end, from the data set to updated parameters (osrl-lib's TransitionDataset
through a DataLoader, our pool); population-7, seven agents in one population against seven single ones of ours.
``peer`` runs in the same process in turn with ours and so enjoys the same malloc setting
(`saferule.agents.loop.keep_freed_memory`); ``peer_stock`` is osrl-lib measured before that setting was made.

The floor is the time that the step's multiply-adds alone take at the matrix-product rate measured here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, arguments, rates, show
from benchmarks.osrl_lib import loader, quiet_trainer, seed_everything, stepper
from saferule.agents import BACKBONES, get_backbone
from saferule.agents.loop import keep_freed_memory
from saferule.agents.population import create, draw_noise, stack, training, update
from saferule.data.batches import Batch, TransitionPool, draw_rows
from saferule.data.schema import Dataset
from saferule.runs.store import processor

OBSERVATION_DIM, ACTION_DIM, HORIZON = 60, 2, 1000  # PointGoal
TRANSITIONS = 200_000


def synthetic_data(seed: int = 0) -> Dataset:
    """Transitions of PointGoal's shape with random content: speed does not depend on the values."""
    rng = np.random.default_rng(seed)
    n = TRANSITIONS
    return Dataset(
        observations=rng.normal(size=(n, OBSERVATION_DIM)),
        next_observations=rng.normal(size=(n, OBSERVATION_DIM)),
        actions=rng.uniform(-1, 1, size=(n, ACTION_DIM)),
        rewards=rng.normal(size=n),
        costs=rng.integers(0, 2, size=n),
        terminals=np.zeros(n, dtype=bool),
        timeouts=np.arange(1, n + 1) % HORIZON == 0,
    )


class Ours:
    """A population of ours on a pool of transitions."""

    def __init__(self, name: str, pool: TransitionPool, device: str, size: int = 1, cfg: Any = None) -> None:
        backbone = get_backbone(name)
        self.cfg = cfg or backbone.Config(OBSERVATION_DIM, ACTION_DIM, HORIZON)
        self.algorithm = training(backbone, self.cfg)
        self.population = create(backbone, self.cfg, range(size), device)
        self.pool, self.rows = pool, [pool.rows_of(0)] * size
        if backbone.statistics is not None:
            whole = pool.gather(self.rows[0])
            found = backbone.statistics(whole.observations, whole.actions, whole.is_init)
            self.population.scalars |= stack([found] * size, device)
        self.fixed = self.batch()

    def batch(self) -> Batch:
        """A fresh batch for every agent."""
        return self.pool.gather(draw_rows(self.population.generators, self.rows, self.cfg.batch_size))

    def step(self, batch: Batch | None = None) -> None:
        """One update, on a given or on the fixed batch."""
        noise = draw_noise(self.population, self.algorithm.noise_shapes, torch.float32)
        update(self.population, self.algorithm, self.fixed if batch is None else batch, noise)

    def end_to_end(self) -> None:
        """One update on a fresh batch."""
        self.step(self.batch())

    def operations(self) -> float:
        """Floating-point operations of the matrix products of one update."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return float(counter.get_total_flops())


def peer(name: str, data: Dataset, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """osrl-lib's step on a fixed batch, and on batches of its own loader."""
    seed_everything(0)
    cfg = get_backbone(name).Config(OBSERVATION_DIM, ACTION_DIM, HORIZON)
    columns = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
    arrays = {key: getattr(data, key).astype(np.float32) for key in columns}
    spread = (arrays[key].std(0, keepdims=True) for key in ("observations", "actions"))
    statistics = (float(arrays["timeouts"].mean()), *spread)
    batches = loader(arrays, cfg, name == "coptidice", min(8, os.cpu_count() or 1), device)
    fixed = next(batches)
    trainer = quiet_trainer(name, cfg, device, statistics)
    return stepper(name, trainer, lambda: fixed), stepper(name, trainer, lambda: next(batches))


def measure(
    backbones: Sequence[str] = BACKBONES, device: str = "cpu", rounds: int = 7, say: Callable[[str], None] = print
) -> tuple[list[Row], Row]:
    """All cases of the given backbones. Returns rows and a description of the machine."""
    data = synthetic_data()
    pool = TransitionPool([data], reward_scale=0.1, device=device)
    synchronise = torch.cuda.synchronize if device != "cpu" else lambda: None

    def in_turn(*functions: Callable[[], Any], block_seconds: float = 1.0) -> list[float]:
        return rates(functions, rounds, block_seconds, synchronise)

    stock = {name: in_turn(*peer(name, data, device)) for name in backbones}
    keep_freed_memory()
    a = torch.randn(2048, 2048, device=device)
    operations_per_second = 2 * 2048**3 * in_turn(lambda: a @ a, block_seconds=0.3)[0]
    rows = []
    for name in backbones:
        fixed, drawn = peer(name, data, device)
        one, seven, single = Ours(name, pool, device), Ours(name, pool, device, 7), []
        single += [Ours(name, pool, device) for _ in range(7)]

        def one_by_one(single: Sequence[Ours] = tuple(single)) -> None:
            for agent in single:
                agent.step()

        floor = one.operations() / operations_per_second
        cases = {
            "step-float32": (*in_turn(one.step, fixed), stock[name][0], floor),
            "end-to-end": (*in_turn(one.end_to_end, drawn), stock[name][1], floor),
            "population-7": (*in_turn(seven.step, one_by_one), None, 7 * floor),
        }
        for case, (ours, theirs, before, least) in cases.items():
            row = {"backbone": name, "case": case, "ours": ours, "peer": theirs, "ratio": ours / theirs}
            row |= {"peer_stock": before, "ratio_stock": ours / before if before else None}
            rows.append(row | {"floor_fraction": ours * least})
            say(f"{name} {case}: {ours:.1f} against {theirs:.1f} steps/s")
    machine = {
        "device": torch.cuda.get_device_name() if device != "cpu" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "float32_gflops": operations_per_second / 1e9,
        "settings": f"observation {OBSERVATION_DIM}, action {ACTION_DIM}, batch 512, osrl-lib's widths",
    }
    return rows, machine


def time_by_operation(backbones: Sequence[str] = BACKBONES, steps: int = 5, most: int = 6) -> list[Row]:
    """Where the time of our step goes on the CPU: operations by their own share of the time, largest first."""
    keep_freed_memory()
    pool = TransitionPool([synthetic_data().take(slice(0, 20_000))], reward_scale=0.1)
    rows = []
    for name in backbones:
        ours = Ours(name, pool, "cpu")
        ours.step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(steps):
                ours.step()
        events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        for event in events[:most]:
            share, milliseconds = event.self_cpu_time_total / total, event.self_cpu_time_total / steps / 1e3
            rows.append({"backbone": name, "operation": event.key, "share": share, "ms per step": milliseconds})
    return rows


if __name__ == "__main__":
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--profile", action="store_true", help="where the time goes instead of how fast")
    given = parser.parse_args()
    if given.profile:
        show(time_by_operation(given.backbones), {"device": processor()}, given.json)
    else:
        show(*measure(given.backbones, given.device, given.rounds), given.json)
