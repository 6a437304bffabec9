"""Every method with every backbone, as they are declared: which networks move, what is reported, what stays finite."""

from dataclasses import replace

import pytest
import torch
from helpers import ACTOR_CRITIC, LOOKS, STEPS, Corrupted, advance, assert_same_state, changed_networks, frozen, tiny

from saferule import unlearn
from saferule.agents import BACKBONES, get_backbone
from saferule.agents.loop import Log, inputs, run
from saferule.agents.parts import ORIGINAL
from saferule.agents.population import draw_noise, look, update
from saferule.errors import SettingsError
from saferule.unlearn import METHODS, Method, coefficients, family, loss_options, supported, unlearning
from saferule.unlearn.start import random_part

SAFE_RULE = [name for name, method in METHODS.items() if method.family == "safe_rule"]
TRAJDELETER = [name for name, method in METHODS.items() if method.family.startswith("trajdeleter")]
CELLS = [(backbone, method) for backbone in BACKBONES for method in METHODS if supported(method, backbone)]
INFO = {
    *("critic_loss", "cost_critic_loss", "reward_reference", "forget_reward_residual", "forget_cost_residual"),
    *("forget_q_cost_data", "actor_loss", "forget_actor_loss", "gap", "beta_f", "forget_q_cost_policy"),
    *("keep_gates_open", "forget_gates_open"),
}


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_a_method_moves_what_it_trains_and_stays_finite(name, method):
    made, declared = Corrupted(name, method), METHODS[method]
    assert set(coefficients(method, name, made.cfg)) <= set(made.population.scalars)
    copied = {net for net in made.population.nets if net.startswith(ORIGINAL)}
    assert bool(copied) == declared.frozen_copy
    before = frozen(made.population)
    infos = made.run()
    after = frozen(made.population)
    trained = {net for networks, _ in made.backbone.LOSSES for net in networks}
    if declared.family == "safe_rule":
        described = bool(declared.readings)
        learns = ("vae", "keep") in loss_options(method, name)  # its VAE, on keep data
        trained = {"actor"} if method == "no-critic" else trained - (set() if learns else {"vae"})
    # The targets follow, also towards critics that stand still. The frozen copies do not move.
    assert changed_networks(before, after) == trained | set(made.backbone.TARGETS)
    assert all(set(info) == set(infos[0]) for info in infos)  # one log for all phases
    assert all(value.shape == (1,) and value.isfinite().all() for info in infos for value in info.values())
    assert all(value.isfinite().all() for name, value in after.items() if name.startswith("nets/"))
    if declared.family == "safe_rule":
        kept = set(coefficients(method, name, made.cfg)) - {"beta_f", "reward_reference"}
        assert all(torch.equal(before[f"scalars/{k}"], after[f"scalars/{k}"]) for k in kept)
        assert not made.backbone.CRITICS or described or set(infos[0]) == INFO
        betas, bounds = torch.cat([info["beta_f"] for info in infos]), made.population.scalars
        assert ((betas >= bounds["beta_min"]) & (betas <= bounds["beta_max"])).all()
        if method == "fixed-weight":
            assert (betas == 1).all() and after["scalars/beta_f"].item() == 1


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_every_repair_is_looked_into_and_a_look_changes_nothing(name, method):
    made = Corrupted(name, method)
    before = frozen(made.population)
    batch, noise = inputs(made.population, made.algorithm, made.draw, [0])
    generators = {k: v for k, v in frozen(made.population).items() if k.startswith("generators")}
    seen = look(made.population, made.algorithm, batch, noise)
    assert_same_state(before | generators, frozen(made.population))
    assert set(seen) == (LOOKS if family(method, name).PAIRED else set())
    assert all(value.shape == (1,) and value.isfinite().all() for value in seen.values())
    if seen:  # of a gradient that an actor's step takes there is something to see
        assert seen["keep_gradient"] > 0 and seen["keep_distance"] > 0
        idle = {"keep-only", "described-keep-only", "critic-only"}
        if made.backbone.CRITICS:  # fresh critics are far below kappa: reward-only's gate is shut, and nothing is left
            idle.add("reward-only")
        forgets = METHODS[method].family in ("safe_rule", "trajdeleter") and method not in idle
        assert (seen["forget_gradient"] > 0) == forgets


def test_a_random_part_is_whole_trajectories_but_for_the_last_and_the_rest_is_kept():
    episodes = [slice(0, 4), slice(4, 9), slice(9, 12), slice(12, 20)]
    parts = set()
    for seed in range(8):
        rest, part = (rows.tolist() for rows in random_part(episodes, 6, seed))
        assert len(part) == 6 and sorted(rest + part) == list(range(20))
        touched = [range(e.start, e.stop) for e in episodes if set(part) & set(range(e.start, e.stop))]
        cut = [rows for rows in touched if not set(rows) <= set(part)]
        assert len(cut) <= 1 and all(set(rows[: len(set(part) & set(rows))]) <= set(part) for rows in cut)
        parts.add(tuple(part))
    assert len(parts) > 1 and random_part(episodes, 6, 3)[1].tolist() == random_part(episodes, 6, 3)[1].tolist()


