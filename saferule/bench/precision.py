"""``saferule bench precision``: are target passes in bfloat16 good enough to learn with?

Two questions on CarCircle's data: how far are the Bellman targets of one agent off in bfloat16, measured against the
spread of the targets and against its own Bellman error; and do agents trained with either precision learn alike, by the
return and cost in the simulator over several seeds. The default of a profile follows from the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from saferule.agents.checkpoint import load_agent
from saferule.agents.networks import double_q
from saferule.data.batches import TransitionPool
from saferule.profiles import get_profile
from saferule.runs import plan
from saferule.runs.cells import Training, settings
from saferule.runs.engine import Engine
from saferule.runs.interruptible import AGENT, snapshot_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "CarCircle"
PRECISIONS = ("float32", "bfloat16")
BACKBONES = ("bcq-lag", "bear-lag", "cpq")  # COptiDICE has no target passes
ROWS = 4096  # transitions on which targets are compared


def cells(engine: Engine, seeds: Sequence[int], steps: int, precision: str) -> list[Training]:
    """Clean policies of every backbone, trained with target passes in one precision."""
    profile = get_profile("cpu", training_steps=steps, seeds=list(seeds), attacks=(), snapshots=4)
    profile = replace(profile, settings=settings(**dict(profile.settings), target_precision=precision))
    data = engine.dataset(TASK)
    return [cell for backbone in BACKBONES for cell in plan.trainings(profile, data, TASK, backbone)]


def learning_curves(engine: Engine, seeds: Sequence[int], steps: int) -> pd.DataFrame:
    """Episodes of every snapshot and of the final policy, with a column ``precision``; trains what is missing."""
    both = {precision: cells(engine, seeds, steps, precision) for precision in PRECISIONS}
    engine.train([cell for group in both.values() for cell in group])
    profile = get_profile("cpu", episodes=20, curve_episodes=10)
    frames = []
    for precision, group in both.items():
        points = [*snapshot_steps(engine.store, group[0]), None]
        frames.append(engine.evaluate(plan.curve(profile, group, points)).assign(precision=precision))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def target_errors(engine: Engine, seeds: Sequence[int], steps: int) -> pd.DataFrame:
    """One row per trained agent (float32) and critic: what bfloat16 changes in its Bellman targets.

    rms_error, rms_bellman (of the float32 target against the critic's own value) and spread (standard deviation of the
    targets), in the critic's units, and the error in units of the other two.
    """
    rows = []
    for cell in cells(engine, seeds, steps, "float32"):
        agent = load_agent(engine.store.folder(cell) / AGENT)
        pool = TransitionPool([engine.dataset(TASK)], agent.cfg.reward_scale)
        generator = torch.Generator().manual_seed(cell.seed)
        batch = pool.gather(torch.randint(len(engine.dataset(TASK)), (ROWS,), generator=generator))
        noise = torch.randn(agent.backbone.noise_shapes(agent.cfg, ROWS)["target"], generator=generator)
        full, low = (
            agent.backbone.bellman_targets(agent.nets, batch, noise, replace(agent.cfg, target_precision=precision))
            for precision in PRECISIONS
        )
        values = (agent.backbone.q_reward, agent.backbone.q_cost)
        for name, exact, rounded, value in zip(("reward", "cost"), full, low, values, strict=True):
            q = value(agent.nets, batch.observations, batch.actions)
            bellman = (exact - torch.stack(double_q(q)).amin(0)).pow(2).mean().sqrt().item()
            error, spread = (rounded - exact).pow(2).mean().sqrt().item(), exact.std().item()
            rows.append(
                {
                    "backbone": cell.backbone,
                    "seed": cell.seed,
                    "critic": name,
                    "rms_error": error,
                    "rms_bellman": bellman,
                    "spread": spread,
                    "error/bellman": error / bellman,
                    "error/spread": error / spread,
                }
            )
    return pd.DataFrame(rows)


def figure(curves: pd.DataFrame, cost_limit: float = 10.0) -> Figure:
    """Return and cost of either precision while it learns: a line per precision, a dot per seed."""
    from matplotlib.figure import Figure

    colours = {"float32": "#0072B2", "bfloat16": "#D55E00"}
    fig = Figure(figsize=(9, 5.4), layout="constrained")
    axes = fig.subplots(2, len(BACKBONES), sharex=True, squeeze=False)
    for column, backbone in enumerate(BACKBONES):
        for row, (quantity, label) in enumerate((("return", "episode return"), ("cost", "episode cost"))):
            axis = axes[row][column]
            for precision, colour in colours.items():
                part = curves[(curves.backbone == backbone) & (curves.precision == precision)]
                per_seed = part.groupby(["step", "training_seed"])[quantity].mean().reset_index()
                mean = per_seed.groupby("step")[quantity].mean()
                axis.plot(mean.index, mean.values, color=colour, label=precision)
                axis.plot(per_seed["step"], per_seed[quantity], ".", color=colour, alpha=0.6)
            if quantity == "cost":
                axis.axhline(cost_limit, color="0.4", lw=1, ls="--")
                axis.set_xlabel("gradient steps")
                axis.set_ylim(bottom=0)
            if not column:
                axis.set_ylabel(label)
            if not row:
                axis.set_title(backbone)
    axes[0][0].legend(frameon=False)
    return fig


def study(engine: Engine, folder: Path, seeds: Sequence[int] = (0, 1, 2), steps: int = 4000) -> dict[str, Any]:
    """Train, compare, and write ``precision.png``, ``precision_curves.csv`` and ``precision_errors.csv``.

    Returns, per backbone, the difference of the final return and cost (bfloat16 - float32) and its standard error over
    seeds, paired by seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with engine.store.lock():
        curves = learning_curves(engine, seeds, steps)
    errors = target_errors(engine, seeds, steps)
    curves.to_csv(folder / "precision_curves.csv", index=False)
    errors.to_csv(folder / "precision_errors.csv", index=False)
    figure(curves).savefig(folder / "precision.png", dpi=120)
    final = curves[curves.step == curves.step.max()]
    table = final.groupby(["backbone", "training_seed", "precision"])[["return", "cost"]].mean().unstack()
    summary = {}
    for backbone, part in table.groupby(level=0):
        differences = {q: part[q]["bfloat16"] - part[q]["float32"] for q in ("return", "cost")}
        summary[str(backbone)] = {
            q: {"difference": float(d.mean()), "standard_error": float(d.std() / len(d) ** 0.5)}
            for q, d in differences.items()
        }
    return summary
