"""osrl-lib checkpoints in and out.

osrl-lib's training scripts save ``{"model_state": model.state_dict()}``: networks and their targets, nothing else. What
an agent needs besides is set to the start of training on import, and one warning names it. An agent imported here and
saved by `saferule.agents.checkpoint` is complete from then on.

The two libraries hold the same numbers in other shapes: a ``torch.nn.Linear`` stores (out, in), our layers (in, out);
the two heads of a Gaussian are one last layer here; the members of an ensemble are stacked.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferule.agents import get_backbone
from saferule.agents.checkpoint import Agent
from saferule.agents.parts import Nets
from saferule.agents.population import Population, reset_optimisers, stack, training
from saferule.data.batches import first_steps
from saferule.data.schema import Dataset
from saferule.errors import CheckpointError
from saferule.files import write_bytes
from saferule.sim import Task, get_task

State = dict[str, Tensor]

# A key that starts like this tells the backbone; the first that fits, in this order.
MARKS = {
    "nu_network.": "coptidice",
    "actor.pi.": "bcq-lag",
    "critic.q1_nets.": "bear-lag",
    "critic.q_nets.": "cpq",
}
VAE = {"e_": (("e1",), ("e2",), ("mean", "log_std")), "d_": (("d1",), ("d2",), ("d3",))}


class Layer(NamedTuple):
    """One layer of ours: for each ensemble member, the osrl-lib linear modules whose outputs it joins."""

    network: str
    weight: str
    bias: str
    members: tuple[tuple[str, ...], ...]
    ensemble: bool


def layers(backbone: str, cfg: Any) -> Iterator[Layer]:
    """Every layer of a backbone, targets included, with its place in an osrl-lib state."""
    if backbone == "coptidice":
        yield from _gaussian("actor", "actor", len(cfg.hidden))
        for network, count in (("nu", cfg.num_nu), ("chi", cfg.num_chi)):
            yield from _ensemble(network, [f"{network}_network.q_nets.{e}" for e in range(count)], cfg)
        return
    halves = ("q_nets",) if backbone == "cpq" else ("q1_nets", "q2_nets")
    for ours, theirs in (("", ""), ("_target", "_old")):
        if backbone == "bcq-lag":
            yield from _mlp("actor" + ours, [f"actor{theirs}.pi"], len(cfg.hidden) + 1, False)
        else:
            yield from _gaussian("actor" + ours, "actor" + theirs, len(cfg.hidden))
        for critic in ("critic", "cost_critic"):
            members = [f"{critic}{theirs}.{half}.{e}" for half in halves for e in range(cfg.num_q)]
            yield from _ensemble(critic + ours, members, cfg)
    for prefix, modules in VAE.items():
        for i, names in enumerate(modules):
            yield Layer("vae", f"{prefix}w{i}", f"{prefix}b{i}", (tuple(f"vae.{name}" for name in names),), False)


def _mlp(network: str, members: list[str], depth: int, ensemble: bool) -> Iterator[Layer]:
    for i in range(depth):  # activations stand between the linear modules of a torch.nn.Sequential
        yield Layer(network, f"w{i}", f"b{i}", tuple((f"{member}.{2 * i}",) for member in members), ensemble)


def _ensemble(network: str, members: list[str], cfg: Any) -> Iterator[Layer]:
    yield from _mlp(network, members, len(cfg.hidden) + 1, True)


def _gaussian(network: str, module: str, hidden: int) -> Iterator[Layer]:
    yield from _mlp(network, [f"{module}.net"], hidden, False)
    heads = (f"{module}.mu_layer", f"{module}.log_std_layer")
    yield Layer(network, f"w{hidden}", f"b{hidden}", (heads,), False)


def networks_of(state: Mapping[str, Tensor], backbone: str, cfg: Any) -> Nets:
    """The networks and targets of one agent in an osrl-lib state of the right form; dtype as it is."""
    nets: Nets = {}
    for layer in layers(backbone, cfg):
        weights = [torch.cat([state[f"{m}.weight"].T for m in modules], dim=1) for modules in layer.members]
        biases = [torch.cat([state[f"{m}.bias"] for m in modules]) for modules in layer.members]
        network = nets.setdefault(layer.network, {})
        network[layer.weight] = torch.stack(weights) if layer.ensemble else weights[0].contiguous()
        network[layer.bias] = torch.stack(biases).unsqueeze(1) if layer.ensemble else biases[0]
    return nets


def state_of(nets: Nets, backbone: str, cfg: Any) -> State:
    """The osrl-lib state that holds these networks and targets: what ``load_state_dict(strict=True)`` takes."""
    state: State = {}
    for layer in layers(backbone, cfg):
        weight, bias = nets[layer.network][layer.weight].detach(), nets[layer.network][layer.bias].detach()
        if not layer.ensemble:
            weight, bias = weight.unsqueeze(0), bias.view(1, 1, -1)
        for e, modules in enumerate(layer.members):
            parts = zip(modules, weight[e].chunk(len(modules), 1), bias[e, 0].chunk(len(modules)), strict=True)
            for module, w, b in parts:
                state |= {f"{module}.weight": w.T.contiguous().clone(), f"{module}.bias": b.clone()}
    return state


def import_osrl(
    path: str | Path,
    task: str,
    backbone: str | None = None,
    *,
    dataset: Dataset | None = None,
    seed: int = 0,
    **settings: Any,
) -> Agent:
    """An agent, a population of one, from an osrl-lib ``model.pt``.

    backbone  what the file should hold; None to take what it holds
    dataset   the agent's training data: COptiDICE needs statistics of it, which its checkpoints lack
    seed      of the generator that draws batches and noise from now on
    settings  of the backbone, where training differed from osrl-lib's configuration; sizes are read off the tensors

    Warns once, naming the state that osrl-lib does not save and what it was set to. CheckpointError for a file that is
    not whole, holds another backbone or other sizes than the task's; nothing but tensors is ever unpickled.
    """
    path, world = Path(path), get_task(task)
    state = read_state(path)
    name = _recognise(path, state, backbone)
    module = get_backbone(name)
    cfg = module.Config(**_sizes(path, state, name, world), episode_len=world.horizon, **settings)
    nets, scalars = module.init(cfg, torch.Generator().manual_seed(0))
    _compare(path, state, state_of(nets | {t: nets[s] for t, s in module.TARGETS.items()}, name, cfg), name)
    nets |= networks_of({key: value.float() for key, value in state.items()}, name, cfg)
    restarted, assumed = _restart(name, cfg, dataset)
    warnings.warn(
        f"{path}: an osrl-lib checkpoint holds the networks alone; set to their start: {'; '.join(assumed)}",
        stacklevel=2,
    )
    population = Population(stack([nets]), stack([scalars | restarted]), {}, [torch.Generator().manual_seed(seed)])
    reset_optimisers(population, training(module, cfg))
    acting = {net: {k: v[0].detach() for k, v in leaves.items()} for net, leaves in population.nets.items()}
    meta = {"step": 0, "imported": path.name, "assumed": assumed}
    return Agent(task, module, cfg, acting, population, meta)


def _restart(backbone: str, cfg: Any, dataset: Dataset | None) -> tuple[dict[str, Tensor], list[str]]:
    """The scalars that do not start as in `init`, and in words all that osrl-lib does not save."""
    assumed = ["Adam's moments 0"]
    if backbone in ("bcq-lag", "bear-lag"):
        assumed.append("the PID controller's integral and last error 0")
    if backbone in ("bear-lag", "cpq"):
        assumed.append("log_alpha 0")
    if backbone == "bear-lag":
        assumed.append(f"n_train_steps {cfg.start_update_policy_step} (the warm-up is over)")
        return {"n_train_steps": torch.tensor(cfg.start_update_policy_step)}, assumed
    if backbone == "coptidice":
        assumed.append("lmbda and tau softplus(1) = 1.31")
        if dataset is not None:
            columns = (dataset.observations, dataset.actions, first_steps(dataset))
            numbers = (torch.from_numpy(column).float() for column in columns)
            return get_backbone(backbone).statistics(*numbers), assumed
        assumed.append(f"the share of initial states 1/{cfg.episode_len} and the actor's noise 0, for want of data")
    return {}, assumed


def export_osrl(agent: Agent, path: str | Path) -> None:
    """Write an agent as an osrl-lib ``model.pt``, atomically. What osrl-lib does not save is left behind.

    CheckpointError for a snapshot.
    """
    path, name = Path(path), agent.backbone.NAME
    missing = sorted({layer.network for layer in layers(name, agent.cfg)} - set(agent.nets))
    if missing:
        raise CheckpointError(
            f"{path}: cannot export an agent without its networks {', '.join(missing)}: give a complete agent, not a "
            "snapshot"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save({"model_state": state_of(agent.nets, name, agent.cfg)}, content)
    write_bytes(path, content.getvalue())


def read_state(path: str | Path) -> State:
    """The tensors of an osrl-lib checkpoint, ``{"model_state": ...}`` or a bare state, on the CPU.

    CheckpointError for anything but a whole file of finite tensors. Only tensors are unpickled.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected an osrl-lib model.pt: check the path") from error
    except Exception as error:  # torch raises many kinds for a broken or foreign file, with misleading advice
        raise CheckpointError(
            f"{path}: not a whole osrl-lib model.pt of plain tensors (nothing else is unpickled): it is truncated "
            "or of another kind, get it again"
        ) from error
    state = content.get("model_state", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: no tensors by name in it, expected an osrl-lib model.pt: give another file")
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise CheckpointError(f"{path}: key {key!r} is not a tensor, expected an osrl-lib state: give another file")
        if not value.isfinite().all():
            raise CheckpointError(f"{path}: key {key!r} has values that are not finite: give an earlier checkpoint")
    return dict(state)


def _recognise(path: Path, state: State, expected: str | None) -> str:
    found = next((name for mark, name in MARKS.items() if any(key.startswith(mark) for key in state)), None)
    if found is None:
        raise CheckpointError(
            f"{path}: keys such as {next(iter(state))!r} are of none of {', '.join(MARKS.values())}: give a checkpoint "
            "of one of them"
        )
    if expected is not None and get_backbone(expected).NAME != found:
        mark = next(mark for mark, name in MARKS.items() if name == found)
        key = next(key for key in state if key.startswith(mark))
        raise CheckpointError(
            f"{path}: key {key!r} is of {found}, expected {expected}: name the backbone that it holds"
        )
    return found


def _sizes(path: Path, state: State, backbone: str, task: Task) -> dict[str, Any]:
    """The settings that follow from the tensors' shapes; CheckpointError where they do not fit the task."""

    def shape(key: str) -> torch.Size:
        if key not in state:
            raise CheckpointError(f"{path}: key {key!r} is missing, expected a whole {backbone} state: get it again")
        if state[key].dim() != 2:
            raise CheckpointError(f"{path}: key {key!r} is not a matrix, expected a {backbone} state: get it again")
        return state[key].shape

    def count(pattern: str) -> int:
        present = 0
        while pattern.format(present) in state:
            present += 1
        shape(pattern.format(max(present - 1, 0)))
        return present

    body = "actor.pi." if backbone == "bcq-lag" else "actor.net."
    modules = [key.removeprefix(body).partition(".")[0] for key in state if key.startswith(body)]
    last = max((int(module) for module in modules if module.isdigit()), default=0)
    outputs = [shape(f"{body}{i}.weight")[0] for i in range(0, last + 1, 2)]  # activations stand between
    inputs = shape(f"{body}0.weight")[1]
    if backbone == "bcq-lag":
        *hidden, action_dim = outputs
        observation_dim = inputs - action_dim
    else:
        hidden, action_dim, observation_dim = outputs, shape("actor.mu_layer.weight")[0], inputs
    if (observation_dim, action_dim) != (task.observation_dim, task.action_dim):
        raise CheckpointError(
            f"{path}: key '{body}0.weight' is for {observation_dim} observations and {action_dim} actions, "
            f"{task.name} has {task.observation_dim} and {task.action_dim}: name the task it was trained on"
        )
    sizes = {"observation_dim": observation_dim, "action_dim": action_dim, "hidden": tuple(hidden)}
    if backbone == "coptidice":
        counts = {f"num_{net}": count(net + "_network.q_nets.{}.0.weight") for net in ("nu", "chi")}
        return sizes | counts
    half = "q_nets" if backbone == "cpq" else "q1_nets"
    return sizes | {"vae_hidden": shape("vae.e1.weight")[0], "num_q": count(f"critic.{half}.{{}}.0.weight")}


def _compare(path: Path, state: State, expected: State, backbone: str) -> None:
    """CheckpointError unless the state has the expected keys and shapes."""
    for key, value in expected.items():
        if key not in state:
            raise CheckpointError(f"{path}: key {key!r} is missing, expected a whole {backbone} state: get it again")
        if state[key].shape != value.shape:
            raise CheckpointError(
                f"{path}: key {key!r} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)} beside the "
                "actor's (one width for actor and critics, as many cost as reward critics): train it with such sizes"
            )
    for key in state:
        if key not in expected:
            raise CheckpointError(f"{path}: key {key!r} is unknown, expected a {backbone} state: give another file")
