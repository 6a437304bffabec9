"""The numbers that can be meant: one range for each name, whether an option, a profile or Python code gives it."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, NamedTuple

from saferule.errors import SettingsError


class Range(NamedTuple):
    """From `least` to `most`; `inside` leaves the two ends out. Whole numbers, or any finite ones."""

    least: float = 1
    most: float = math.inf
    whole: bool = True
    inside: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a number is in it."""
        kinds = Integral if self.whole else Real  # of numpy too
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            return False
        return self.least < value < self.most if self.inside else self.least <= value <= self.most

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        least, most = (f"{end:,.0f}" if abs(end) >= 1e5 else f"{end:g}" for end in (self.least, self.most))
        if self.inside:
            return f"a number between {least} and {most}" if self.most < math.inf else f"{kind} above {least}"
        return f"{kind} from {least} to {most}" if self.most < math.inf else f"{kind} of {least} or more"


# A seed of ours has to suit numpy's old generator, Stable-Baselines3 and torch, with what is added to it on the way.
SEED = Range(0, 2**31 - 1)
SIZE, STEPS = Range(1, 100_000), Range(1, 10**12)
SHARE, POSITIVE, FROM_ZERO = Range(0, 1, False), Range(0, math.inf, False, True), Range(0, math.inf, False)
RANGES = {
    **dict.fromkeys(("seed", "seeds", "replicates"), SEED),
    **dict.fromkeys(("snapshots", "relearning_snapshots"), Range(0, 10_000)),
    **dict.fromkeys(("ratio", "ratios", "known", "mistaken", "false_alarms"), Range(0, 1, False, True)),
    **dict.fromkeys(("cost_limit", "cost_limits", "block_seconds"), FROM_ZERO),
    **dict.fromkeys(("beta", "gains", "target_mmd_thresh", "qc_scalar"), FROM_ZERO),
    **dict.fromkeys(("start_update_policy_step",), Range(0, 10**12)),
    **dict.fromkeys(("steps", "training_steps", "adversary_steps", "unlearning_steps", "relearning_steps"), STEPS),
    **dict.fromkeys(("episodes", "curve_episodes", "relearning_episodes"), Range(1, 1_000_000)),
    **dict.fromkeys(("processes", "samples", "mmd_samples"), Range(1, 10_000)),
    **dict.fromkeys(("observation_dim", "action_dim", "hidden", "vae_hidden"), SIZE),
    **dict.fromkeys(("num_q", "num_nu", "num_chi"), Range(1, 1_000)),
    **dict.fromkeys(("batch_size", "episode_len"), Range(1, 10**7)),
    **dict.fromkeys(("gamma",), Range(0, 1, False, True)),
    **dict.fromkeys(("tau", "lmbda", "phi"), SHARE),
    **dict.fromkeys(("actor_lr", "critic_lr", "vae_lr", "alpha_lr", "scalar_lr", "reward_scale"), POSITIVE),
    **dict.fromkeys(("alpha", "cost_ub_epsilon", "mmd_sigma"), POSITIVE),
}


def check_number(name: str, value: Any, shown: str = "") -> None:
    """SettingsError that names an option (`shown`, else the name) whose number cannot be meant.

    Names without a range of their own have to be finite where they are numbers.
    """
    known = RANGES.get(name)
    finite = not isinstance(value, Real) or math.isfinite(value)
    if finite if known is None else known.holds(value):
        return
    raise SettingsError(f"{shown or name} = {value}, expected {known or 'a finite number'}: give such a number")
