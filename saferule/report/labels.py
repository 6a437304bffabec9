"""Names, order and colours in which everything is shown. A method has the same colour in every figure.

The colours are those of Okabe and Ito (2008) and Tol (2021), which people with the common colour vision deficiencies
can tell apart.
"""

from __future__ import annotations

BACKBONES = {"bcq-lag": "BCQ-Lag", "bear-lag": "BEAR-Lag", "cpq": "CPQ", "coptidice": "COptiDICE"}
ATTACKS = {"clean": "clean", "max_cost": "Max Cost", "max_reward": "Max Reward", "min_reward": "Min Reward"}

# In the order in which methods are listed.
METHODS = {
    "clean": "clean (retrained)",
    "retraining": "retraining",
    "poisoned": "poisoned",
    "fine-tuning": "fine-tuning",
    "trajdeleter": "Trajdeleter",
    "trajdeleter-cost": "Trajdeleter, cost-aware",
    "trajdeleter-released": "Trajdeleter, released code",
    "reward-only": "reward only",
    "safe-rule": "Safe-RULE",
    "fixed-weight": "fixed weight",
    "no-critic": "no critic unlearning",
    "percentile-0": "percentile 0",
    "percentile-50": "percentile 50",
    "percentile-100": "percentile 100",
}
METHOD_COLOURS = {
    "clean": "#009E73",
    "retraining": "#009E73",
    "poisoned": "#D55E00",
    "fine-tuning": "#CC79A7",
    "trajdeleter": "#882255",
    "trajdeleter-released": "#AA4499",
    "trajdeleter-cost": "#332288",
    "safe-rule": "#0072B2",
    "fixed-weight": "#56B4E9",
    "reward-only": "#E69F00",
    "no-critic": "#000000",
    "percentile-0": "#8A8A8A",
    "percentile-50": "#8A8A8A",
    "percentile-100": "#8A8A8A",
}
ATTACK_COLOURS = {"clean": "#009E73", "max_cost": "#D55E00", "max_reward": "#E69F00", "min_reward": "#CC79A7"}
RATIO_STYLES = ("-", "--", ":", "-.")  # in ascending order of the ratio

# What the losses report, in the order in which it is drawn.
TRAINING_LOG = {
    "critic_loss": "reward critic loss",
    "cost_critic_loss": "cost critic loss",
    "q_cost": "mean Q_c at the policy's actions",
    "actor_loss": "actor loss",
    "vae_loss": "behaviour model (VAE) loss",
    "multiplier": "Lagrange multiplier",
    "alpha": "alpha (weight of CPQ's OOD, BEAR's MMD term)",
    "mmd": "discrepancy from the behaviour model",
    "nu_loss": "nu loss",
    "chi_loss": "chi loss",
    "cost_bound": "upper bound on the cost per step",
    "kl": "KL radius of that bound",
    "tau": "tau",
}
UNLEARNING_LOG = {
    "beta_f": "forget weight beta_f",
    "gap": "gap to kappa + sigma on D_f",
    "forget_q_cost_data": "mean Q_c on D_f, poisoned actions",
    "forget_q_cost_policy": "mean Q_c on D_f, the policy's actions",
    "forget_reward_residual": "softplus residual of Q_r, D_f (Eq. 5)",
    "forget_cost_residual": "softplus residual of Q_c, D_f (Eq. 6)",
    "forget_chi": "mean chi on D_f",
    "forget_weight": "mean weight of the forget actions",
}


def condition(attack: str, ratio: float) -> str:
    """An attack with its ratio, such as "Max Cost 15 %"."""
    return ATTACKS[attack] if attack == "clean" else f"{ATTACKS[attack]} {100 * ratio:g} %"


def in_order(methods: object) -> list[str]:
    """The given methods as they are listed; ones that are not known here come last."""
    known = list(METHODS)
    return sorted(set(methods), key=lambda m: (known.index(m) if m in known else len(known), m))


def method_name(method: str) -> str:
    """How a method is called in figures and tables."""
    return METHODS.get(method, method)


def method_style(method: str) -> str:
    """The line style of a method: Trajdeleter's variants are dashed, as their colours are near each other's."""
    return "--" if method.startswith("trajdeleter") else "-"


def method_colour(method: str) -> str:
    """The colour of a method; dark grey for one that has none of its own."""
    return METHOD_COLOURS.get(method, "#444444")
