"""Readings that change which losses Safe-RULE has, or take something from all of D_k: by hand and on tiny agents."""

import pytest
import torch
from helpers import ACTOR_CRITIC, Sampled, assert_same_state, changed_networks, frozen, random_dataset, tiny

from saferule.agents import get_backbone
from saferule.agents.networks import clip_latent, gaussian, quantile, vae_decode_raw, vae_loss
from saferule.agents.population import Population, create, draw_noise, member, training, update
from saferule.data.batches import TransitionPool
from saferule.paper import READINGS
from saferule.runs.cells import Training, Unlearning, settings
from saferule.runs.engine import Engine
from saferule.runs.store import Store
from saferule.unlearn import begin, structure, unlearning
from saferule.unlearn import start as unlearn_data
from saferule.unlearn.safe_rule import actor_loss
from saferule.unlearn.start import adapt, pairs, reward_targets

VAE, KEPT, DATASET = {"vae": "keep"}, {"regulariser": "kept"}, {"reference": "dataset"}


class Prepared:
    """Corrupted agents of one backbone before unlearning, one per mapping of readings; 4 keep, 3 forget episodes."""

    def __init__(self, name: str, *readings: dict[str, str], method: str = "safe-rule") -> None:
        self.backbone, self.cfg = get_backbone(name), tiny(name)
        draw, ordinary = Sampled(self.cfg), training(self.backbone, self.cfg)
        self.population: Population = create(self.backbone, self.cfg, [5] * len(readings))
        for _ in range(3):
            noise = draw_noise(self.population, ordinary.noise_shapes, torch.float32)
            update(self.population, ordinary, draw(self.population), noise)
        self.pool = TransitionPool([random_dataset(4, 0), random_dataset(3, 1)], self.cfg.reward_scale)
        self.rows = [(self.pool.rows_of(0), self.pool.rows_of(1))] * len(readings)
        self.algorithm = unlearning(method, self.backbone, self.cfg, 20, readings[0])
        begin(self.population, self.algorithm, name, [method] * len(readings), readings)
        self.draw = pairs(self.pool, self.rows, self.cfg.batch_size)

    def adapt(self) -> None:
        """Take from the data what the readings need."""
        adapt(self.population, self.backbone, self.cfg, self.pool, self.rows)

    def step(self):
        """One step; the pair of batches, the noise and what was reported."""
        pair = self.draw(self.population, range(len(self.population)))
        noise = draw_noise(self.population, self.algorithm.noise_shapes, torch.float32)
        return pair, noise, update(self.population, self.algorithm, pair, noise)


# vae = keep


