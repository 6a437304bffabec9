"""Agents in safetensors files: their state as flat tensors under path-like names, and what is needed to use them.

Unlike an osrl-lib checkpoint, which holds the networks alone, a saved agent continues exactly where it stopped:
networks, targets, multipliers, Adam's moments, step and generator are all there. A file may also hold less: what `act`
reads, or the networks without targets and what training goes on with.

The header names the format (`FORMAT`; files from before there was a number have none and are read all the same) and the
versions of saferule and torch that wrote the file. What is read is checked against the shapes that the backbone has
under the file's settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saferule import __version__
from saferule.agents import get_backbone
from saferule.agents.parts import ORIGINAL, Nets
from saferule.agents.population import Population, adam
from saferule.agents.settings import configured
from saferule.errors import CheckpointError, SaferuleError, shortened
from saferule.files import write_bytes
from saferule.sim.rollout import Act
from saferule.sim.tasks import get_task

MOMENTS = ("exp_avg", "exp_avg_sq")
Shapes = dict[str, tuple[int, ...]]  # by the names of tensors in a file
FORMAT = 1  # grows when files change so that an older saferule cannot read them
# By nets/<network>/<parameter>, scalars/<name>, adam/<network>/<parameter>/<moment>, and generators.
Tensors = dict[str, Tensor]


def tensors_of(population: Population) -> Tensors:
    """Every tensor of the population's state; leading axis P except for Adam's step."""
    flat = {f"nets/{net}/{k}": v.detach() for net, leaves in population.nets.items() for k, v in leaves.items()}
    flat |= {f"scalars/{name}": value for name, value in population.scalars.items()}
    for net, optimiser in population.optimisers.items():
        for k, leaf in population.nets[net].items():
            flat |= {f"adam/{net}/{k}/{moment}": v for moment, v in optimiser.state[leaf].items()}
    return flat | {"generators": torch.stack([generator.get_state() for generator in population.generators])}


def part_of(tensors: Tensors, members: list[int]) -> Tensors:
    """Copies of a state's tensors for some of its agents."""
    return {name: v.clone() if name.endswith("/step") else v[members] for name, v in tensors.items()}


def acting_part(tensors: Tensors, backbone: str) -> Tensors:
    """Of an agent's tensors those that ``act`` reads: enough to evaluate it."""
    return {name: v for name, v in tensors.items() if name.startswith(_acting(get_backbone(backbone)))}


def starting_part(tensors: Tensors, moments: bool = False) -> Tensors:
    """Of an agent's tensors its own, without frozen copies of another's; with Adam's moments, or cold."""
    left_out = (f"nets/{ORIGINAL}",) if moments else (f"nets/{ORIGINAL}", "adam/")
    return {name: v for name, v in tensors.items() if not name.startswith(left_out)}


def _acting(backbone: ModuleType) -> tuple[str, ...]:
    return tuple(f"nets/{net}/{prefix or ''}" for net, prefix in backbone.ACTING.items())


def restore(tensors: Tensors, learning_rates: dict[str, float], step: int) -> Population:
    """The population whose `tensors_of` these are; networks that Adam's moments name are trained on."""
    tree: dict[str, Any] = {"nets": {}, "scalars": {}, "adam": {}}
    for name, value in tensors.items():
        *path, last = name.split("/")
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value.cpu().clone() if name == "generators" else value.clone()
    generators = [torch.Generator() for _ in tree["generators"]]
    for generator, state in zip(generators, tree["generators"], strict=True):
        generator.set_state(state.clone())  # a copy: set_state misreads a view
    optimisers = {net: adam(tree["nets"][net], learning_rates[net], moments) for net, moments in tree["adam"].items()}
    return Population(tree["nets"], tree["scalars"], optimisers, generators, step)


def take(population: Population, members: list[int], learning_rates: dict[str, float]) -> Population:
    """A population of some of the agents, their state unchanged."""
    return restore(part_of(tensors_of(population), members), learning_rates, population.step)


