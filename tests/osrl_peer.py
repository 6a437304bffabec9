"""osrl-lib's own model and training step beside ours: same weights, same batches, same noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.distributions import Normal, normal
from torch.utils._pytree import tree_map

from benchmarks.osrl_lib import quiet_trainer
from saferule.agents import get_backbone
from saferule.agents.osrl import networks_of
from saferule.agents.parts import Noise
from saferule.agents.population import create, draw_noise, member, stack, training, update
from saferule.data.batches import Batch

INIT_PROPORTION = 0.25


@contextmanager
def fed(draws: list[Tensor]) -> Iterator[None]:
    """Within, each standard normal draw that osrl-lib makes is the next of these, of its shape; all must be used."""
    queue = list(draws)

    def give(shape: Any) -> Tensor:
        draw = queue.pop(0)
        assert draw.shape == torch.Size(shape)
        return draw

    def sample(self: Normal, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * give(self._extended_shape(torch.Size(sample_shape)))

    with (
        patch.object(torch, "randn", lambda shape: give(shape)),
        patch.object(torch, "randn_like", lambda like: give(like.shape)),
        patch.object(normal, "_standard_normal", lambda shape, dtype, device: give(shape)),  # Normal.rsample
        patch.object(Normal, "sample", sample),
    ):
        yield
    assert not queue


def osrl_draws(backbone: str, noise: Noise) -> list[Tensor]:
    """Our noise of one agent's step in the order and the shapes in which osrl-lib draws it.

    One draw of ours serves the reward and the cost target, so osrl-lib is given it twice. Draws that osrl-lib makes and
    does not use are zeros.
    """

    def rows(draw: Tensor) -> Tensor:
        """(n, B, d) to (B * n, d): osrl-lib repeats each state n times."""
        return draw.transpose(0, 1).flatten(0, 1)

    if backbone == "coptidice":
        return [noise["observation"], noise["action"], torch.zeros_like(noise["action"])]
    vae, target = noise["vae"], noise["target"]
    if backbone == "cpq":
        ood = noise["ood"]
        unused = [torch.zeros_like(target), torch.zeros(ood.shape[0] * ood.shape[1], vae.shape[1])]
        return [vae, target, target, unused[0], ood, unused[1], noise["policy"]]
    draws = [vae, rows(target), rows(target)]
    if backbone == "bcq-lag":
        return [*draws, noise["policy"]]
    samples = torch.cat((noise["policy"].unsqueeze(0), noise["match"]))
    return [*draws, noise["behaviour"].transpose(0, 1), rows(samples)]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within, new tensors are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Recorder(dict):
    """A logger that keeps what osrl-lib's trainers report of their last step."""

    store = dict.update


class Peers:
    """osrl-lib's trainer and a population of one of ours, from the same weights.

    dtype, reference  the precision of ours and of osrl-lib
    model, logged     osrl-lib's model and what it reported of its last step
    """

    def __init__(
        self, backbone: str, batch_size: int, dtype: torch.dtype, reference: torch.dtype | None = None, **settings: Any
    ) -> None:
        self.name, module = backbone, get_backbone(backbone)
        self.cfg = module.Config(**settings, batch_size=batch_size)
        self.dtype, self.reference = dtype, reference or dtype
        self.random = torch.Generator().manual_seed(0)
        std = 0.5 + torch.rand(self.cfg.observation_dim + self.cfg.action_dim, generator=self.random, dtype=dtype)
        parts = [part.unsqueeze(0) for part in std.split((self.cfg.observation_dim, self.cfg.action_dim))]
        with default_dtype(self.reference):
            torch.manual_seed(0)
            statistics = (INIT_PROPORTION, *(part.to(self.reference).numpy() for part in parts))
            self.trainer = quiet_trainer(backbone, self.cfg, "cpu", statistics)
        self.model, self.logged = self.trainer.model, Recorder()
        self.trainer.logger = self.logged
        state = {name: value.to(dtype) for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(state)
        with default_dtype(dtype), torch.no_grad():
            self.ours = create(module, self.cfg, [0])
            for net, leaves in networks_of(state, backbone, self.cfg).items():
                for k, value in leaves.items():
                    self.ours.nets[net][k].copy_(value.unsqueeze(0))
        if module.statistics is not None:
            names = ("init_proportion", "observation_std", "action_std")
            self.ours.scalars |= dict(zip(names, (torch.tensor([INIT_PROPORTION], dtype=dtype), *parts), strict=True))
        self.algorithm = training(module, self.cfg)

    def batch(self) -> Batch:
        """Random transitions (B, ...); some end an episode, some start one, some cost."""
        size, cfg = self.cfg.batch_size, self.cfg

        def normals(*shape: int) -> Tensor:
            return torch.randn(size, *shape, generator=self.random, dtype=self.dtype)

        def flags(share: float) -> Tensor:
            return (torch.rand(size, generator=self.random) < share).to(self.dtype)

        states = normals(cfg.observation_dim), normals(cfg.observation_dim)
        actions = normals(cfg.action_dim).tanh()
        return Batch(*states, actions, 0.3 * normals(), flags(0.5), flags(0.1), flags(INIT_PROPORTION))

    def step(self) -> dict[str, Tensor]:
        """One training step of both on the same batch and noise; what ours reports."""
        batch, noise = self.batch(), draw_noise(self.ours, self.algorithm.noise_shapes, self.dtype)
        with default_dtype(self.reference):
            theirs = tree_map(lambda part: part.to(self.reference), (batch, member(noise, 0)))
            osrl_step(self.name, self.trainer, *theirs)
        return update(self.ours, self.algorithm, stack([batch]), noise)


def osrl_step(backbone: str, trainer: Any, batch: Batch, noise: Noise) -> None:
    """One training step of osrl-lib on a batch (B, ...) with our noise of one agent."""
    with fed(osrl_draws(backbone, noise)):
        if backbone == "coptidice":
            trainer.train_one_step(list(batch))
        else:
            trainer.train_one_step(*batch[:-1])
