"""What one gradient step sees."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B transitions of one agent (the population trainer stacks P of them in front).

    observations, next_observations  (B, S)
    actions                          (B, A), in [-1, 1]
    rewards                          (B,), already multiplied by the backbone's reward scale
    costs                            (B,), raw
    done                             (B,), 1 where the episode ended or ran out of time (osrl-lib TransitionDataset)
    is_init                          (B,), 1 for the first transition of an episode
    """

    observations: Tensor
    next_observations: Tensor
    actions: Tensor
    rewards: Tensor
    costs: Tensor
    done: Tensor
    is_init: Tensor


class Pair(NamedTuple):
    """What an unlearning step sees: a batch of the keep set and a batch of the forget set."""

    keep: Batch
    forget: Batch
