"""osrl-lib checkpoints in and out.

osrl-lib's training scripts save ``{"model_state": model.state_dict()}``: networks and their targets, nothing else. What
an agent needs besides is set to the start of training on import, and one warning names it. A setting that no tensor
tells is what the caller tells, else what a ``config.yaml`` by the model says, else osrl-lib's default; the warning
names these too. An agent imported here and saved by `saferule.agents.checkpoint` is complete from then on.

Refused by name: critics of other widths than the actor's (a_hidden_sizes, c_hidden_sizes), other numbers of cost than
of reward critics (num_q, num_qc), scaled costs (cost_scale), and osrl-lib's other algorithms (BC, CDT). To act, a
policy needs no critic: `import_acting` asks nothing of these.

The two libraries hold the same numbers in other shapes: a ``torch.nn.Linear`` stores (out, in), our layers (in, out);
the two heads of a Gaussian are one last layer here; the members of an ensemble are stacked.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferule.agents import get_backbone
from saferule.agents.checkpoint import Agent
from saferule.agents.osrl_files import State, config_file, read_config, read_state
from saferule.agents.parts import Nets
from saferule.agents.population import Population, reset_optimisers, stack, training
from saferule.agents.settings import configured
from saferule.data.batches import first_steps
from saferule.data.schema import Dataset
from saferule.errors import CheckpointError, SettingsError
from saferule.files import write_bytes
from saferule.sim.tasks import TASKS, Task, get_task

# A key that starts like this tells the backbone; the first that fits, in this order.
MARKS = {
    "nu_network.": "coptidice",
    "actor.pi.": "bcq-lag",
    "critic.q1_nets.": "bear-lag",
    "critic.q_nets.": "cpq",
}
# Settings that osrl-lib calls otherwise, and the sizes in its settings with ours, which the tensors tell.
SETTINGS = {"gains": "PID", "samples": "sample_action_num", "mmd_samples": "num_samples_mmd_match"}
SIZES = {"a_hidden_sizes": "hidden", "vae_hidden_sizes": "vae_hidden"} | {n: n for n in ("num_q", "num_nu", "num_chi")}
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


def networks_of(state: Mapping[str, Tensor], backbone: str, cfg: Any, some: Iterable[Layer] | None = None) -> Nets:
    """The networks and targets of one agent in an osrl-lib state of the right form, or some layers; dtype as it is."""
    nets: Nets = {}
    for layer in layers(backbone, cfg) if some is None else some:
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
    task: str | None = None,
    backbone: str | None = None,
    *,
    dataset: Dataset | None = None,
    seed: int = 0,
    **settings: Any,
) -> Agent:
    """An agent, a population of one, from an osrl-lib ``model.pt``.

    task      None to take the one that a ``config.yaml`` by the model names
    backbone  what the file should hold; None to take what it holds
    dataset   the agent's training data: COptiDICE needs statistics of it, which its checkpoints lack
    seed      of the generator that draws batches and noise from now on
    settings  of the backbone, where training differed from ``config.yaml`` and osrl-lib's defaults; sizes are read off
              the tensors

    Warns once, naming the state that osrl-lib does not save and what it was set to. CheckpointError for a file that is
    not whole, holds another backbone or other sizes than the task's, or what is not supported (head of this file);
    SettingsError for a setting that the backbone does not have. Nothing but tensors and numbers is ever unpickled.
    """
    found = _open(Path(path), task, backbone, settings)
    path, state, name, cfg, assumed = found.path, found.state, found.backbone, found.cfg, found.assumed
    module = get_backbone(name)
    _supported(found)
    nets, scalars = module.init(cfg, torch.Generator().manual_seed(0))
    _compare(path, state, state_of(nets | {t: nets[s] for t, s in module.TARGETS.items()}, name, cfg), name)
    nets |= networks_of({key: value.float() for key, value in state.items()}, name, cfg)
    restarted, start = _restart(name, cfg, dataset)
    assumed = [*start, *assumed]
    warnings.warn(
        f"{path}: an osrl-lib checkpoint holds the networks alone; set to their start: {'; '.join(assumed)}",
        stacklevel=2,
    )
    population = Population(stack([nets]), stack([scalars | restarted]), {}, [torch.Generator().manual_seed(seed)])
    reset_optimisers(population, training(module, cfg))
    acting = {net: {k: v[0].detach() for k, v in leaves.items()} for net, leaves in population.nets.items()}
    return Agent(found.task.name, module, cfg, acting, population, found.meta | {"assumed": assumed})


def import_acting(path: str | Path, task: str | None = None, backbone: str | None = None, **settings: Any) -> Agent:
    """What `act` reads of an osrl-lib ``model.pt``, whatever its critics are; arguments and errors of `import_osrl`.

    ``meta["assumed"]`` names the settings that were taken for granted; there is no warning.
    """
    found = _open(Path(path), task, backbone, settings)
    name, cfg, module = found.backbone, found.cfg, get_backbone(found.backbone)
    parts = [x for x in layers(name, cfg) if x.weight.startswith(module.ACTING.get(x.network, "-") or "")]
    keys = [f"{m}.{end}" for x in parts for modules in x.members for m in modules for end in ("weight", "bias")]
    nets, _ = module.init(cfg, torch.Generator().manual_seed(0))
    expected = state_of(nets | {t: nets[s] for t, s in module.TARGETS.items()}, name, cfg)
    state = {key: value.float() for key, value in found.state.items() if key in keys}
    _compare(found.path, state, {key: expected[key] for key in keys}, name)
    return Agent(found.task.name, module, cfg, networks_of(state, name, cfg, parts), None, found.meta)


class _Opened(NamedTuple):
    """An osrl-lib checkpoint with its settings, before its tensors are looked at one by one."""

    path: Path
    state: State
    backbone: str
    task: Task
    cfg: Any
    config: dict[str, Any]  # the whole config.yaml, {} where there is none
    assumed: list[str]  # in words, settings that nothing tells

    @property
    def meta(self) -> dict[str, Any]:
        """What an agent keeps of where it comes from."""
        source = {"settings_from": "config.yaml"} if self.config else {}
        return {"step": 0, "imported": self.path.name, "assumed": self.assumed} | source


def _open(path: Path, task: str | None, backbone: str | None, told: Mapping[str, Any]) -> _Opened:
    """Read a checkpoint and the config.yaml by it, find backbone, task, sizes and settings."""
    state, place = read_state(path), config_file(path)
    name, config = _recognise(path, state, backbone), read_config(place) if place else {}
    world = _task(path, place, config.get("task"), task)
    module, sizes = get_backbone(name), _sizes(path, state, name, world)
    defaults = {f.name: f.default for f in fields(module.Config) if f.default is not MISSING and f.name not in sizes}
    foreign = [setting for setting in told if setting not in defaults]
    if foreign:
        raise SettingsError(
            f"{name} has no setting {foreign[0]!r} to tell, expected one of {', '.join(defaults)}: leave it out"
        )
    read = {n: config[theirs] for n in defaults if (theirs := SETTINGS.get(n, n)) in config}
    for theirs, ours in SIZES.items():
        if ours in sizes and theirs in config and _size(config[theirs]) != sizes[ours]:
            raise CheckpointError(
                f"{place}: {theirs} is {config[theirs]}, the tensors of {path.name} say {sizes[ours]}, expected the "
                "settings of this model: move the file away or give the model that it belongs to"
            )
    try:
        configured(module.Config, sizes | {"episode_len": world.horizon} | read)
    except SettingsError as error:
        raise CheckpointError(f"{place}: {error}") from None
    cfg = configured(module.Config, sizes | {"episode_len": world.horizon} | read | dict(told))
    silent = ", ".join(f"{n} {getattr(cfg, n)}" for n in defaults if n not in read and n not in told)
    assumed = [f"what neither a tensor nor a config.yaml tells, as osrl-lib has it: {silent}"] if silent else []
    if config.get("episode_len", world.horizon) != world.horizon:
        assumed.append(f"episode_len {world.horizon}, as {world.name} lasts, not {config['episode_len']}")
    return _Opened(path, state, name, world, cfg, config, assumed)


def _size(value: Any) -> Any:
    """A size in osrl-lib's settings as ours is: widths as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else value


