"""A population's step as a CUDA graph: recorded once, replayed with new batches and noise.

The steps of these small networks are hundreds of short kernels; a GPU spends more time on starting them than on running
them. A graph starts all with one call. Everything that a step reads or writes must then stay at its place in memory:
`update` works in place, and the batch and the noise are copied into fixed buffers.

Needs a CUDA device, and one algorithm for all steps (no `Phases`). Off unless asked for (the profiles' field
``captured``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from saferule.agents.parts import Noise
from saferule.agents.population import Algorithm, Population, update
from saferule.agents.state import tensors_of
from saferule.errors import SettingsError

WARM_UP = 3  # steps before recording, in which libraries choose their kernels and workspaces; their effect is undone


class CapturedUpdate:
    """Does to one population what `update` does, by replaying a graph; shapes of batch and noise are fixed."""

    def __init__(self, population: Population, algorithm: Algorithm, batch: Any, noise: Noise) -> None:
        actor = next(iter(population.nets["actor"].values()))
        if not actor.is_cuda or not isinstance(algorithm, Algorithm):
            raise SettingsError("a captured step needs a CUDA device and one algorithm for all steps: leave it off")
        self.population = population
        self.batch, self.noise = tree_map(torch.clone, (batch, noise))
        step, state = population.step, {name: value.clone() for name, value in tensors_of(population).items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                update(population, algorithm, self.batch, self.noise)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.info = update(population, algorithm, self.batch, self.noise)
        population.step = step
        with torch.no_grad():
            for name, value in tensors_of(population).items():
                if name != "generators":  # the steps above drew nothing
                    value.copy_(state[name])

    def __call__(self, batch: Any, noise: Noise) -> dict[str, Tensor]:
        """One step; returns copies of what the losses report, (P,) each."""
        for fixed, new in zip(tree_leaves((self.batch, self.noise)), tree_leaves((batch, noise)), strict=True):
            fixed.copy_(new, non_blocking=True)
        self.graph.replay()
        self.population.step += 1
        return {name: value.clone() for name, value in self.info.items()}
