"""Methods and readings as coefficients of Safe-RULE's losses, against Table 7; which readings make another run."""

import pytest
import torch
from helpers import random_dataset, tiny

from saferule.agents import BACKBONES, get_backbone
from saferule.agents.population import create, member
from saferule.data.batches import Pair, TransitionPool
from saferule.errors import SettingsError
from saferule.paper import TABLE7, UNLEARNING
from saferule.unlearn import (
    METHODS,
    Method,
    applicable,
    coefficients,
    family,
    get_method,
    loss_options,
    own_readings,
    supported,
    unlearning,
)

CFG = get_backbone("bcq-lag").Config(observation_dim=4, action_dim=1, episode_len=300)
WEIGHT = {"beta_f": 0.1, "beta_min": 0.01, "beta_max": 1.0, "tau_beta": 0.25}
DICE = {"alpha_k": 1.0, "kappa": 10.0, "sigma": 0.5, "cost_weight": 1.0} | WEIGHT  # what Appendix C.2 uses
PAPER = DICE | {"alpha_f": 1.0, "percentile": 0.5}
CHANGES = {
    "safe-rule": {},
    "safe-rule-described": {},
    "keep-only": {"alpha_f": 0.0, "beta_f": 0.0, "beta_min": 0.0, "beta_max": 0.0},
    "described-keep-only": {"alpha_f": 0.0, "beta_f": 0.0, "beta_min": 0.0, "beta_max": 0.0},
    "random-forget": {},
    "described-random-forget": {},
    "on-clean": {},
    "fixed-weight": {"beta_f": 1.0, "beta_min": 1.0, "beta_max": 1.0},
    "reward-only": {"cost_weight": 0.0},
    "no-critic": {"alpha_k": 0.0, "alpha_f": 0.0},
    "percentile-0": {"percentile": 0.0},
    "percentile-50": {},
    "percentile-100": {"percentile": 1.0},
}


@pytest.mark.parametrize("method", CHANGES)
def test_coefficients_of_each_method_are_those_of_table_7(method):
    assert coefficients(method, "cpq", CFG) == PAPER | CHANGES[method]
    assert PAPER["kappa"] + PAPER["sigma"] == TABLE7.kappa + TABLE7.sigma == 10.5
    changes = {name: value for name, value in CHANGES[method].items() if name in DICE}
    if supported(method, "coptidice"):
        floor = {"likelihood_floor": 0.0} if METHODS[method].readings else {}
        assert coefficients(method, "coptidice", tiny("coptidice")) == DICE | changes | floor


def test_readings_change_coefficients_or_what_is_computed():
    for readings, changes in (({"reward_percentile": "30"}, {"percentile": 0.3}), ({"gate": "data"}, {})):
        assert coefficients("safe-rule", "cpq", CFG, readings) == PAPER | changes
    assert coefficients("safe-rule", "cpq", CFG, {"reference": "dataset"}) == PAPER | {"dataset_reference": 0.0}
    options = dict(loss_options("safe-rule", "bear-lag"))
    defaults = {"gate": "policy", "weight_update": "before", "forget_actor": "printed"}
    defaults |= {"forget_gate": "unsafe", "gap": "policy"}
    assert options == {"reference": "batch"} | defaults | {"regulariser": "dropped"}
    for reading, option in (("gate", "data"), ("weight_update", "after")):
        assert dict(loss_options("no-critic", "bear-lag", {reading: option})) == options | {reading: option}
    # A VAE is trained where something looks at it.
    kept = options | {"regulariser": "kept"}
    assert dict(loss_options("safe-rule", "bear-lag", {"regulariser": "kept"})) == kept | {"vae": "frozen"}
    assert dict(loss_options("safe-rule", "bear-lag", {"vae": "keep"})) == options
    assert dict(loss_options("safe-rule", "bcq-lag"))["vae"] == "frozen"
    assert loss_options("safe-rule", "cpq", {"vae": "keep"}) == loss_options("safe-rule", "cpq")
    assert loss_options("safe-rule", "cpq", {"regulariser": "kept"}) == loss_options("safe-rule", "cpq")
    dice = {"weight_update": "before", "chi_gap": "raw", "likelihood": "printed", "dice_phases": "joint"}
    assert dict(loss_options("safe-rule", "coptidice")) == dice | {"gap": "policy"}
    assert loss_options("fine-tuning", "cpq", {"vae": "keep"}) == ()


def test_fine_tuning_has_no_coefficients_and_unknown_names_are_refused():
    assert coefficients("fine-tuning", "cpq", CFG) == {}
    with pytest.raises(SettingsError, match="fixed-weight"):
        family("forgetting", "cpq")
    with pytest.raises(SettingsError, match="gate"):
        coefficients("safe-rule", "cpq", CFG, {"gate": "maybe"})
    with pytest.raises(SettingsError, match="unknown method 'forgetting'"):
        get_method("forgetting")