def test_what_needs_critics_is_refused_where_there_are_none():
    for method in METHODS.values():
        assert supported(method.name, "cpq") and supported(method.name, "coptidice") != method.needs_critics
    with pytest.raises(SettingsError, match="trajdeleter-released"):
        family("trajdeleter", "coptidice")


@pytest.mark.parametrize("name", ACTOR_CRITIC)
def test_critic_losses_do_what_they_say(name):
    """On a fixed pair of batches the forget residuals fall and beta_f follows the gap."""
    made = Corrupted(name, "safe-rule")
    pair, infos = made.draw(made.population, [0]), []
    for _ in range(STEPS):
        before = made.population.scalars["beta_f"].clone()
        infos += advance(made.population, made.algorithm, lambda *_: pair)
        expected = (before + 0.25 * infos[-1]["gap"]).clamp(0.01, 1.0)
        torch.testing.assert_close(infos[-1]["beta_f"], expected)
        torch.testing.assert_close(infos[-1]["gap"], 10.5 - infos[-1]["forget_q_cost_policy"])
    assert infos[-1]["forget_cost_residual"] < infos[0]["forget_cost_residual"]
    assert infos[-1]["forget_q_cost_data"] > infos[0]["forget_q_cost_data"]


@pytest.mark.parametrize("name", ACTOR_CRITIC)
def test_variants_side_by_side_equal_each_alone(name):
    usual = loss_options("safe-rule", name)
    alike = [method for method in SAFE_RULE if loss_options(method, name) == usual]
    together = Corrupted(name, *alike)
    together.run(10)
    for p, method in enumerate(alike):
        alone = Corrupted(name, method)
        alone.run(10)
        assert_same_state(frozen(together.population, [p]), frozen(alone.population), 1e-5)
    whole, half = (frozen(together.population, [alike.index(m)]) for m in ("safe-rule", "percentile-50"))
    for net in (name for name in whole if name.startswith("nets/")):
        torch.testing.assert_close(whole[net], half[net], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["clean", "poisoned", "fine-tuning", "short-retraining", "continued", "relearn"])
@pytest.mark.parametrize("name", BACKBONES)
def test_fine_tuning_and_relearning_are_the_training_step_on_their_data(name, method):
    made = Corrupted(name, method)
    other, own = made.beside(), family(method, name).PAIRED

    def draw(population, agents):
        return made.draw(population, agents).keep if own else made.draw(population, agents)

    infos, expected = made.run(), advance(other, made.ordinary, draw, STEPS)
    for info, again in zip(infos, expected, strict=True):
        assert set(info) == set(again) and all(torch.equal(info[k], again[k]) for k in info)
    assert_same_state(frozen(made.population), frozen(other))


@pytest.mark.parametrize("method", TRAJDELETER)
def test_trajdeleter_phases_are_four_to_one(method):
    algorithm = unlearning(method, get_backbone("cpq"), tiny("cpq"), 100)
    forgetting = [0] * 80 if method != "trajdeleter-released" else ([0] * 10 + [1] * 10) * 4
    assert [algorithm.phase(step) for step in range(100)] == forgetting + [len(algorithm.phases) - 1] * 20


def test_released_forget_block_trains_on_negated_rewards():
    """One forget step equals an ordinary step on the forget batch with the sign of its rewards turned."""
    made = Corrupted("cpq", "trajdeleter-released")
    forgetting = replace(made.algorithm, phase=lambda step: 1)
    other, pair = made.beside(), made.draw(made.population, [0])
    noise = draw_noise(made.population, forgetting.noise_shapes, torch.float32)
    update(made.population, forgetting, pair, noise)
    update(other, made.ordinary, pair.forget._replace(rewards=-pair.forget.rewards), noise)
    one, again = (
        {k: v for k, v in frozen(population).items() if k.startswith("nets/")}
        for population in (made.population, other)
    )
    assert_same_state(one, again)


TOY = """
from saferule.unlearn.fine_tune import PAIRED, algorithm, options

def coefficients(cfg, readings):
    return {"strength": 1.0}
"""


@pytest.mark.parametrize("name", BACKBONES)
def test_a_new_method_is_one_file_and_one_entry(name, tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(unlearn, "__path__", [*unlearn.__path__, str(tmp_path)])
    monkeypatch.setitem(METHODS, "toy", Method("toy", "Toy", "#123456", "toy", "main", {"strength": 0.5}))
    made, log = Corrupted(name, "toy"), Log()
    assert made.population.scalars["strength"].tolist() == [0.5]
    before = frozen(made.population)
    population, agents = run(made.population, made.algorithm, made.draw, STEPS, log=log, log_every=10)
    assert agents == [0] and [row["step"] for row in log.rows] == [10, 20]
    assert "actor" in changed_networks(before, frozen(population))
    assert supported("toy", name) and coefficients("toy", name, made.cfg) == {"strength": 0.5}
