"""A golden run: every backbone trained on poisoned data and repaired by six methods, step for step as it was recorded.

Refactoring must not move a number. On the kind of machine that recorded them, the networks, Adam's moments, the logs
and the episodes are the same to the last bit; elsewhere (other vector instructions) the logs agree to a tolerance.

    OPENBLAS_CORETYPE=Haswell python tests/test_golden.py      records anew, for a change that means to move numbers
"""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from saferule.agents import BACKBONES, get_backbone
from saferule.agents.checkpoint import agent_policy, tensors_of
from saferule.agents.loop import Log, run
from saferule.agents.parts import ORIGINAL
from saferule.agents.population import Population, create, member, stack, training
from saferule.attack.poison import poison
from saferule.data.batches import TransitionPool, draw_rows
from saferule.data.schema import load
from saferule.sim import get_task
from saferule.sim.rollout import roll_out
from saferule.unlearn import supported, unlearning
from saferule.unlearn.start import draw_batches, prepare, statistics

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
    """{method or "poisoned": logs, digests of the final states, an episode}."""
    torch.set_num_threads(1)
    backbone = get_backbone(backbone_name)
    widths = {"hidden": (32, 32), "batch_size": 32} | ({} if backbone_name == "coptidice" else {"vae_hidden": 32})
    cfg = backbone.Config(
        observation_dim=TASK.observation_dim, action_dim=TASK.action_dim, episode_len=TASK.horizon, **widths
    )
    pool = TransitionPool(sets(), cfg.reward_scale)
    keep, forget = pool.rows_of(0), pool.rows_of(1)
    everything = torch.cat((keep, forget))
    rows = [(keep, forget)] * len(SEEDS)

    def draw(population, agents):
        return pool.gather(draw_rows(population.generators, [everything] * len(agents), cfg.batch_size))

    poisoned = create(backbone, cfg, SEEDS)
    if backbone_name == "coptidice":
        poisoned.scalars |= stack([statistics(backbone, pool, everything) for _ in SEEDS])
    found = {"poisoned": _told(*_run(poisoned, training(backbone, cfg), draw), backbone, cfg)}
    for method in METHODS:
        if not supported(method, backbone_name):
            continue
        generators = [torch.Generator().manual_seed(1_000_000 + seed) for seed in SEEDS]
        nets = {n: {k: v.detach().clone() for k, v in net.items()} for n, net in poisoned.nets.items()}
        scalars = {name: value.clone() for name, value in poisoned.scalars.items()}
        repaired = Population(nets, scalars, {}, generators)
        algorithm = unlearning(method, backbone, cfg, STEPS)
        prepare(repaired, algorithm, backbone, [method] * len(SEEDS), [{}] * len(SEEDS), pool, rows)
        draw_pairs = draw_batches(method, backbone, pool, rows, cfg.batch_size)
        found[method] = _told(*_run(repaired, algorithm, draw_pairs), backbone, cfg)
    return found


def _run(population, algorithm, draw):
    log = Log()
    population, _ = run(population, algorithm, draw, STEPS, log=log, log_every=7)
    return population, log


def _told(population, log, backbone, cfg) -> dict:
    tensors = {
        name: value
        for name, value in tensors_of(population).items()
        if name.startswith(("nets/", "adam/", "generators")) and not name.startswith(f"nets/{ORIGINAL}")
    }
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    nets = member(population.nets, 0)
    episode = roll_out(TASK, agent_policy(backbone, cfg, nets, [7]), [7]).rows[0]
    return {"log": log.rows, "state": digest.hexdigest(), "episode": episode}


def _machine() -> dict[str, str]:
    """What bits depend on."""
    model = next((line for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return {
        "processor": model.partition(":")[2].strip() or model,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


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
            assert run_now["log"] == expected[method]["log"], f"{backbone} {method}"
            assert run_now["state"] == expected[method]["state"], f"{backbone} {method}"
            assert run_now["episode"] == expected[method]["episode"], f"{backbone} {method}"


if __name__ == "__main__":
    made = {"machine": _machine(), "runs": {name: golden(name) for name in BACKBONES}}
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(made, indent=1) + "\n")