def test_a_method_may_fix_a_reading(monkeypatch):
    away = Method("away", "Away", "#123456", "safe_rule", "main", readings={"forget_actor": "repelling"})
    monkeypatch.setitem(METHODS, "away", away)
    options = dict(loss_options("safe-rule", "cpq"))
    for given in ({}, {"forget_actor": "printed"}):
        assert dict(loss_options("away", "cpq", given)) == options | {"forget_actor": "repelling"}
    actor = dict(unlearning("away", get_backbone("cpq"), tiny("cpq"), 20).at(0))[("actor",)]
    assert actor.keywords["repelling"] and coefficients("away", "cpq", CFG) == PAPER


# Which readings make another run

CRITICS = [{"reward_percentile": "30"}, {"reference": "dataset"}, {"gate": "data"}, {"forget_gate": "open"}]
GAPS = [{"gap": "data"}, {"gap": "nearness"}, {"gap": "reward"}]
COMMON = [{"kappa": "per_step"}, {"weight_update": "after"}]
AWAY, VAE, KEPT = {"forget_actor": "repelling"}, {"vae": "keep"}, {"regulariser": "kept"}
APPLICABLE = {
    "bcq-lag": [*CRITICS, *GAPS, *COMMON, AWAY, VAE],
    "bear-lag": [*CRITICS, *GAPS, *COMMON, AWAY, KEPT],
    "cpq": [*CRITICS, *GAPS, *COMMON, AWAY],
    "coptidice": [GAPS[1], *COMMON, {"chi_gap": "normalised"}, {"likelihood": "bounded"}, {"dice_phases": "two"}],
}


@pytest.mark.parametrize("backbone", APPLICABLE)
def test_readings_that_make_another_run_on_a_backbone(backbone):
    assert applicable(backbone, tiny(backbone)) == APPLICABLE[backbone]
    every = {(r.name, option) for r in UNLEARNING for option in r.options if option != r.default}
    tried = [reading for readings in APPLICABLE.values() for reading in readings]
    tried += [method.readings for method in METHODS.values()]  # that of Trajdeleter's anchor is a method's
    assert {pair for readings in tried for pair in readings.items()} == every


def test_readings_of_other_methods_and_those_that_a_method_fixes():
    assert own_readings("trajdeleter-cost", "cpq", tiny("cpq")) == ["cost_anchor"]
    assert own_readings("fine-tuning", "cpq", tiny("cpq")) == []
    described = own_readings("safe-rule-described", "bear-lag", tiny("bear-lag"))
    assert set(described) == {next(iter(r)) for r in APPLICABLE["bear-lag"]} - set(
        METHODS["safe-rule-described"].readings
    )


def test_kappa_per_step_is_no_other_run_where_it_is_the_same_number():
    kappa = coefficients("safe-rule", "cpq", CFG, {"kappa": "per_step"})["kappa"]
    assert kappa == pytest.approx(3.17, abs=0.005) and kappa == CFG.q_limit  # osrl-lib's threshold
    # An undiscounted episode: the limit of 10 per episode is 10 as a level of the critic too.
    cfg = tiny("cpq", gamma=1 - 1e-12, episode_len=1)
    assert cfg.q_limit == TABLE7.kappa and {"kappa": "per_step"} not in applicable("cpq", cfg)


class Watched(dict):
    """A dictionary that remembers which of its entries were looked at."""

    def __init__(self, values):
        super().__init__(values)
        self.seen = set()

    def __getitem__(self, name):
        self.seen.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("readings", [{}, {"reference": "dataset", "gap": "reward", "chi_gap": "normalised"}])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_losses_look_at_the_coefficients_that_there_are(backbone, readings):
    module, cfg = get_backbone(backbone), tiny(backbone)
    population = create(module, cfg, [0])
    given = coefficients("safe-rule", backbone, cfg, readings)
    scalars = Watched(member(population.scalars, 0) | {name: torch.tensor(value) for name, value in given.items()})
    batch = TransitionPool([random_dataset(1, 0)], cfg.reward_scale).gather(torch.arange(cfg.batch_size))
    algorithm = unlearning("safe-rule", module, cfg, 20, readings)
    noise = {name: torch.zeros(shape) for name, shape in algorithm.noise_shapes.items()}
    for _, loss in algorithm.at(0):
        loss(member(population.nets, 0), scalars, Pair(batch, batch), noise, cfg)
    unread = {"percentile"} & set(given) if "dataset_reference" in given else set()  # `prepare` reads it then
    assert scalars.seen - set(population.scalars) == set(given) - unread
