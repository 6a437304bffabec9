"""Readings that change which losses Safe-RULE has, or take something from all of D_k: by hand and on tiny agents."""

import pytest
import torch
from helpers import ACTOR_CRITIC, Corrupted, assert_same_state, changed_networks, frozen

from saferule.agents.networks import clip_latent, gaussian, quantile, vae_decode_raw, vae_loss
from saferule.agents.population import draw_noise, member
from saferule.paper import READINGS
from saferule.unlearn import start
from saferule.unlearn.safe_rule import actor_loss
from saferule.unlearn.start import reward_targets

VAE, KEPT, DATASET = {"vae": "keep"}, {"regulariser": "kept"}, {"reference": "dataset"}


def prepared(name: str, *readings: dict[str, str], method: str = "safe-rule") -> Corrupted:
    """One corrupted agent per mapping of readings."""
    return Corrupted(name, method, readings=readings)


# vae = keep


@pytest.mark.parametrize(("name", "readings"), [("bcq-lag", VAE), ("bear-lag", VAE | KEPT)])
def test_vae_is_trained_on_keep_data_alone_and_only_when_asked(name, readings):
    frozen_vae, trained = prepared(name, {}), prepared(name, readings)
    networks = {"actor", "critic", "cost_critic", *trained.backbone.TARGETS}
    for made, expected in ((frozen_vae, networks), (trained, networks | {"vae"})):
        before = frozen(made.population)
        assert all(value.isfinite().all() for info in made.run(3) for value in info.values())
        assert changed_networks(before, frozen(made.population)) == expected

    made = prepared(name, readings)
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


@pytest.mark.parametrize("name", ["bear-lag", "cpq"])
def test_a_vae_that_nothing_looks_at_is_left_alone(name):
    """Else the same batches would not be drawn, and what they change would look like what the reading changes."""
    one, other = prepared(name, {}), prepared(name, VAE)
    for made in (one, other):
        made.step()
    assert_same_state(frozen(one.population), frozen(other.population))


# regulariser = kept


def test_bears_regulariser_is_added_to_the_keep_loss_by_hand():
    made = prepared("bear-lag", KEPT)
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
        distances = torch.stack([torch.stack([(x - y).pow(2).sum(-1) for y in b]) for x in a])
        return (-distances / (2 * cfg.mmd_sigma)).exp().mean((0, 1))

    observations = pair.keep.observations
    behaviour = vae_decode_raw(nets["vae"], observations, clip_latent(noise["behaviour"])).detach().double()
    mean, std = gaussian(nets["actor"], observations)
    own = (mean + std * torch.cat((noise["keep_policy"].unsqueeze(0), noise["match"]))).double()
    squared = kernel(behaviour, behaviour) + kernel(own, own) - 2 * kernel(behaviour, own)
    excess = (squared + 1e-6).sqrt() - cfg.target_mmd_thresh
    expected = torch.tensor(0.7).exp() * excess.mean()
    assert (loss - plain).item() == pytest.approx(expected.item(), rel=1e-4)
    assert info["mmd"].item() == pytest.approx(excess.mean().item() + 0.05, rel=1e-4)
    assert moved["log_alpha"].item() == pytest.approx(0.7 + cfg.alpha_lr * expected.item(), rel=1e-5)
    added = torch.autograd.grad(loss - plain, leaves, retain_graph=True)
    for one, other in zip(added, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-2, atol=2e-5)


def test_regulariser_draws_the_actor_to_the_behaviour_model():
    """Descent along the regulariser's gradient alone lowers the discrepancy; alpha rises while it is too large."""
    made = prepared("bear-lag", KEPT)
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
    one, other = prepared(name, {}), prepared(name, KEPT)
    for made in (one, other):
        made.step()
    assert_same_state(frozen(one.population), frozen(other.population))
    assert "BCQ-Lag, CPQ" in READINGS["regulariser"].options["kept"]  # and it says so


@pytest.mark.parametrize("method", ["fixed-weight", "no-critic", "safe-rule"])
def test_all_readings_together_run_on_bear(method):
    made = prepared("bear-lag", VAE | KEPT | DATASET, method=method)
    for info in made.run(5):
        assert {"vae_loss", "mmd", "alpha", "beta_f"} <= set(info)
        assert all(value.isfinite().all() for value in info.values())


# reference = dataset


@pytest.mark.parametrize("name", ACTOR_CRITIC)
def test_reference_over_the_dataset_is_a_constant_percentile_of_all_targets(name, monkeypatch):
    monkeypatch.setattr(start, "CHUNK", 16)  # 40 keep transitions: 16 + 16 + 8
    made = prepared(name, DATASET, DATASET | {"reward_percentile": "30"})
    by_batch = prepared(name, {}, {"reward_percentile": "30"})
    y_r = reward_targets(made.backbone, member(made.population.nets, 0), made.cfg, made.pool, made.rows[0][0])
    assert y_r.shape == (40,)
    ordered = y_r.sort().values
    median = (ordered[19] + ordered[20]) / 2
    thirtieth = ordered[11] + 0.7 * (ordered[12] - ordered[11])  # position 0.3 * 39 = 11.7
    stored = made.population.scalars["dataset_reference"]
    torch.testing.assert_close(stored, torch.stack([median, thirtieth]))
    state, other = frozen(made.population), frozen(by_batch.population)
    assert state.pop("scalars/dataset_reference") is not None
    assert_same_state(state, other)  # networks, generators and the other scalars are as they are without

    for _ in range(3):
        _, _, info = made.step()
        assert torch.equal(info["reward_reference"], stored)
        nets = member(by_batch.population.nets, 0)
        pair, noise, info = by_batch.step()
        keep = type(pair.keep)(*(column[0] for column in pair.keep))
        targets, _ = made.backbone.bellman_targets(nets, keep, noise["target"][0], made.cfg)
        assert info["reward_reference"][0].item() == pytest.approx(quantile(targets, 0.5).item(), abs=1e-5)


def test_targets_over_the_dataset_are_the_corrupted_agents():
    """At the end of an episode the target is the reward; elsewhere gamma times the target critic's value is added."""
    made = prepared("cpq", DATASET)
    keep = made.pool.gather(made.rows[0][0])
    y_r = reward_targets(made.backbone, member(made.population.nets, 0), made.cfg, made.pool, made.rows[0][0])
    ends = keep.done == 1
    assert ends.sum() == 4
    torch.testing.assert_close(y_r[ends], keep.rewards[ends])
    assert (y_r[~ends] != keep.rewards[~ends]).all()


# Populations


@pytest.mark.parametrize("name", ACTOR_CRITIC)
def test_numeric_readings_side_by_side_equal_each_alone(name):
    readings = [DATASET, DATASET | {"kappa": "per_step"}, DATASET | {"reward_percentile": "30"}]
    together = prepared(name, *readings)
    together.run(4)
    for p, own in enumerate(readings):
        alone = prepared(name, own)
        alone.run(4)
        assert_same_state(frozen(together.population, [p]), frozen(alone.population), 1e-5)
