"""osrl-lib checkpoints in and out, against the real package."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import osrl_peer
import pytest
import torch
import yaml
from helpers import assert_same_state

from benchmarks.osrl_lib import quiet_trainer
from saferule.agents import BACKBONES
from saferule.agents.checkpoint import load_agent, save_acting, save_agent
from saferule.agents.osrl import export_osrl, import_acting, import_osrl
from saferule.agents.population import draw_noise, member, stack, training, update
from saferule.data.schema import Dataset
from saferule.errors import CheckpointError, SettingsError

# CarCircle, with sizes that differ from the defaults and from each other.
SIZES = {"observation_dim": 8, "action_dim": 2, "episode_len": 300, "hidden": (24, 20)}
SMALL = {"vae_hidden": 28, "num_q": 3}
BATCH = 16
pytestmark = pytest.mark.filterwarnings("ignore:.*an osrl-lib checkpoint holds the networks alone:UserWarning")
NEUTRAL = 1 / 300, np.zeros((1, 8), np.float32), np.zeros((1, 2), np.float32)  # what is assumed without data


def settings(backbone: str) -> dict[str, Any]:
    return SIZES | ({"num_nu": 3, "num_chi": 1} if backbone == "coptidice" else SMALL)


def saved_model(backbone: str, path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint as osrl-lib's example scripts write it, after a few steps: targets and networks differ."""
    peers = osrl_peer.Peers(backbone, BATCH, torch.float32, **settings(backbone))
    for _ in range(3):
        peers.step()
    state = peers.model.state_dict()
    torch.save({"model_state": state}, path)
    return state


def resumed(backbone: str, path: Path, cfg: Any) -> Any:
    """osrl-lib's trainer after loading a checkpoint as its evaluation scripts do."""
    trainer = quiet_trainer(backbone, cfg, "cpu", NEUTRAL)
    trainer.model.load_state_dict(torch.load(path, weights_only=True)["model_state"], strict=True)
    return trainer


