"""The complete state of agents as flat tensors, and in safetensors files.

Unlike an osrl-lib checkpoint, which holds the networks alone, a saved agent continues exactly where it stopped:
networks, targets, multipliers, Adam's moments, step and generator are all there.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferule.agents.population import Population
from saferule.errors import CheckpointError

ADAM = ("exp_avg", "exp_avg_sq", "step")


def tensors_of(population: Population) -> dict[str, Tensor]:
    """Every tensor of the population's state under a path-like name; leading axis P except for Adam's step."""
    flat = {f"nets/{net}/{k}": v.detach() for net, leaves in population.nets.items() for k, v in leaves.items()}
    flat |= {f"scalars/{name}": value for name, value in population.scalars.items()}
    for net, optimiser in population.optimisers.items():
        for k, leaf in population.nets[net].items():
            flat |= {f"adam/{net}/{k}/{m}": v for m, v in optimiser.state.get(leaf, {}).items() if m in ADAM}
    states = [generator.get_state() for generator in population.generators]
    return flat | {"generators": torch.stack(states)}


def restore(tensors: dict[str, Tensor], learning_rates: dict[str, float], step: int) -> Population:
    """The population whose `tensors_of` these are; networks that Adam's moments name are trained on."""
    nets: dict[str, dict[str, Tensor]] = {}
    scalars, moments = {}, {}
    for name, value in tensors.items():
        kind, *path = name.split("/")
        if kind == "nets":
            nets.setdefault(path[0], {})[path[1]] = value.clone()
        elif kind == "scalars":
            scalars[path[0]] = value.clone()
        elif kind == "adam":
            moments.setdefault(path[0], {}).setdefault(path[1], {})[path[2]] = value.clone()
    generators = []
    for state in tensors["generators"]:
        generator = torch.Generator()
        generator.set_state(state.cpu().clone())  # a copy: set_state misreads a view
        generators.append(generator)
    optimisers = {}
    for net, state in moments.items():
        leaves = nets[net]
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        on_gpu = next(iter(leaves.values())).is_cuda
        optimisers[net] = torch.optim.Adam(leaves.values(), lr=learning_rates[net], fused=True, capturable=on_gpu)
        for k, leaf in leaves.items():
            optimisers[net].state[leaf] = state[k]
    return Population(nets, scalars, optimisers, generators, step)


def take(population: Population, members: list[int], learning_rates: dict[str, float]) -> Population:
    """A population of some of the agents, their state unchanged."""
    flat = {
        name: value.clone() if name.endswith("/step") else value[members].clone()
        for name, value in tensors_of(population).items()
    }
    return restore(flat, learning_rates, population.step)


def write(path: str | Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and JSON-able settings to one safetensors file, atomically."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(contiguous, temporary, metadata={"saferule": json.dumps(meta, sort_keys=True)})
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of a file that `write` made. CheckpointError for anything else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=device) as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected a saferule checkpoint: check the path") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}): the file is truncated or of another format, make it again"
        ) from error
    if "saferule" not in meta:
        raise CheckpointError(f"{path}: a safetensors file that saferule did not write: give a saferule checkpoint")
    return tensors, json.loads(meta["saferule"])