def _task(path: Path, place: Path | None, held: Any, asked: str | None) -> Task:
    """The task that was asked for or, if none was, that the config.yaml names; CheckpointError where these differ."""
    found = next((task for task in TASKS.values() if held in (task.name, task.dsrl_id)), None)
    if asked is not None:
        task = get_task(asked)
        if held is not None and found is not task:
            raise CheckpointError(f"{place}: the task is {held}, expected {task.dsrl_id}: name the task of the model")
        return task
    if found is None:
        said = f"{place} names {held!r}" if held else "a model.pt without a config.yaml names none"
        raise CheckpointError(f"{path}: of which task? {said}, expected one of {', '.join(TASKS)}: give --task")
    return found


def _supported(found: _Opened) -> None:
    """CheckpointError that names it where a checkpoint has what our backbones do not."""
    path, state, name, config = found.path, found.state, found.backbone, found.config
    if config.get("cost_scale", 1) != 1:
        raise CheckpointError(
            f"{path}: trained with cost_scale {config['cost_scale']} (config.yaml), expected 1, as costs are used as "
            "they are here: scale the costs of the data instead and train again"
        )
    half = {"coptidice": "nu_network.q_nets", "cpq": "critic.q_nets"}.get(name, "critic.q1_nets")
    critic = tuple(_widths(path, state, f"{half}.0.", name)[:-1])
    if critic != found.cfg.hidden:
        raise CheckpointError(
            f"{path}: a_hidden_sizes is {list(found.cfg.hidden)} and c_hidden_sizes {list(critic)}, expected one width "
            "for actor and critics: train it with such sizes (evaluating needs no critics)"
        )
    if name != "coptidice":
        costs = _count(path, state, f"cost_{half}.{{}}.0.weight", name)
        if costs != found.cfg.num_q:
            raise CheckpointError(
                f"{path}: num_q is {found.cfg.num_q} and num_qc {costs}, expected as many cost as reward critics: "
                "train it with such sizes (evaluating needs no critics)"
            )


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


