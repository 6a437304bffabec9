"""What a gradient step sees: batches for a population, gathered on the device that trains.

All transitions that a population needs lie packed in one matrix on the device; an agent is given the rows it may see.
One gather per step serves P agents, whatever their data sets (osrl-lib's TransitionDataset yields one transition per
Python step).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saferule.data.schema import Dataset, first_steps


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


class TransitionPool:
    """Several data sets of one task, packed row by row; rows of data set k start at ``starts[k]``."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        reward_scale: float,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        packed = []
        for data in datasets:
            scalars = (data.rewards * np.float32(reward_scale), data.costs, data.done, first_steps(data))
            packed.append(np.column_stack((data.observations, data.next_observations, data.actions, *scalars)))
        self.lengths = [len(data) for data in datasets]
        self.starts = np.cumsum([0, *self.lengths[:-1]]).tolist()
        self.rows = torch.from_numpy(np.concatenate(packed)).to(device=device, dtype=dtype)
        observation_dim, action_dim = datasets[0].observations.shape[1], datasets[0].actions.shape[1]
        self.widths = [observation_dim, observation_dim, action_dim, 1, 1, 1, 1]

    def rows_of(self, *datasets: int) -> Tensor:
        """The row numbers of the union of some of the data sets, (N,) int64 on the CPU."""
        return torch.cat([torch.arange(self.lengths[k]) + self.starts[k] for k in datasets])

    def gather(self, index: Tensor) -> Batch:
        """The transitions (P, B) at these row numbers; a Batch of (P, B, ...)."""
        packed = self.rows[index.to(self.rows.device, non_blocking=True)]
        parts = packed.split(self.widths, dim=-1)
        return Batch(*parts[:3], *(part.squeeze(-1) for part in parts[3:]))


def draw_rows(generators: Sequence[torch.Generator], rows: Sequence[Tensor], batch_size: int) -> Tensor:
    """(P, B) row numbers, uniform with replacement; agent p draws from ``rows[p]`` with its own generator."""
    each = zip(generators, rows, strict=True)
    return torch.stack([own[torch.randint(len(own), (batch_size,), generator=generator)] for generator, own in each])
