"""Methods and readings as coefficients of Safe-RULE's losses, against Table 7."""

import pytest

from saferule.agents import get_backbone
from saferule.errors import SettingsError
from saferule.paper.settings import TABLE7
from saferule.unlearn import METHODS, coefficients, family

PAPER = {
    "alpha_k": 1.0,
    "alpha_f": 1.0,
    "kappa": 10.0,
    "sigma": 0.5,
    "percentile": 0.5,
    "cost_weight": 1.0,
    "beta_f": 0.1,
    "beta_min": 0.01,
    "beta_max": 1.0,
    "tau_beta": 0.25,
    "gate_at_data": 0.0,
    "forget_sign": 1.0,
    "weight_first": 1.0,
    "chi_normalised": 0.0,
    "reference_fixed": 0.0,
    "dataset_reference": 0.0,
}
CHANGES = {
    "safe-rule": {},
    "fixed-weight": {"beta_f": 1.0, "beta_min": 1.0, "beta_max": 1.0},
    "reward-only": {"cost_weight": 0.0},
    "no-critic": {"alpha_k": 0.0, "alpha_f": 0.0},
    "percentile-0": {"percentile": 0.0},
    "percentile-50": {},
    "percentile-100": {"percentile": 1.0},
}


@pytest.mark.parametrize("method", CHANGES)
def test_coefficients_of_each_method_are_those_of_table_7(method):
    cfg = get_backbone("bcq-lag").Config(observation_dim=4, action_dim=1, episode_len=300)
    assert coefficients(method, "cpq", cfg) == PAPER | CHANGES[method]
    assert PAPER["kappa"] + PAPER["sigma"] == TABLE7.forget_cost_target


@pytest.mark.parametrize(
    ("readings", "changes"),
    [
        ({"reward_percentile": "30"}, {"percentile": 0.3}),
        ({"gate": "data"}, {"gate_at_data": 1.0}),
        ({"weight_update": "after"}, {"weight_first": 0.0}),
        ({"forget_actor": "repelling"}, {"forget_sign": -1.0}),
        ({"reference": "dataset"}, {"reference_fixed": 1.0}),
    ],
)
def test_readings_change_one_coefficient(readings, changes):
    cfg = get_backbone("bcq-lag").Config(observation_dim=4, action_dim=1, episode_len=300)
    assert coefficients("safe-rule", "cpq", cfg, readings) == PAPER | changes


def test_kappa_converted_per_step_is_osrls_threshold():
    cfg = get_backbone("bcq-lag").Config(observation_dim=4, action_dim=1, episode_len=300)
    kappa = coefficients("safe-rule", "cpq", cfg, {"kappa": "per_step"})["kappa"]
    assert kappa == pytest.approx(3.17, abs=0.005) and kappa == cfg.q_limit


def test_fine_tuning_has_no_coefficients_and_unknown_names_are_refused():
    cfg = get_backbone("cpq").Config(observation_dim=4, action_dim=1, episode_len=300)
    assert coefficients("fine-tuning", "cpq", cfg) == {}
    with pytest.raises(SettingsError, match="fixed-weight"):
        family("forgetting", "cpq")
    with pytest.raises(SettingsError, match="gate"):
        coefficients("safe-rule", "cpq", cfg, {"gate": "maybe"})
    assert set(CHANGES) | {"fine-tuning"} <= set(METHODS)
