"""Every backbone with every method: which networks move in 20 steps, and that all values stay finite."""

import pytest
import torch
from helpers import ACTOR_CRITIC, EXISTING, Sampled, assert_same_state, changed_networks, frozen, random_dataset, tiny

from saferule.agents import get_backbone
from saferule.agents.population import Population, create, draw_noise, reset_optimisers, training, update
from saferule.agents.state import restore
from saferule.data.batches import Pair, TransitionPool, draw_rows
from saferule.errors import SettingsError
from saferule.unlearn import METHODS, begin, family

SAFE_RULE = [name for name, method in METHODS.items() if method.family == "safe_rule"]
TRAJDELETER = [name for name, method in METHODS.items() if method.family.startswith("trajdeleter")]
INFO = {
    "critic_loss",
    "cost_critic_loss",
    "reward_reference",
    "forget_reward_residual",
    "forget_cost_residual",
    "forget_q_cost_data",
    "keep_actor_loss",
    "forget_actor_loss",
    "gap",
    "beta_f",
    "forget_q_cost_policy",
}
CRITICS = {"critic", "cost_critic"}


class PairPool:
    """Batches of 4 keep and 3 forget trajectories, drawn with each agent's own generator."""

    def __init__(self, cfg) -> None:
        self.pool = TransitionPool([random_dataset(4, 0), random_dataset(3, 1)], cfg.reward_scale)
        self.size = cfg.batch_size

    def __call__(self, population: Population) -> Pair:
        sides = ([self.pool.rows_of(k)] * len(population) for k in (0, 1))
        return Pair(*(self.pool.gather(draw_rows(population.generators, rows, self.size)) for rows in sides))


def corrupted(name: str, methods: list[str], steps: int = 3) -> tuple[Population, dict]:
    """One agent per method, all with the same trained networks and generator; the methods' coefficients added."""
    backbone, cfg = get_backbone(name), tiny(name)
    draw, algorithm = Sampled(cfg), training(backbone, cfg)
    population = create(backbone, cfg, [5] * len(methods))
    for _ in range(steps):
        update(population, algorithm, draw(population), draw_noise(population, algorithm.noise_shapes, torch.float32))
    unlearning = family(methods[0], name).algorithm(backbone, cfg, 20)
    begin(population, unlearning, name, methods)
    return population, {"algorithm": unlearning, "cfg": cfg, "backbone": backbone}


def run(population: Population, algorithm, cfg, steps: int = 20) -> list[dict]:
    """What every step reported."""
    draw, infos = PairPool(cfg), []
    for _ in range(steps):
        pair = draw(population)
        now = algorithm.at(population.step)
        infos.append(update(population, now, pair, draw_noise(population, now.noise_shapes, torch.float32)))
    return infos


@pytest.mark.parametrize("method", SAFE_RULE)
@pytest.mark.parametrize("name", ACTOR_CRITIC)
def test_safe_rule_moves_critics_actor_and_targets(name, method):
    population, made = corrupted(name, [method])
    before = frozen(population)
    infos = run(population, made["algorithm"], made["cfg"])
    after = frozen(population)
    trained = {"actor"} if method == "no-critic" else {"actor"} | CRITICS
    # The targets follow, also towards critics that stand still.
    assert changed_networks(before, after) == trained | set(made["backbone"].TARGETS)
    for info in infos:
        assert set(info) == INFO
        assert all(value.shape == (1,) and value.isfinite().all() for value in info.values())
    for name in before:
        if name.startswith("nets/"):
            assert after[name].isfinite().all()
        if name.startswith("scalars/") and name != "scalars/beta_f":
            assert torch.equal(before[name], after[name])
    betas = torch.cat([info["beta_f"] for info in infos])
    assert ((betas >= 0.01) & (betas <= 1)).all()
    if method == "fixed-weight":
        assert (betas == 1).all() and after["scalars/beta_f"].item() == 1


@pytest.mark.parametrize("name", ACTOR_CRITIC)
def test_critic_losses_do_what_they_say(name):
    """On a fixed pair of batches the forget residuals fall and beta_f follows the gap."""
    population, made = corrupted(name, ["safe-rule"])
    algorithm, pair = made["algorithm"], PairPool(made["cfg"])(population)
    infos = []
    for _ in range(20):
        before = population.scalars["beta_f"].clone()
        infos.append(update(population, algorithm, pair, draw_noise(population, algorithm.noise_shapes, torch.float32)))
        expected = (before + 0.25 * infos[-1]["gap"]).clamp(0.01, 1.0)
        torch.testing.assert_close(infos[-1]["beta_f"], expected)
        torch.testing.assert_close(infos[-1]["gap"], 10.5 - infos[-1]["forget_q_cost_policy"])
    assert infos[-1]["forget_cost_residual"] < infos[0]["forget_cost_residual"]
    assert infos[-1]["forget_q_cost_data"] > infos[0]["forget_q_cost_data"]


