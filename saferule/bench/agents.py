"""``saferule bench agents``: our training steps beside osrl-lib's, at osrl-lib's settings.

Cases: step-float32 and step-bfloat16 (target passes in bfloat16) on a fixed batch; end-to-end, from the data set to
updated parameters (osrl-lib's TransitionDataset through a DataLoader, our sampler); population-7, seven agents in one
population against seven single ones of ours. ``peer`` runs in the same process in turn with ours and so enjoys the same
malloc setting (`saferule.agents.loop.keep_freed_memory`); ``peer_stock`` is osrl-lib measured before that setting
was made.

The floor is the time that the step's multiply-adds alone take at the matrix-product rate measured here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from saferule.agents import BACKBONES, get_backbone
from saferule.agents.captured import CapturedUpdate
from saferule.agents.loop import keep_freed_memory
from saferule.agents.population import Population, create, draw_noise, training, update
from saferule.bench import processor, side_by_side
from saferule.bench.osrl_lib import loader, quiet_trainer, seed_everything, stepper
from saferule.data.batches import Batch, TransitionPool, draw_rows
from saferule.data.schema import Dataset

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


def matrix_rate(dtype: torch.dtype, device: str, size: int = 2048) -> float:
    """Floating-point operations per second of a large matrix product."""
    a = torch.randn(size, size, device=device).to(dtype)
    rate = side_by_side([lambda: a @ a], rounds=5, block_seconds=0.3, synchronise=_synchronise(device))[0]
    return 2 * size**3 * rate


def _synchronise(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device != "cpu" else lambda: None


def _config(backbone: Any, **changes: Any) -> Any:
    return replace(backbone.Config(OBSERVATION_DIM, ACTION_DIM, HORIZON), **changes)


class Ours:
    """A population of ours on a pool of transitions."""

    def __init__(
        self, name: str, pool: TransitionPool, device: str, size: int = 1, captured: bool = False, **changes: Any
    ) -> None:
        self.backbone = get_backbone(name)
        self.cfg = _config(self.backbone, **changes)
        self.algorithm = training(self.backbone, self.cfg)
        self.population = create(self.backbone, self.cfg, range(size), device)
        self.pool, self.rows = pool, [pool.rows_of(0)] * size
        if self.backbone.statistics is not None:
            whole = pool.gather(self.rows[0])
            found = self.backbone.statistics(whole.observations, whole.actions, whole.is_init)
            self.population.scalars |= {k: torch.stack([v] * size) for k, v in found.items()}
        self.fixed = self.batch()
        self.captured = captured
        self.graph: CapturedUpdate | None = None

    def batch(self) -> Batch:
        """A fresh batch for every agent."""
        return self.pool.gather(draw_rows(self.population.generators, self.rows, self.cfg.batch_size))

    def step(self, batch: Batch | None = None) -> None:
        """One update, on a given or on the fixed batch."""
        population: Population = self.population
        batch = self.fixed if batch is None else batch
        noise = draw_noise(population, self.algorithm.noise_shapes, torch.float32)
        if self.captured and self.graph is None:
            self.graph = CapturedUpdate(population, self.algorithm, batch, noise)
        self.graph(batch, noise) if self.graph else update(population, self.algorithm, batch, noise)

    def end_to_end(self) -> None:
        """One update on a fresh batch."""
        self.step(self.batch())

    def operations(self) -> float:
        """Floating-point operations of the matrix products of one update."""
        noise = draw_noise(self.population, self.algorithm.noise_shapes, torch.float32)
        with FlopCounterMode(display=False) as counter:
            update(self.population, self.algorithm, self.fixed, noise)
        return float(counter.get_total_flops())


def measure(
    backbones: Sequence[str] = BACKBONES,
    device: str = "cpu",
    rounds: int = 7,
    say: Callable[[str], None] = print,
    captured: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All cases of the given backbones. Returns rows and a description of the machine.

    captured  our steps are replayed as CUDA graphs
    """
    data = synthetic_data()
    pool = TransitionPool([data], reward_scale=0.1, device=device)
    arrays = {
        key: getattr(data, key).astype(np.float32)
        for key in ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
    }
    synchronise = _synchronise(device)
    stock = {name: _peer_rate(name, arrays, device, rounds, synchronise) for name in backbones}
    keep_freed_memory()
    rates = {"float32": matrix_rate(torch.float32, device), "bfloat16": matrix_rate(torch.bfloat16, device)}
    rows = []
    for name in backbones:
        rows += _cases(name, pool, arrays, stock[name], rates, device, rounds, synchronise, captured)
        for row in rows[-5:]:
            say(f"{row['backbone']} {row['case']}: {row['ours']:.1f} against {row['peer']:.1f} steps/s")
    machine = {
        "device": torch.cuda.get_device_name() if device != "cpu" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "float32_gflops": rates["float32"] / 1e9,
        "bfloat16_gflops": rates["bfloat16"] / 1e9,
        "settings": f"observation {OBSERVATION_DIM}, action {ACTION_DIM}, batch 512, osrl-lib's widths",
    }
    return rows, machine


