"""One agent in one file: its tensors, and what is needed to use them (task, backbone, settings, step).

A file holds the complete agent, which can be trained on, or a snapshot: the acting networks alone, or all networks that
the agent's losses train, without targets, optimisers and generators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saferule.agents import get_backbone
from saferule.agents.parts import ORIGINAL, Nets
from saferule.agents.population import Population
from saferule.agents.state import read, restore, tensors_of, write
from saferule.errors import CheckpointError
from saferule.sim.rollout import Act

ACTING = ("actor", "vae")  # the networks that choose actions
SNAPSHOTS = ("acting_only", "networks_only")  # what a snapshot's description says of itself


@dataclass
class Agent:
    """A saved agent; ``population`` is None where only networks were kept (a snapshot) or read (`load_networks`)."""

    task: str
    backbone: ModuleType
    cfg: Any
    nets: Nets
    population: Population | None
    meta: dict[str, Any]


def save_agent(
    population: Population, p: int, path: Path, task: str, backbone: str, cfg: Any, meta: dict[str, Any]
) -> None:
    """The complete state of agent p of a population."""
    tensors = {
        n: v if n.endswith("/step") else v[p : p + 1]
        for n, v in tensors_of(population).items()
        if not n.startswith(f"nets/{ORIGINAL}")  # copies of an agent that has a file of its own
    }
    save_tensors(tensors, path, task, backbone, cfg, meta | {"step": population.step})


def save_tensors(
    tensors: dict[str, Tensor], path: Path, task: str, backbone: str, cfg: Any, meta: dict[str, Any]
) -> None:
    """A state with population axis 1, as `tensors_of` names it."""
    write(path, tensors, meta | {"task": task, "backbone": backbone, "settings": asdict(cfg)})


def save_acting(population: Population, p: int, path: Path, task: str, backbone: str, cfg: Any) -> None:
    """The acting networks of one agent: enough to evaluate it."""
    acting = [net for net in ACTING if net in population.nets]
    _save_some(acting, "acting_only", population, p, path, task, backbone, cfg)


def save_networks(population: Population, p: int, path: Path, task: str, backbone: str, cfg: Any) -> None:
    """The acting networks of one agent and what it judges actions by (critics; nu and chi of COptiDICE).

    Enough to evaluate the agent and to ask its critics; left out are targets and copies of other agents' networks.
    """
    targets = get_backbone(backbone).TARGETS
    own = [net for net in population.nets if net not in targets and not net.startswith(ORIGINAL)]
    _save_some(own, "networks_only", population, p, path, task, backbone, cfg)


def _save_some(
    names: list[str], kind: str, population: Population, p: int, path: Path, task: str, backbone: str, cfg: Any
) -> None:
    tensors = {f"nets/{net}/{k}": leaf[p : p + 1] for net in names for k, leaf in population.nets[net].items()}
    save_tensors(tensors, path, task, backbone, cfg, {"step": population.step, kind: True})


def load_agent(path: str | Path, device: str = "cpu") -> Agent:
    """Read an agent. CheckpointError when the file is not a whole saferule checkpoint."""
    agent, tensors = _read_networks(path, device)
    if not any(agent.meta.get(kind) for kind in SNAPSHOTS):
        agent.population = restore(tensors, agent.cfg.learning_rates, agent.meta["step"])
        agent.nets = {n: {k: v[0].detach() for k, v in net.items()} for n, net in agent.population.nets.items()}
    return agent


def load_networks(path: str | Path, device: str = "cpu") -> Agent:
    """Read the networks of a complete agent or of a snapshot; what training goes on with stays in the file."""
    return _read_networks(path, device)[0]


def _read_networks(path: str | Path, device: str) -> tuple[Agent, dict[str, Tensor]]:
    tensors, meta = read(path, device)
    if "backbone" not in meta:
        raise CheckpointError(f"{path}: the state of a population, expected one agent: give an agent.safetensors")
    backbone = get_backbone(meta["backbone"])
    saved = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["settings"].items()}
    nets: Nets = {}
    for name, value in tensors.items():
        kind, *names = name.split("/")
        if kind == "nets":
            nets.setdefault(names[0], {})[names[1]] = value[0]
    return Agent(meta["task"], backbone, backbone.Config(**saved), nets, None, meta), tensors


def agent_policy(backbone: Any, cfg: Any, nets: dict, seeds: Sequence[int], deterministic: bool = True) -> Act:
    """How a trained agent acts in one episode per seed; what it draws is seeded by the episodes' seeds.

    nets  the acting networks of one agent
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = backbone.noise_shapes(cfg, 1)["policy"][1:] if not deterministic else ()

    @torch.no_grad()
    def act(observations: np.ndarray, t: int) -> np.ndarray:
        tensor = torch.from_numpy(observations).float()
        noise = None if deterministic else torch.stack([torch.randn(shape, generator=g) for g in generators])
        return backbone.act(nets, tensor, noise, cfg).double().numpy()

    return act