def assert_same_actions(agent: Any, model: torch.nn.Module) -> None:
    observations = torch.randn(5, agent.cfg.observation_dim, generator=torch.Generator().manual_seed(3))
    latents = [torch.zeros(1, agent.cfg.latent_dim)] if agent.backbone.NAME == "bcq-lag" else []
    ours = agent.backbone.act(agent.nets, observations, None, agent.cfg)
    for i, observation in enumerate(observations.numpy()):
        with osrl_peer.fed(latents), torch.no_grad():
            theirs, _ = model.act(observation, True, True)
        np.testing.assert_allclose(ours[i].numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_round_trip(backbone, tmp_path):
    state = saved_model(backbone, tmp_path / "model.pt")
    agent = import_osrl(tmp_path / "model.pt", "CarCircle", backbone)
    assert {name: getattr(agent.cfg, name) for name in settings(backbone)} == settings(backbone)
    trainer = resumed(backbone, tmp_path / "model.pt", agent.cfg)
    assert_same_actions(agent, trainer.model)

    export_osrl(agent, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model_state"]
    assert_same_state(again, dict(state))
    assert_same_actions(agent, resumed(backbone, tmp_path / "again.pt", agent.cfg).model)
    torch.save(state, tmp_path / "bare.pt")  # without "model_state" around it
    bare = import_osrl(tmp_path / "bare.pt", "CarCircle")
    assert_same_state(agent.nets, bare.nets)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_next_training_step_is_osrls_also_after_saving_the_agent(backbone, tmp_path):
    saved_model(backbone, tmp_path / "model.pt")
    agent = import_osrl(tmp_path / "model.pt", "CarCircle", backbone, batch_size=BATCH)
    save_agent(agent.population, 0, tmp_path / "agent.safetensors", agent.task, backbone, agent.cfg, agent.meta)
    loaded = load_agent(tmp_path / "agent.safetensors")
    assert loaded.meta["imported"] == "model.pt"
    trainer = resumed(backbone, tmp_path / "model.pt", agent.cfg)
    batch = osrl_peer.Peers(backbone, BATCH, torch.float32, **settings(backbone)).batch()
    algorithm = training(agent.backbone, agent.cfg)
    noise = draw_noise(agent.population, algorithm.noise_shapes, torch.float32)
    osrl_peer.osrl_step(backbone, trainer, batch, member(noise, 0))
    for population in (agent.population, loaded.population):
        update(population, algorithm, stack([batch]), noise)
    assert_same_state(agent.population.nets, loaded.population.nets)
    export_osrl(agent, tmp_path / "next.pt")  # agent.nets are views of the population
    ours = torch.load(tmp_path / "next.pt", weights_only=True)["model_state"]
    for name, value in trainer.model.state_dict().items():
        assert (ours[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize(
    ("backbone", "named"),
    [
        ("bcq-lag", ["Adam", "PID"]),
        ("bear-lag", ["Adam", "PID", "log_alpha 0", "n_train_steps 7"]),
        ("cpq", ["Adam", "log_alpha 0"]),
        ("coptidice", ["Adam", "lmbda", "tau", "1/300", "noise 0"]),
    ],
)
def test_what_osrl_does_not_save_is_named_once(backbone, named, tmp_path):
    saved_model(backbone, tmp_path / "model.pt")
    changes = {"start_update_policy_step": 7} if backbone == "bear-lag" else {}
    with pytest.warns(UserWarning) as caught:
        agent = import_osrl(tmp_path / "model.pt", "CarCircle", **changes)
    assert len(caught) == 1 and caught[0].filename == __file__
    message = str(caught[0].message)
    assert all(word in message for word in ["model.pt", *named])
    assert all(words in message for words in agent.meta["assumed"])
    scalars = agent.population.scalars
    if backbone == "bear-lag":
        assert scalars["n_train_steps"].tolist() == [7]
    if backbone == "coptidice":
        assert scalars["multiplier"].item() == pytest.approx(1.3133, abs=1e-4)
        assert scalars["init_proportion"].item() == pytest.approx(1 / 300)


def test_coptidice_takes_the_statistics_of_its_data(tmp_path):
    saved_model("coptidice", tmp_path / "model.pt")
    random = np.random.default_rng(0)
    observations, actions = random.normal(3, 2, (12, 8)), random.uniform(-1, 1, (12, 2))
    ends = np.arange(1, 13) % 4 == 0  # three episodes of four steps
    data = Dataset(observations, observations, actions, np.zeros(12), np.zeros(12), np.zeros(12), ends)
    with pytest.warns(UserWarning) as caught:
        agent = import_osrl(tmp_path / "model.pt", "CarCircle", dataset=data)
    assert "for want of data" not in str(caught[0].message)
    scalars = agent.population.scalars
    assert scalars["init_proportion"].item() == 0.25
    np.testing.assert_allclose(scalars["observation_std"][0], observations.std(0), rtol=1e-5)
    np.testing.assert_allclose(scalars["action_std"][0], actions.std(0), rtol=1e-5)


def test_statistics_are_osrls():
    from osrl.common import TransitionDataset

    from saferule.agents.coptidice import statistics

    random = np.random.default_rng(1)
    data = {
        "observations": random.normal(size=(50, 8)).astype(np.float32),
        "actions": random.normal(size=(50, 2)).astype(np.float32),
        "terminals": random.random(50) < 0.1,
        "timeouts": random.random(50) < 0.1,
    }
    theirs = TransitionDataset(data, state_init=True)
    ours = statistics(*(torch.from_numpy(theirs.dataset[k]) for k in ("observations", "actions", "is_init")))
    for mine, expected in zip(ours.values(), theirs.get_dataset_states(), strict=True):
        np.testing.assert_allclose(mine.numpy(), np.squeeze(expected), rtol=1e-6)


def refused(path: Path, *words: str, **options: Any) -> None:
    """Importing must fail with one sentence that names the file and these words, before anything is warned of."""
    with warnings.catch_warnings(), pytest.raises(CheckpointError) as error:
        warnings.simplefilter("error")
        import_osrl(path, options.pop("task", "CarCircle"), **options)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in (str(path), *words)), message


def test_files_that_are_not_checkpoints(tmp_path):
    path = tmp_path / "model.pt"
    saved_model("cpq", path)
    content = path.read_bytes()
    for share in (0, 0.01, 0.5, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        refused(path, "truncated")
    refused(tmp_path / "nothing.pt", "no such file")
    refused(tmp_path, "of another kind")
    path.write_text("not a checkpoint")
    refused(path, "of another kind")
    for held, *words in (
        ({}, "no tensors"),
        ([torch.zeros(3)], "no tensors"),
        ({"model_state": {"actor.pi.0.weight": 3}}, "'actor.pi.0.weight'", "not a tensor"),
        ({0: torch.zeros(3)}, "key 0", "osrl-lib state"),
        ({"transformer.weight": torch.zeros(2, 2)}, "'transformer.weight'", "bcq-lag"),
    ):
        torch.save(held, path)
        refused(path, *words)


class Trap:
    """Unpickling it would raise the alarm."""

    sprung: list[str] = []

    def __reduce__(self) -> tuple:
        return Trap.sprung.append, ("opened",)


def test_nothing_but_tensors_is_unpickled(tmp_path):
    torch.save({"model_state": {"actor.pi.0.weight": Trap()}}, tmp_path / "trap.pt")
    refused(tmp_path / "trap.pt", "plain tensors")
    assert Trap.sprung == []


@pytest.mark.parametrize("backbone", BACKBONES)
def test_other_backbone_or_task(backbone, tmp_path):
    saved_model(backbone, tmp_path / "model.pt")
    other = BACKBONES[(BACKBONES.index(backbone) + 1) % len(BACKBONES)]
    refused(tmp_path / "model.pt", "key", f"is of {backbone}", f"expected {other}", backbone=other)
    refused(tmp_path / "model.pt", "key", "8 observations and 2 actions", "PointGoal has 60 and 2", task="PointGoal")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_damaged_states(backbone, tmp_path):
    state, path = saved_model(backbone, tmp_path / "model.pt"), tmp_path / "model.pt"
    half = "q_nets" if backbone == "cpq" else "q1_nets"
    critic = "nu_network.q_nets.1" if backbone == "coptidice" else f"cost_critic.{half}.1"
    key, last = f"{critic}.2.weight", list(state)[-1]

    def write(changes: dict[str, Any], without: str | None = None) -> None:
        torch.save({"model_state": {k: v for k, v in (state | changes).items() if k != without}}, path)

    actor = "actor.pi.2.weight" if backbone == "bcq-lag" else "actor.mu_layer.weight"
    for missing in (key, last, actor):
        write({}, without=missing)
        refused(path, missing, "missing")
    for name, value, *words in (
        (key, state[key][:, :-1], "shape", "(20, 23)", "(20, 24)"),
        (key, state[key].flatten(), "shape"),
        (f"{critic}.6.weight", torch.zeros(1, 1), "unknown"),
        (key, state[key] * float("nan"), "not finite"),
    ):
        write({name: value})
        refused(path, name, *words)


# What lies around a model: numbers beside the tensors, wrapped names, a config.yaml.


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("wrap", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "{0}._orig_mod.{1}"])
def test_prefixes_of_wrapped_models_are_stripped(backbone, wrap, tmp_path):
    state = saved_model(backbone, tmp_path / "model.pt")
    inside = "{0}" in wrap  # a part of the model was compiled
    renamed = {wrap.format(*(k.split(".", 1) if inside else [k])): v for k, v in state.items()}
    torch.save({"model_state": renamed}, tmp_path / "wrapped.pt")
    one, two = (import_osrl(tmp_path / name, "CarCircle") for name in ("model.pt", "wrapped.pt"))
    assert_same_state(one.nets, two.nets)


def test_a_tensor_that_is_there_twice_once_wrapped_is_refused(tmp_path):
    state = saved_model("cpq", tmp_path / "model.pt")
    torch.save({"model_state": state | {f"module.{k}": v for k, v in state.items()}}, tmp_path / "two.pt")
    refused(tmp_path / "two.pt", "twice")


@pytest.mark.parametrize("number", [np.float64(3.5), np.float32(1), np.int64(7), np.bool_(True), 4, "best", None])
def test_numbers_beside_the_tensors_are_left_out(number, tmp_path):
    state = saved_model("cpq", tmp_path / "model.pt")
    expected = import_osrl(tmp_path / "model.pt", "CarCircle").nets
    for content in ({"model_state": state, "best_cost": number}, dict(state) | {"epoch": number}):
        torch.save(content, tmp_path / "more.pt")
        assert_same_state(import_osrl(tmp_path / "more.pt", "CarCircle").nets, expected)


def test_what_cannot_be_unpickled_is_named(tmp_path):
    path = tmp_path / "model.pt"
    for content, *words in (
        ({"model_state": {}, "curve": np.zeros(3)}, "numpy.core.multiarray._reconstruct", "save model.state_dict()"),
        (osrl_peer.Peers("cpq", BATCH, torch.float32, **settings("cpq")).model, "osrl.algorithms.cpq.CPQ"),
        ({"model_state": Path("x")}, "pathlib.PosixPath"),
    ):
        torch.save(content, path)
        refused(path, *words)


def test_other_algorithms_are_named(tmp_path):
    from osrl import algorithms as osrl

    models = {
        "BC (behaviour cloning)": osrl.BC(8, 2, 1.0),
        "CDT (a transformer)": osrl.CDT(8, 2, 1.0, embedding_dim=8, num_heads=1, num_layers=1),
    }
    for name, model in models.items():
        torch.save({"model_state": model.state_dict()}, tmp_path / "model.pt")
        refused(tmp_path / "model.pt", f"osrl-lib's {name}", "bcq-lag")


def test_sizes_that_are_not_supported_are_named_but_act(tmp_path):
    from osrl import algorithms as osrl

    shape = {"vae_hidden_sizes": 16, "num_q": 2, "num_qc": 2, "a_hidden_sizes": [24, 20], "c_hidden_sizes": [24, 20]}
    path = tmp_path / "model.pt"
    for changes, *words in (
        ({"c_hidden_sizes": [32, 20]}, "a_hidden_sizes is [24, 20] and c_hidden_sizes [32, 20]"),
        ({"c_hidden_sizes": [24]}, "c_hidden_sizes [24]"),
        ({"num_qc": 1}, "num_q is 2 and num_qc 1"),
        ({"num_q": 1}, "num_q is 1 and num_qc 2"),
    ):
        for kind in (osrl.BCQL, osrl.BEARL, osrl.CPQ):
            model = kind(8, 2, 1.0, **shape | changes)
            torch.save({"model_state": model.state_dict()}, path)
            refused(path, *words)
            assert_same_actions(agent := import_acting(path, "CarCircle"), model)
            assert agent.population is None
    model = osrl.COptiDICE(8, 2, 1.0, "softchi", *NEUTRAL, a_hidden_sizes=[24], c_hidden_sizes=[20])
    torch.save({"model_state": model.state_dict()}, path)
    refused(path, "c_hidden_sizes [20]")
    assert_same_actions(import_acting(path, "CarCircle"), model)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_acting_is_as_imported(backbone, tmp_path):
    saved_model(backbone, tmp_path / "model.pt")
    whole, acting = (read(tmp_path / "model.pt", "CarCircle") for read in (import_osrl, import_acting))
    assert set(acting.nets) == set(whole.backbone.ACTING)
    for net, leaves in acting.nets.items():
        assert all(k.startswith(whole.backbone.ACTING[net] or "") for k in leaves)
        assert_same_state(leaves, {k: whole.nets[net][k] for k in leaves})
    assert any(acting.meta["assumed"][0] in words for words in whole.meta["assumed"])


def written_config(folder: Path, **changes: Any) -> Path:
    """A config.yaml as fsrl's loggers write osrl-lib's BEARLTrainConfig (other names are not read)."""
    config = {
        "project": "OSRL-baselines",
        "task": "OfflineCarCircle-v0",
        "inpaint_ranges": ((0.0, 1.0), (0.5, 0.7)),
        "reward_scale": 0.2,
        "cost_scale": 1,
        "cost_limit": 20,
        "episode_len": 300,
        "a_hidden_sizes": [24, 20],
        "c_hidden_sizes": [24, 20],
        "vae_hidden_sizes": 28,
        "sample_action_num": 7,
        "num_samples_mmd_match": 5,
        "gamma": 0.98,
        "kernel": "laplacian",
        "num_q": 3,
        "num_qc": 3,
        "PID": [0.2, 0.004, 0.002],
    } | changes
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.dump(config, default_flow_style=False, indent=4, sort_keys=False))
    return folder / "config.yaml"


def test_config_yaml_is_read_where_osrl_puts_it(tmp_path):
    """Beside the model or above its folder; what is told goes before it, and what nothing tells is named."""
    expected = {"cost_limit": 20.0, "reward_scale": 0.2, "samples": 7, "mmd_samples": 5, "gamma": 0.98}
    expected |= {"kernel": "laplacian", "gains": (0.2, 0.004, 0.002)}
    written_config(tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint"):
        folder.mkdir(exist_ok=True)
        saved_model("bear-lag", folder / "model.pt")
        agent = import_osrl(folder / "model.pt")
        assert agent.task == "CarCircle" and agent.meta["settings_from"] == "config.yaml"
        assert {name: getattr(agent.cfg, name) for name in expected} == expected
        (silent,) = [words for words in agent.meta["assumed"] if "as osrl-lib has it" in words]
        assert "beta 0.5" in silent and not any(f"{name} " in silent for name in expected)
        assert import_osrl(folder / "model.pt", cost_limit=5, beta=1.0).cfg.cost_limit == 5
    other = tmp_path / "run" / "elsewhere"
    other.mkdir()
    saved_model("bear-lag", other / "model.pt")  # a folder of another name has no config.yaml above it
    agent = import_osrl(other / "model.pt", "CarCircle")
    named = ["phi", "beta", "cost_limit", "gamma", "reward_scale", "gains", "batch_size"][1:]
    assert agent.cfg.cost_limit == 10 and all(f"{name} " in agent.meta["assumed"][-1] for name in named)
    refused(other / "model.pt", "of which task", "--task", task=None)


def test_config_as_wandb_writes_it(tmp_path):
    saved_model("bear-lag", tmp_path / "model.pt")
    written_config(tmp_path, cost_limit={"desc": None, "value": 30}, wandb_version=1)
    assert import_osrl(tmp_path / "model.pt").cfg.cost_limit == 30


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cost_scale": 5}, ["cost_scale 5", "scale the costs of the data"]),
        ({"task": "OfflineAntRun-v0"}, ["the task is OfflineAntRun-v0", "OfflineCarCircle-v0"]),
        ({"a_hidden_sizes": [256, 256]}, ["a_hidden_sizes is [256, 256]", "(24, 20)", "another model", "move"][:2]),
        ({"num_q": 2}, ["num_q is 2", "say 3"]),
        ({"gamma": "high"}, ["config.yaml: gamma = 'high'"]),
        ({"PID": [1, 2]}, ["gains = [1, 2]", "3 finite numbers"]),
        ({"cost_limit": float("nan")}, ["cost_limit = nan"]),
        ({"kernel": "cubic"}, ["unknown kernel 'cubic'"]),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, words, tmp_path):
    saved_model("bear-lag", tmp_path / "model.pt")
    written_config(tmp_path, **changes)
    with warnings.catch_warnings(), pytest.raises(CheckpointError) as error:
        warnings.simplefilter("error")
        import_osrl(tmp_path / "model.pt", "CarCircle")
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "a: [1,\n", "a: !!python/object/apply:os.system ['true']\n", "\udcff", "", "[" * 5000]
)
def test_configs_that_are_none_are_refused(text, tmp_path):
    saved_model("cpq", tmp_path / "model.pt")
    (tmp_path / "config.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match="not osrl-lib's config.yaml"):
        import_osrl(tmp_path / "model.pt", "CarCircle")


def test_an_episode_length_that_is_not_the_tasks_is_named(tmp_path):
    saved_model("bear-lag", tmp_path / "model.pt")
    written_config(tmp_path, episode_len=200)
    agent = import_osrl(tmp_path / "model.pt")
    assert agent.cfg.episode_len == 300 and "episode_len 300, as CarCircle lasts, not 200" in agent.meta["assumed"]


def test_settings_that_a_backbone_does_not_have(tmp_path):
    saved_model("cpq", tmp_path / "model.pt")
    for told, message in (
        ({"phi": 0.1}, "cpq has no setting 'phi' to tell, expected one of cost_limit"),
        ({"num_q": 3}, "no setting 'num_q' to tell"),  # the tensors do
        ({"gamma": "low"}, "gamma = 'low', expected float and finite"),
        ({"samples": 2.5}, "samples = 2.5, expected int"),
    ):
        with pytest.raises(SettingsError, match=message):
            import_osrl(tmp_path / "model.pt", "CarCircle", **told)


def test_export_needs_every_network(tmp_path):
    saved_model("bear-lag", tmp_path / "model.pt")
    agent = import_osrl(tmp_path / "model.pt", "CarCircle")
    save_acting(agent.population, 0, tmp_path / "acting.safetensors", "CarCircle", "bear-lag", agent.cfg)
    with pytest.raises(CheckpointError, match="out.pt.*critic.*complete agent"):
        export_osrl(load_agent(tmp_path / "acting.safetensors"), tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