def write(path: str | Path, tensors: Tensors, meta: dict[str, Any]) -> None:
    """Write tensors and what JSON can hold of them to one safetensors file, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    versions = {"saferule": __version__, "torch": str(torch.__version__)}
    header = {"saferule": meta, "format": FORMAT, "versions": versions}
    header = {name: json.dumps(entry, sort_keys=True) for name, entry in header.items()}
    write_bytes(path, safetensors.torch.save(contiguous, header))


def read(path: str | Path, device: str = "cpu") -> tuple[Tensors, dict[str, Any]]:
    """What `write` wrote. CheckpointError for anything else, and for a format that is newer than this code's."""
    try:
        with safe_open(path, framework="pt", device=device) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected a saferule checkpoint: check the path") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({shortened(str(error), 90)}): the file is truncated or of "
            "another format, make it again"
        ) from error
    if "saferule" not in header:
        raise CheckpointError(f"{path}: a safetensors file that saferule did not write: give a saferule checkpoint")
    try:
        entries = {name: json.loads(header[name]) for name in ("saferule", "format", "versions") if name in header}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error}), expected JSON: get the file again") from None
    form, meta = entries.get("format", 0), entries["saferule"]
    if type(form) is not int or not 0 <= form <= FORMAT:
        raise CheckpointError(
            f"{path}: in format {form} of {entries.get('versions')}, expected 0 to {FORMAT}, which saferule "
            f"{__version__} reads: install the saferule that wrote it"
        )
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}: its header holds no description, expected one: get the file again")
    return tensors, meta


@dataclass
class Agent:
    """A saved agent; ``population`` is None where only networks were kept, or read (`load_networks`)."""

    task: str
    backbone: ModuleType
    cfg: Any
    nets: Nets
    population: Population | None
    meta: dict[str, Any]


def save_tensors(tensors: Tensors, path: Path, task: str, backbone: str, cfg: Any, meta: dict[str, Any]) -> None:
    """A state with population axis 1, or a part of one, and what is needed to use it."""
    write(path, tensors, meta | {"task": task, "backbone": backbone, "config": asdict(cfg)})


def save_agent(
    population: Population, p: int, path: Path, task: str, backbone: str, cfg: Any, meta: dict[str, Any]
) -> None:
    """The complete state of agent p, without frozen copies of an agent that has a file of its own."""
    own = starting_part(tensors_of(population), moments=True)
    save_tensors(part_of(own, [p]), path, task, backbone, cfg, meta | {"step": population.step})


def save_networks(population: Population, p: int, path: Path, task: str, backbone: str, cfg: Any) -> None:
    """The networks of agent p that are trained: enough to evaluate it and to ask what it judges actions by."""
    targets = get_backbone(backbone).TARGETS
    own = [net for net in population.nets if net not in targets and not net.startswith(ORIGINAL)]
    _save_some(dict.fromkeys(own), population, p, path, task, backbone, cfg)


def save_acting(population: Population, p: int, path: Path, task: str, backbone: str, cfg: Any) -> None:
    """What ``act`` of agent p reads and nothing else: enough to evaluate it."""
    _save_some(get_backbone(backbone).ACTING, population, p, path, task, backbone, cfg)


def _save_some(
    wanted: dict[str, str | None], population: Population, p: int, path: Path, task: str, backbone: str, cfg: Any
) -> None:
    """Networks by name; of each the parameters with a prefix, or all (None)."""
    leaves = {(net, k): leaf for net in wanted for k, leaf in population.nets[net].items()}
    some = {f"nets/{net}/{k}": leaf for (net, k), leaf in leaves.items() if k.startswith(wanted[net] or "")}
    save_tensors(part_of(some, [p]), path, task, backbone, cfg, {"step": population.step})


def load_agent(path: str | Path, device: str = "cpu") -> Agent:
    """Read an agent. CheckpointError when the file is not a whole saferule checkpoint."""
    return _load(path, device, complete=True)


def load_networks(path: str | Path, device: str = "cpu") -> Agent:
    """Read the networks of an agent; what training goes on with, if it was saved, stays in the file."""
    return _load(path, device, complete=False)