@pytest.mark.parametrize("name", ACTOR_CRITIC)
def test_vae_is_trained_on_keep_data_alone_and_only_when_asked(name):
    frozen_vae, trained = Prepared(name, {}), Prepared(name, VAE)
    networks = {"actor", "critic", "cost_critic", *trained.backbone.TARGETS}
    for made, expected in ((frozen_vae, networks), (trained, networks | {"vae"})):
        made.adapt()
        before = frozen(made.population)
        for _ in range(3):
            _, _, info = made.step()
            assert all(value.isfinite().all() for value in info.values())
        assert changed_networks(before, frozen(made.population)) == expected

    made = Prepared(name, VAE)
    before = member(made.population.nets["vae"], 0)
    leaves = {k: v.requires_grad_(True) for k, v in before.items()}
    pair, noise, info = made.step()
    keep = pair.keep  # the backbone's own loss on the keep batch, and Adam's first step from it: lr * sign
    loss = vae_loss(leaves, keep.observations[0], keep.actions[0], noise["vae"][0], made.cfg.beta)
    assert info["vae_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for (k, leaf), gradient in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
        clear = gradient.abs() > 1e-5
        moved = made.population.nets["vae"][k][0].detach() - leaf.detach()
        torch.testing.assert_close(moved[clear], -made.cfg.vae_lr * gradient[clear].sign(), rtol=0.01, atol=1e-6)


# regulariser = kept


def test_bears_regulariser_is_added_to_the_keep_loss_by_hand():
    made = Prepared("bear-lag", KEPT)
    cfg, nets = made.cfg, member(made.population.nets, 0)
    scalars = member(made.population.scalars, 0) | {"log_alpha": torch.tensor(0.7), "beta_f": torch.tensor(0.4)}
    pair = made.draw(made.population, [0])
    pair = type(pair)(*(type(part)(*(column[0] for column in part)) for part in pair))
    noise = {k: v[0] for k, v in draw_noise(made.population, made.algorithm.noise_shapes, torch.float32).items()}
    leaves = [leaf.requires_grad_(True) for leaf in nets["actor"].values()]

    plain, _, moved = actor_loss(made.backbone, nets, scalars, pair, noise, cfg)
    assert set(moved) == {"beta_f"}
    loss, info, moved = actor_loss(made.backbone, nets, scalars, pair, noise, cfg, regularised=True)

    # The discrepancy from its definition, pair by pair: actions before the tanh, a Gaussian kernel.
    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [torch.stack([(-(x - y).pow(2).sum(-1) / (2 * cfg.mmd_sigma)).exp() for y in b]) for x in a]
        ).mean((0, 1))

    observations = pair.keep.observations
    behaviour = vae_decode_raw(nets["vae"], observations, clip_latent(noise["behaviour"])).detach().double()
    mean, std = gaussian(nets["actor"], observations)
    own = (mean + std * torch.cat((noise["keep_policy"].unsqueeze(0), noise["match"]))).double()
    squared = kernel(behaviour, behaviour) + kernel(own, own) - 2 * kernel(behaviour, own)
    excess = (squared + 1e-6).sqrt() - cfg.target_mmd_thresh
    expected = torch.tensor(0.7).exp() * excess.mean()
    assert (loss - plain).item() == pytest.approx(expected.item(), rel=1e-4)
    assert info["mmd"].item() == pytest.approx(excess.mean().item() + 0.05, rel=1e-4)
    assert moved["log_alpha"].item() == pytest.approx(
        0.7 + cfg.alpha_lr * torch.tensor(0.7).exp().item() * excess.mean().item(), rel=1e-5
    )
    added = [
        with_it - without
        for with_it, without in zip(
            torch.autograd.grad(loss, leaves), torch.autograd.grad(plain, leaves, retain_graph=True), strict=True
        )
    ]
    for one, other in zip(added, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-2, atol=2e-5)


def test_regulariser_draws_the_actor_to_the_behaviour_model():
    """Descent along the regulariser's gradient alone lowers the discrepancy; alpha rises while it is too large."""
    made = Prepared("bear-lag", KEPT)
    nets, scalars = member(made.population.nets, 0), member(made.population.scalars, 0)
    leaves = [leaf.requires_grad_(True) for leaf in nets["actor"].values()]
    with torch.no_grad():
        nets["actor"]["b2"][: made.cfg.action_dim] += 3.0  # far from the behaviour model
    batch = made.pool.gather(made.pool.rows_of(0)[: made.cfg.batch_size])
    shapes = made.backbone.noise_shapes(made.cfg, made.cfg.batch_size)
    noise = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in shapes.items()}
    before, info, moved = made.backbone.regulariser(nets, scalars, batch, noise, made.cfg)
    assert info["mmd"] > made.cfg.target_mmd_thresh and moved["log_alpha"] > scalars["log_alpha"]
    with torch.no_grad():
        for leaf, gradient in zip(leaves, torch.autograd.grad(before, leaves), strict=True):
            leaf -= 0.01 * gradient
    after, _, _ = made.backbone.regulariser(nets, scalars, batch, noise, made.cfg)
    assert after < before


@pytest.mark.parametrize("name", ["bcq-lag", "cpq"])
def test_regulariser_changes_nothing_where_none_carries_gradient(name):
    one, other = Prepared(name, {}), Prepared(name, KEPT)
    for made in (one, other):
        made.adapt()
        made.step()
    assert_same_state(frozen(one.population), frozen(other.population))
    assert "BCQ-Lag, CPQ" in READINGS["regulariser"].options["kept"]  # and it says so


@pytest.mark.parametrize("method", ["fixed-weight", "no-critic", "safe-rule"])
def test_all_readings_together_run_on_bear(method):
    made = Prepared("bear-lag", VAE | KEPT | DATASET, method=method)
    made.adapt()
    for _ in range(5):
        _, _, info = made.step()
        assert {"vae_loss", "mmd", "alpha", "beta_f"} <= set(info)
        assert all(value.isfinite().all() for value in info.values())


# reference = dataset