def config_of(agent: Agent) -> dict[str, Any]:
    """The task and all settings of an agent, under the names of osrl-lib's ``config.yaml``."""
    ours = asdict(agent.cfg)
    names = {theirs: own for theirs, own in SIZES.items() if own in ours}
    names |= {"c_hidden_sizes": "hidden"} | ({"num_qc": "num_q"} if "num_q" in ours else {})
    told = ("observation_dim", "action_dim", *names.values())  # the first two by the task
    names |= {SETTINGS.get(own, own): own for own in ours if own not in told}
    return {"task": get_task(agent.task).dsrl_id} | {theirs: ours[own] for theirs, own in names.items()}


def _recognise(path: Path, state: State, expected: str | None) -> str:
    found = next((name for mark, name in MARKS.items() if any(key.startswith(mark) for key in state)), None)
    alone = all(key.startswith("actor.") for key in state)
    if found is None or alone:
        has = f"keys such as {next(iter(state))[:80]!r} are of no known kind"
        if alone or any(key.startswith("state_emb.") for key in state):
            has = f"it is of osrl-lib's {'BC (behaviour cloning)' if alone else 'CDT (a transformer)'}"
        raise CheckpointError(f"{path}: {has}, expected one of {', '.join(MARKS.values())}: give a checkpoint of these")
    if expected is not None and get_backbone(expected).NAME != found:
        mark = next(mark for mark, name in MARKS.items() if name == found)
        key = next(key for key in state if key.startswith(mark))
        raise CheckpointError(
            f"{path}: key {key!r} is of {found}, expected {expected}: name the backbone that it holds"
        )
    return found


def _matrix(path: Path, state: State, key: str, backbone: str) -> torch.Size:
    """The shape of a weight; CheckpointError where it is missing or something else."""
    if key not in state:
        raise CheckpointError(f"{path}: key {key!r} is missing, expected a whole {backbone} state: get it again")
    if state[key].dim() != 2:
        raise CheckpointError(f"{path}: key {key!r} is not a matrix, expected a {backbone} state: get it again")
    return state[key].shape


def _count(path: Path, state: State, pattern: str, backbone: str) -> int:
    """How many members an ensemble has."""
    present = 0
    while pattern.format(present) in state:
        present += 1
    _matrix(path, state, pattern.format(max(present - 1, 0)), backbone)
    return present


def _widths(path: Path, state: State, body: str, backbone: str) -> list[int]:
    """The output widths of the linear modules of an MLP."""
    modules = [key.removeprefix(body).partition(".")[0] for key in state if key.startswith(body)]
    last = max((int(module) for module in modules if module.isdigit()), default=0)
    shapes = [_matrix(path, state, f"{body}{i}.weight", backbone) for i in range(0, last + 1, 2)]
    return [shape[0] for shape in shapes]  # activations stand between


def _sizes(path: Path, state: State, backbone: str, task: Task) -> dict[str, Any]:
    """The settings that follow from the tensors' shapes; CheckpointError where they do not fit the task."""
    body = "actor.pi." if backbone == "bcq-lag" else "actor.net."
    outputs = _widths(path, state, body, backbone)
    inputs = _matrix(path, state, f"{body}0.weight", backbone)[1]
    if backbone == "bcq-lag":
        *hidden, action_dim = outputs
        observation_dim = inputs - action_dim
    else:
        hidden, observation_dim = outputs, inputs
        action_dim = _matrix(path, state, "actor.mu_layer.weight", backbone)[0]
    if (observation_dim, action_dim) != (task.observation_dim, task.action_dim):
        raise CheckpointError(
            f"{path}: key '{body}0.weight' is for {observation_dim} observations and {action_dim} actions, "
            f"{task.name} has {task.observation_dim} and {task.action_dim}: name the task it was trained on"
        )
    sizes = {"observation_dim": observation_dim, "action_dim": action_dim, "hidden": tuple(hidden)}
    if backbone == "coptidice":
        networks = ("nu", "chi")
        return sizes | {
            f"num_{n}": _count(path, state, f"{n}_network.q_nets.{{}}.0.weight", backbone) for n in networks
        }
    half = "q_nets" if backbone == "cpq" else "q1_nets"
    vae_hidden = _matrix(path, state, "vae.e1.weight", backbone)[0]
    return sizes | {"vae_hidden": vae_hidden, "num_q": _count(path, state, f"critic.{half}.{{}}.0.weight", backbone)}


def _compare(path: Path, state: State, expected: State, backbone: str) -> None:
    """CheckpointError unless the state has the expected keys and shapes."""
    for key, value in expected.items():
        if key not in state:
            raise CheckpointError(f"{path}: key {key!r} is missing, expected a whole {backbone} state: get it again")
        if state[key].shape != value.shape:
            raise CheckpointError(
                f"{path}: key {key!r} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)} beside the "
                "actor's: get it again"
            )
    for key in state:
        if key not in expected:
            raise CheckpointError(f"{path}: key {key!r} is unknown, expected a {backbone} state: give another file")
