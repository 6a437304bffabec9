"""One agent in one file: its tensors, and what is needed to use them (task, backbone, settings, step)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from saferule.agents import get_backbone
from saferule.agents.parts import ORIGINAL, Nets
from saferule.agents.population import Population
from saferule.agents.state import read, restore, tensors_of, write
from saferule.errors import CheckpointError

ACTING = ("actor", "vae")  # the networks that choose actions


@dataclass
class Agent:
    """A saved agent; ``population`` is None where only the acting networks were kept."""

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
    acting = {f"nets/{net}/{k}": leaf[p : p + 1] for net in ACTING for k, leaf in population.nets.get(net, {}).items()}
    save_tensors(acting, path, task, backbone, cfg, {"step": population.step, "acting_only": True})


def load_agent(path: str | Path, device: str = "cpu") -> Agent:
    """Read an agent. CheckpointError when the file is not a whole saferule checkpoint."""
    tensors, meta = read(path, device)
    if "backbone" not in meta:
        raise CheckpointError(f"{path}: the state of a population, expected one agent: give an agent.safetensors")
    backbone = get_backbone(meta["backbone"])
    saved = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["settings"].items()}
    cfg = backbone.Config(**saved)
    if meta.get("acting_only"):
        nets: Nets = {}
        for name, value in tensors.items():
            _, net, leaf = name.split("/")
            nets.setdefault(net, {})[leaf] = value[0]
        return Agent(meta["task"], backbone, cfg, nets, None, meta)
    population = restore(tensors, cfg.learning_rates, meta["step"])
    nets = {net: {k: v[0].detach() for k, v in leaves.items()} for net, leaves in population.nets.items()}
    return Agent(meta["task"], backbone, cfg, nets, population, meta)