@pytest.mark.parametrize("name", ACTOR_CRITIC)
def test_reference_over_the_dataset_is_a_constant_percentile_of_all_targets(name, monkeypatch):
    readings = [{}, DATASET, DATASET | {"reward_percentile": "30"}]
    made = Prepared(name, *readings)
    monkeypatch.setattr(unlearn_data, "CHUNK", 16)  # 40 keep transitions: 16 + 16 + 8
    before = frozen(made.population)
    made.adapt()
    y_r = reward_targets(made.backbone, member(made.population.nets, 1), made.cfg, made.pool, made.rows[1][0])
    assert y_r.shape == (40,)
    ordered = y_r.sort().values
    median = (ordered[19] + ordered[20]) / 2
    thirtieth = ordered[11] + 0.7 * (ordered[12] - ordered[11])  # position 0.3 * 39 = 11.7
    stored = made.population.scalars["dataset_reference"]
    torch.testing.assert_close(stored, torch.stack([torch.zeros(()), median, thirtieth]))
    changed = {name for name, value in frozen(made.population).items() if not torch.equal(value, before[name])}
    assert changed == {"scalars/dataset_reference"}  # networks, generators and the other scalars are as they were

    for _ in range(3):
        nets = member(made.population.nets, 0)
        pair, noise, info = made.step()
        keep = type(pair.keep)(*(column[0] for column in pair.keep))
        targets, _ = made.backbone.bellman_targets(nets, keep, noise["target"][0], made.cfg)
        assert info["reward_reference"][0].item() == pytest.approx(quantile(targets, 0.5).item(), abs=1e-5)
        assert torch.equal(info["reward_reference"][1:], stored[1:])


def test_targets_over_the_dataset_are_the_corrupted_agents():
    """At the end of an episode the target is the reward; elsewhere gamma times the target critic's value is added."""
    made = Prepared("cpq", DATASET)
    keep = made.pool.gather(made.rows[0][0])
    y_r = reward_targets(made.backbone, member(made.population.nets, 0), made.cfg, made.pool, made.rows[0][0])
    ends = keep.done == 1
    assert ends.sum() == 4
    torch.testing.assert_close(y_r[ends], keep.rewards[ends])
    assert (y_r[~ends] != keep.rewards[~ends]).all()


# Populations


def test_readings_that_change_the_losses_are_kept_in_populations_of_their_own(tmp_path, monkeypatch):
    assert structure("safe-rule", "bear-lag") == ()
    assert structure("no-critic", "bear-lag", VAE | KEPT) == (("train_vae", True), ("regularised", True))
    assert structure("safe-rule", "cpq", KEPT) == structure("safe-rule", "coptidice", VAE | KEPT) == ()
    assert structure("safe-rule", "cpq", DATASET) == structure("fine-tuning", "cpq", VAE) == ()

    training_cell = Training("CarCircle", "bear-lag", "digest", None, 0, 1)
    chosen = [{}, DATASET, VAE, KEPT, VAE | KEPT, VAE | DATASET, {"gate": "data"}]
    cells = [Unlearning(training_cell, "safe-rule", 1, settings(**readings)) for readings in chosen]
    engine, groups = Engine(Store(tmp_path), tmp_path, device="cpu"), {}
    monkeypatch.setattr(engine, "train", lambda cells: None)
    monkeypatch.setattr(
        engine, "_work", lambda todo, among, together: [groups.setdefault(together(c), []).append(c) for c in todo]
    )
    engine.unlearn(cells)
    numbers = [[cells.index(cell) for cell in group] for group in groups.values()]
    assert numbers == [[0, 1, 6], [2, 5], [3], [4]]


@pytest.mark.parametrize("name", ACTOR_CRITIC)
def test_numeric_readings_side_by_side_equal_each_alone(name):
    readings = [{}, DATASET, DATASET | {"reward_percentile": "30", "gate": "data"}]
    together = Prepared(name, *readings)
    together.adapt()
    for _ in range(4):
        together.step()
    state = frozen(together.population)
    for p, own in enumerate(readings):
        alone = Prepared(name, own)
        alone.adapt()
        for _ in range(4):
            alone.step()
        one = {n: v if n.endswith("/step") else v[p : p + 1] for n, v in state.items()}
        assert_same_state(one, frozen(alone.population), 1e-5)
