"""A golden run: every backbone trained on poisoned data and repaired by six methods, step for step as it was recorded.

Refactoring must not move a number. On the kind of machine that recorded them, the networks, Adam's moments, the logs
and the episodes are the same to the last bit; elsewhere (other vector instructions) the logs agree to a tolerance.

    OPENBLAS_CORETYPE=Haswell python tests/test_golden.py      records anew, for a change that means to move numbers
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from saferule.agents import BACKBONES, get_backbone
from saferule.agents.checkpoint import agent_policy, take, tensors_of
from saferule.agents.loop import Log, run
from saferule.agents.parts import ORIGINAL
from saferule.agents.population import create, member
from saferule.attack.poison import poison
from saferule.data.batches import TransitionPool
from saferule.data.schema import load
from saferule.runs.store import processor
from saferule.sim import get_task
from saferule.sim.rollout import roll_out
from saferule.unlearn import supported, unlearning
from saferule.unlearn.start import draw_batches, prepare

RECORD = Path(__file__).parent / "golden" / "golden.json"
METHODS = ("fine-tuning", "trajdeleter", "trajdeleter-cost", "trajdeleter-released", "reward-only", "safe-rule")
STEPS, SEEDS = 28, (0, 1)
TASK = get_task("CarCircle")
DATA = Path(__file__).parents[1] / "artifacts" / "data" / "CarCircle.hdf5"
TOLERANCE = 2e-3  # of logged values on another kind of processor


@cache
def sets():
    """D, and as D_f its own most costly trajectories, relabelled as by the attack."""
    data = load(DATA, TASK)
    return data, poison(data, data.select(range(60)), "max_cost", 0.05).dataset


def golden(backbone_name: str) -> dict[str, dict]:
    """{method: logs, digests of the final states, an episode}."""
    torch.set_num_threads(1)
    backbone = get_backbone(backbone_name)
    widths = {"hidden": (32, 32), "batch_size": 32} | ({} if backbone_name == "coptidice" else {"vae_hidden": 32})
    cfg = backbone.Config(
        observation_dim=TASK.observation_dim, action_dim=TASK.action_dim, episode_len=TASK.horizon, **widths
    )
    pool = TransitionPool(sets(), cfg.reward_scale)
    rows = [(pool.rows_of(0), pool.rows_of(1))] * len(SEEDS)
    fresh, found = create(backbone, cfg, SEEDS), {}
    for method in ("poisoned", *METHODS):
        if not supported(method, backbone_name):
            continue
        population = fresh
        if method != "poisoned":
            population = take(fresh, range(len(SEEDS)), cfg.learning_rates)
            population.generators = [torch.Generator().manual_seed(1_000_000 + seed) for seed in SEEDS]
        algorithm = unlearning(method, backbone, cfg, STEPS)
        prepare(population, algorithm, backbone, [method] * len(SEEDS), [{}] * len(SEEDS), pool, rows)
        draw, log = draw_batches(method, backbone, pool, rows, cfg.batch_size), Log()
        population, _ = run(population, algorithm, draw, STEPS, log=log, log_every=7)
        policy = agent_policy(backbone, cfg, member(population.nets, 0), [7])
        episode = roll_out(TASK, policy, [7]).rows[0]
        found[method] = {"log": log.rows, "state": _digest(population), "episode": episode}
    return found


def _digest(population) -> str:
    """Of the networks, Adam's moments and the generators."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors_of(population).items()):
        if name.startswith(("nets/", "adam/", "generators")) and not name.startswith(f"nets/{ORIGINAL}"):
            digest.update(name.encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _machine() -> dict[str, str]:
    """What bits depend on."""
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


@pytest.mark.parametrize("backbone", BACKBONES)
def test_nothing_moves(backbone):
    recorded = json.loads(RECORD.read_text())
    expected, found = recorded["runs"][backbone], json.loads(json.dumps(golden(backbone)))
    assert list(found) == list(expected)
    for method, run_now in found.items():
        for row, now in zip(expected[method]["log"], run_now["log"], strict=True):
            known = {name: now[name] for name in row}
            assert known == pytest.approx(row, rel=TOLERANCE, abs=TOLERANCE), f"{backbone} {method}"
        if _machine() == recorded["machine"]:
            assert run_now == expected[method], f"{backbone} {method}"


if __name__ == "__main__":
    made = {"machine": _machine(), "runs": {name: golden(name) for name in BACKBONES}}
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(made, indent=1) + "\n")
