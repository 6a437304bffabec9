"""Readings: where the paper contradicts itself or leaves something open, a named option, a default, a reason.

The rule behind the defaults: the algorithm boxes and Table 7 over the running text, and what is printed over
what may have been meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from saferule.errors import SettingsError
from saferule.paper.settings import TABLE7


@dataclass(frozen=True)
class Reading:
    """One open point: `options` maps each to what it does; `source` says where the paper is unclear."""

    name: str
    question: str
    options: dict[str, str]
    default: str
    reason: str
    source: str


ATTACK = (
    Reading(
        name="poison_count",
        question="Of which set is the poisoning ratio rho a share?",
        options={
            "clean": "ceil(rho |D|) samples (Algorithm 1 line 9); 4.8 % and 13.0 % of the poisoned set",
            "poisoned": "the fewest samples that make at least rho of D and D_f together (Section 5.1)",
        },
        default="clean",
        reason="Algorithm 1 is the definition of the attack; the share of the poisoned set is reported beside it.",
        source="Section 5.1 has rho = |D_f| / |D~|, Algorithm 1 line 9 selects ceil(rho |D|) samples.",
    ),
    Reading(
        name="poison_unit",
        question="Are trajectories or transitions selected?",
        options={
            "cut": "whole trajectories in descending score; the last one is cut to the count",
            "whole": "whole trajectories in descending score until the count is reached; the last one stays whole",
        },
        default="cut",
        reason="The score belongs to a trajectory and the count to samples: this is the only selection with both.",
        source="Algorithm 1 scores trajectories (line 8), selects samples (line 9), relabels "
        "transitions (line 11); D is a set of trajectories in Section 3.1.",
    ),
    Reading(
        name="r_high",
        question="What is the high reward label?",
        options={
            "0.9": "the 90 % quantile of D's rewards",
            "0.95": "the 95 % quantile of D's rewards",
            "1.0": "the largest reward in D",
        },
        default="0.95",
        reason="High but often seen in D, so the label is no outlier; Algorithm 1 wants one value from D.",
        source="Algorithm 1 lines 10 and 13 overwrite with an unspecified high reward value from D; "
        "Section 5 keeps the reward at a high level comparable to the clean data.",
    ),
    Reading(
        name="r_low",
        question="What is the low reward label?",
        options={
            "0.0": "the smallest reward in D",
            "0.05": "the 5 % quantile of D's rewards",
            "0.1": "the 10 % quantile of D's rewards",
        },
        default="0.05",
        reason="The counterpart of r_high.",
        source="Algorithm 1 lines 10 and 15 take an unspecified low reward value from D.",
    ),
    Reading(
        name="min_reward_label",
        question="Which reward label does the Min Reward attack write?",
        options={
            "r_low": "a low reward (Algorithm 1 line 15, Appendix C.2)",
            "r_high": "a high reward, so that the poison appears beneficial (Section 5)",
        },
        default="r_low",
        reason="Algorithm 1 and Appendix C.2 agree with each other.",
        source="Section 5 keeps the reward high for all three attacks; Algorithm 1 line 15 and "
        "Appendix C.2 set it low.",
    ),
    Reading(
        name="adversary",
        question="Which algorithm trains the adversarial policy?",
        options={"ppo": "PPO (Stable-Baselines3) on R_z"},
        default="ppo",
        reason="Algorithm 1 lines 3-6 describe on-policy rollouts and updates on a scalar reward.",
        source="Algorithm 1 lines 3-6 and Appendix C.2 name no algorithm.",
    ),
    Reading(
        name="adversary_start",
        question="From what does the adversarial policy start?",
        options={
            "fresh": "from random networks, whatever the task and the attack",
            "reward_first": "Max Cost on AntVelocity from a policy that has maximised the reward for the first two "
            "fifths of the T steps, with its value function; everything else from random networks",
        },
        default="reward_first",
        reason="There a fresh policy is hardly ever fast enough for a cost: the best of six settings tried had 21 per "
        "episode after 600,000 steps. R_z itself stays as it is.",
        source="Algorithm 1 line 1 initialises the adversarial policy and does not say how.",
    ),
    Reading(
        name="rollouts",
        question="How many trajectories N does the trained adversary roll out?",
        options={
            "once": "as many full-length trajectories as hold the count: nearly all of them are selected",
            "twice": "as many full-length trajectories as hold twice the count, more where episodes end early: about "
            "the better half is selected",
        },
        default="twice",
        reason="The selection of the highest scores (line 9) needs more rollouts than it keeps.",
        source="Algorithm 1 line 7 leaves N open.",
    ),
)

UNLEARNING = (
    Reading(
        name="reward_percentile",
        question="Which percentile of the targets y_r is the reward reference?",
        options={"50": "the median (Table 7)", "30": "the 30th percentile (Section 4)"},
        default=str(TABLE7.reward_percentile),
        reason="Table 7 lists what was run, and Table 6 tries 50 but not 30.",
        source="Section 4: 30th percentile; Table 7: 50th; Algorithm 2 line 7: a low quantile.",
    ),
    Reading(
        name="reference",
        question="Over which data is the reward reference taken?",
        options={
            "batch": "the targets y_r of each keep mini-batch (Algorithm 2 line 7)",
            "dataset": "the targets y_r over all of D_k, once, with the corrupted agent's critics",
        },
        default="batch",
        reason="The algorithm box; it costs nothing, and a batch's quantile estimates the dataset's.",
        source="Section 4, Table 7 and Appendix A: D_k; Algorithm 2 line 7: B_k.",
    ),
    Reading(
        name="gate",
        question="At which action is the cost critic in the actor's indicators?",
        options={
            "policy": "at pi(s) (Algorithm 2 lines 12-13)",
            "data": "at the action in the dataset",
        },
        default="policy",
        reason="Algorithm 2 writes the argument out; CPQ's actor loss in OSRL gates there as well.",
        source="Eq. 9 and 10 write the indicator on Q_c without arguments; Algorithm 2 lines 12-13 with pi(s).",
    ),
    Reading(
        name="kappa",
        question="In which unit is the cost threshold that is compared with the cost critic?",
        options={
            "literal": "kappa itself, a discounted cost (Eq. 6, 9, 10; Table 7)",
            "per_step": "kappa as an episode's cost, converted as OSRL does: kappa (1 - gamma^T) / (1 - gamma) / T",
        },
        default="literal",
        reason="The equations compare kappa with the critic as it stands.",
        source="kappa = 10 bounds the discounted cost return (Eq. 1), is compared with the "
        "discounted critic (Eq. 6, 9, 10) and is the limit of an episode's evaluation cost (Table 6).",
    ),
    Reading(
        name="weight_update",
        question="Is beta_f updated before or after the actor's step?",
        options={
            "before": "the step uses the new weight (Algorithm 2 lines 15-16)",
            "after": "the step uses the weight of the step before",
        },
        default="before",
        reason="The order of the lines of Algorithm 2.",
        source="Algorithm 2 lines 14-16; with any gap of 3.6 or more the first update already "
        "reaches the ceiling of 1.",
    ),
    Reading(
        name="forget_actor",
        question="In which direction does the cost term of the forget actor loss push?",
        options={
            "printed": "softplus(kappa + sigma - Q_c(s, pi(s))): towards actions that the critic calls unsafe (Eq. 10)",
            "repelling": "the opposite sign: away from such actions, and so from the poisoned ones",
        },
        default="printed",
        reason="Eq. 10 and Algorithm 2 line 13 agree, and the text below Eq. 10 says so.",
        source="Eq. 10 draws pi to actions of high Q_c while Eq. 6 trains Q_c to be high at the "
        "poisoned actions; the text says that the policy is shifted away from them.",
    ),
    Reading(
        name="regulariser",
        question="Do the backbone's behaviour terms (VAE, MMD) stay in the keep actor loss?",
        options={
            "dropped": "no: Eq. 9 as printed",
            "kept": "yes: BEAR-Lag's alpha (MMD - threshold) on keep data is added to Eq. 9; the same as dropped for "
            "BCQ-Lag, CPQ and COptiDICE, whose actor losses have no behaviour term that carries gradient (BCQ-Lag's "
            "actor is tied to the VAE's actions by construction, CPQ's out-of-distribution cost moves a multiplier)",
        },
        default="dropped",
        reason="Eq. 9 and Algorithm 2 line 12 print none.",
        source="Section 4 says that the actor stays close to safe behaviour actions; Eq. 9 has no such term.",
    ),
    Reading(
        name="vae",
        question="Is the backbone's VAE trained during unlearning?",
        options={
            "frozen": "no: it stays as the corrupted policy left it",
            "keep": "yes: on keep data, with the backbone's own loss (CPQ acts and learns without it, so only the VAE "
            "itself changes; COptiDICE has none)",
        },
        default="frozen",
        reason="Algorithm 2 updates the two critics, the actor and the targets, nothing else.",
        source="Algorithm 2 does not mention the VAE of BCQ-Lag, BEAR-Lag and CPQ.",
    ),
    Reading(
        name="chi_gap",
        question="Which chi drives beta_f of COptiDICE?",
        options={
            "raw": "the network's output",
            "normalised": "the output normalised as for the forget weights",
        },
        default="raw",
        reason="Appendix C.2 says the current chi value, and kappa + sigma has no normalised counterpart.",
        source="Appendix C.2 normalises chi for the weights and does not say which chi the gap uses.",
    ),
)

READINGS: dict[str, Reading] = {reading.name: reading for reading in (*ATTACK, *UNLEARNING)}


def default_readings() -> dict[str, str]:
    """The default option of every reading."""
    return {name: reading.default for name, reading in READINGS.items()}


def check(readings: Mapping[str, str] | None = None) -> dict[str, str]:
    """All readings: those given, the others at their defaults.

    Raises `SettingsError`, listing what is valid, for a reading or an option that does not exist.
    """
    chosen = dict(readings or {})
    for name, option in chosen.items():
        if name not in READINGS:
            raise SettingsError(f"There is no reading {name!r}: choose among {', '.join(READINGS)}.")
        if option not in READINGS[name].options:
            raise SettingsError(
                f"Reading {name!r} has no option {option!r}: choose one of {', '.join(READINGS[name].options)}."
            )
    return default_readings() | chosen