def _load(path: str | Path, device: str, complete: bool) -> Agent:
    tensors, meta = read(path, device)
    if "backbone" not in meta:
        raise CheckpointError(f"{path}: the state of a population, expected one agent: give an agent.safetensors")
    backbone, cfg, shapes, scalars = _described(path, meta)
    _check(path, tensors, shapes, scalars, backbone)
    try:
        population = (
            restore(tensors, cfg.learning_rates, meta["step"]) if complete and "generators" in tensors else None
        )
    except RuntimeError as error:  # of a generator, the only thing that torch looks into
        raise CheckpointError(f"{path}: tensor 'generators' is no generator's state: get the file again") from error
    nets: Nets = {}
    for name, value in (tensors_of(population) if population else tensors).items():
        kind, *names = name.split("/")
        if kind == "nets":
            nets.setdefault(names[0], {})[names[1]] = value[0]
    return Agent(meta["task"], backbone, cfg, nets, population, meta)


def _described(path: str | Path, meta: dict[str, Any]) -> tuple[ModuleType, Any, Shapes, Shapes]:
    """Backbone and settings that a file names, and the shapes that parameters and scalars have under these."""
    try:
        get_task(meta["task"])
        backbone = get_backbone(meta["backbone"])
        cfg = configured(backbone.Config, meta["config"])
        if not isinstance(meta["step"], int):
            raise TypeError(f"step = {meta['step']!r}")
        with torch.device("meta"):  # shapes alone: nothing is drawn or kept
            nets, scalars = backbone.init(cfg, None)
    except KeyError as error:
        raise CheckpointError(f"{path}: its header has no {error}, expected a whole one: get the file again") from None
    except (SaferuleError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        cause = str(error).partition("\n")[0][:120]
        raise CheckpointError(f"{path}: its header cannot be meant ({cause}): get the file again") from None
    nets |= {target: nets[source] for target, source in backbone.TARGETS.items()}
    shapes = {f"nets/{net}/{k}": (1, *leaf.shape) for net, leaves in nets.items() for k, leaf in leaves.items()}
    return backbone, cfg, shapes, {f"scalars/{name}": (1, *value.shape) for name, value in scalars.items()}


def _check(path: str | Path, tensors: Tensors, shapes: Shapes, scalars: Shapes, backbone: ModuleType) -> None:
    """CheckpointError unless these are the tensors of one agent: all of them, or some with what `act` reads.

    Scalars that a method added are known by no name here; one per agent is all that is asked of them.
    """
    acting, whole = _acting(backbone), "generators" in tensors
    needed = shapes | scalars if whole else {name: shape for name, shape in shapes.items() if name.startswith(acting)}
    expected = shapes | scalars | {"generators": (1, *torch.Generator().get_state().shape)}
    expected |= {f"nets/{ORIGINAL}{name.removeprefix('nets/')}": shape for name, shape in shapes.items()}
    for net in {name.split("/")[1] for name in tensors if name.startswith("adam/")}:
        own = {n.replace("nets", "adam", 1): s for n, s in shapes.items() if n.startswith(f"nets/{net}/")}
        moments = {f"{n}/{m}": () if m == "step" else s for n, s in own.items() for m in ("step", *MOMENTS)}
        needed, expected = needed | moments, expected | moments
    what = f"{'a whole' if whole else 'what acts of a'} {backbone.NAME} agent"
    for name in needed:
        if name not in tensors:
            raise CheckpointError(f"{path}: tensor {name!r} is missing, expected {what}: get the file again")
    for name, value in tensors.items():
        shape = (1, *value.shape[1:]) if name.startswith("scalars/") and name not in scalars else expected.get(name)
        if shape is None:
            raise CheckpointError(f"{path}: tensor {name!r} is unknown, expected {what}: get the file again")
        if tuple(value.shape) != shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tuple(value.shape)}, expected {shape}: get the file again"
            )
        if name.startswith("nets/") and not (value.is_floating_point() and value.isfinite().all()):
            raise CheckpointError(f"{path}: tensor {name!r} is not of finite numbers: get the file again")
        if name == "generators" and value.dtype != torch.uint8:
            raise CheckpointError(f"{path}: tensor {name!r} is of {value.dtype}, expected uint8: get the file again")


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