def _peer(name: str, arrays: dict[str, np.ndarray], device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """osrl-lib's step on a fixed batch, and on batches of its own loader."""
    seed_everything(0)
    cfg = _config(get_backbone(name))
    done = arrays["timeouts"]
    statistics = (
        float(done.mean()),
        arrays["observations"].std(0, keepdims=True),
        arrays["actions"].std(0, keepdims=True),
    )
    batches = loader(arrays, cfg, name == "coptidice", min(8, os.cpu_count() or 1), device)
    fixed = next(batches)
    trainer = quiet_trainer(name, cfg, device, statistics)
    return stepper(name, trainer, lambda: fixed), stepper(name, trainer, lambda: next(batches))


def _peer_rate(name: str, arrays: dict, device: str, rounds: int, synchronise: Callable) -> tuple[float, float]:
    return tuple(side_by_side(_peer(name, arrays, device), rounds, synchronise=synchronise))  # type: ignore[return-value]


def _cases(
    name: str,
    pool: TransitionPool,
    arrays: dict[str, np.ndarray],
    stock: tuple[float, float],
    rates: dict[str, float],
    device: str,
    rounds: int,
    synchronise: Callable,
    captured: bool,
) -> list[dict[str, Any]]:
    ours = partial(Ours, name, pool, device, captured=captured)
    fixed, drawn = _peer(name, arrays, device)
    full, low = ours(), ours(target_precision="bfloat16")
    operations, in_targets = full.operations(), _target_operations(full)
    floor = {
        "float32": operations / rates["float32"],
        "bfloat16": (operations - in_targets) / rates["float32"] + in_targets / rates["bfloat16"],
    }
    step, step_low, peer = side_by_side([full.step, low.step, fixed], rounds, synchronise=synchronise)
    end, end_low, peer_end = side_by_side([full.end_to_end, low.end_to_end, drawn], rounds, synchronise=synchronise)
    seven, single = ours(size=7), [ours() for _ in range(7)]

    def one_by_one() -> None:
        for agent in single:
            agent.step()

    together, apart = side_by_side([seven.step, one_by_one], rounds, synchronise=synchronise)

    def row(case: str, ours: float, peer: float, peer_stock: float | None, fraction: float) -> dict[str, Any]:
        stock_ratio = ours / peer_stock if peer_stock else None
        return {
            "backbone": name,
            "case": case,
            "ours": ours,
            "peer": peer,
            "ratio": ours / peer,
            "peer_stock": peer_stock,
            "ratio_stock": stock_ratio,
            "floor_fraction": fraction,
        }

    return [
        row("step-float32", step, peer, stock[0], step * floor["float32"]),
        row("step-bfloat16", step_low, peer, stock[0], step_low * floor["bfloat16"]),
        row("end-to-end", end, peer_end, stock[1], end * floor["float32"]),
        row("end-to-end-bfloat16", end_low, peer_end, stock[1], end_low * floor["bfloat16"]),
        row("population-7", together, apart, None, together * 7 * floor["float32"]),
    ]


def _target_operations(ours: Ours) -> float:
    """Operations of the passes without gradient that `target_precision` applies to."""
    backbone = ours.backbone
    if not backbone.CRITICS:  # COptiDICE
        return 0.0
    noise = draw_noise(ours.population, ours.algorithm.noise_shapes, torch.float32)
    one = {net: {k: v[0] for k, v in leaves.items()} for net, leaves in ours.population.nets.items()}
    batch = Batch(*(part[0] for part in ours.fixed))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.bellman_targets(one, batch, noise["target"][0], ours.cfg)
        if hasattr(backbone, "ood_cost"):
            backbone.ood_cost(one, batch, noise["ood"][0], ours.cfg)
    return float(counter.get_total_flops())


def time_by_operation(backbones: Sequence[str] = BACKBONES, steps: int = 5, most: int = 6) -> list[dict[str, Any]]:
    """Where the time of our float32 step goes on the CPU: operations by their own share of the time, largest first."""
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