@pytest.mark.parametrize("name", ACTOR_CRITIC)
def test_variants_side_by_side_equal_each_alone(name):
    together, made = corrupted(name, SAFE_RULE)
    run(together, made["algorithm"], made["cfg"], 10)
    state = frozen(together)
    for p, method in enumerate(SAFE_RULE):
        alone, made = corrupted(name, [method])
        run(alone, made["algorithm"], made["cfg"], 10)
        one = {n: v if n.endswith("/step") else v[p : p + 1] for n, v in state.items()}
        assert_same_state(one, frozen(alone), 1e-5)
    half = SAFE_RULE.index("percentile-50")
    for name, value in state.items():
        if name.startswith("nets/"):
            torch.testing.assert_close(value[SAFE_RULE.index("safe-rule")], value[half], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EXISTING)
def test_fine_tuning_is_the_training_step_on_keep_data(name):
    population, made = corrupted(name, ["fine-tuning"])
    cfg, ordinary = made["cfg"], training(made["backbone"], made["cfg"])
    other = restore(frozen(population), cfg.learning_rates, population.step)
    reset_optimisers(other, ordinary)
    before, draw = frozen(population), PairPool(cfg)
    for _ in range(20):
        pair, again = draw(population), draw(other)
        assert torch.equal(pair.keep.observations, again.keep.observations)
        noise = draw_noise(population, made["algorithm"].noise_shapes, torch.float32)
        draw_noise(other, ordinary.noise_shapes, torch.float32)
        info = update(population, made["algorithm"], pair, noise)
        expected = update(other, ordinary, pair.keep, noise)
        assert set(info) == set(expected)
        assert all(torch.equal(info[k], expected[k]) and info[k].isfinite().all() for k in info)
    assert_same_state(frozen(population), frozen(other))
    trained = {n for names, _ in made["backbone"].LOSSES for n in names}
    assert changed_networks(before, frozen(population)) == trained | set(made["backbone"].TARGETS)


@pytest.mark.parametrize("method", SAFE_RULE)
def test_safe_rule_on_coptidice_moves_values_and_actor(method):
    population, made = corrupted("coptidice", [method])
    before = frozen(population)
    infos = run(population, made["algorithm"], made["cfg"])
    values = set() if method == "no-critic" else {"nu", "chi", "tau", "lmbda"}
    assert changed_networks(before, frozen(population)) == {"actor"} | values
    assert all(value.isfinite().all() for info in infos for value in info.values())
    betas = torch.cat([info["beta_f"] for info in infos])
    assert (betas == 1).all() if method == "fixed-weight" else ((betas >= 0.01) & (betas <= 1)).all()


@pytest.mark.parametrize("method", TRAJDELETER)
@pytest.mark.parametrize("name", EXISTING)
def test_trajdeleter_runs_both_phases_and_keeps_the_original(name, method):
    if name == "coptidice" and method != "trajdeleter-released":
        with pytest.raises(SettingsError, match="trajdeleter-released"):
            family(method, name)
        return
    population, made = corrupted(name, [method])
    before = frozen(population)
    infos = run(population, made["algorithm"], made["cfg"])
    trained = {n for names, _ in made["backbone"].LOSSES for n in names}
    assert changed_networks(before, frozen(population)) == trained | set(made["backbone"].TARGETS)
    assert all(set(info) == set(infos[0]) for info in infos)  # one log for both phases
    assert all(value.isfinite().all() for info in infos for value in info.values())


@pytest.mark.parametrize("method", TRAJDELETER)
def test_trajdeleter_phases_are_four_to_one(method):
    made = family(method, "cpq").algorithm(get_backbone("cpq"), tiny("cpq"), 100)
    parts = [made.parts.index(made.at(step)) for step in range(100)]
    forgetting = [0] * 80 if method != "trajdeleter-released" else ([0] * 10 + [1] * 10) * 4
    assert parts == forgetting + [len(made.parts) - 1] * 20


def test_released_forget_block_trains_on_negated_rewards():
    """One forget step equals an ordinary step on the forget batch with the sign of its rewards turned."""
    population, made = corrupted("cpq", ["trajdeleter-released"])
    forget_step = made["algorithm"].parts[1]
    ordinary = training(made["backbone"], made["cfg"])
    other = restore(frozen(population), made["cfg"].learning_rates, 0)
    reset_optimisers(other, ordinary)
    pair = PairPool(made["cfg"])(population)
    noise = draw_noise(population, forget_step.noise_shapes, torch.float32)
    update(population, forget_step, pair, noise)
    update(other, ordinary, pair.forget._replace(rewards=-pair.forget.rewards), noise)
    assert_same_state(
        {k: v for k, v in frozen(population).items() if k.startswith("nets/")},
        {k: v for k, v in frozen(other).items() if k.startswith("nets/")},
    )
