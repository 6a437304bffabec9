"""Critics of one layer, one observation and two actions, for which every bound of Appendix A is worked out by hand."""

import math

import torch
from helpers import random_dataset

from saferule.report.appendix import Samples, Stage

KAPPA, SIGMA, LN2 = 10.0, 0.5, math.log(2)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def linear(*members: tuple[float, float, float], state: float = 0.0) -> dict:
    """Members b + w . a + state * s."""
    weights = [[[state], [w1], [w2]] for w1, w2, _ in members]
    return {"w0": torch.tensor(weights), "b0": torch.tensor([[[b]] for *_, b in members])}


def cost_critic(target: float) -> dict:
    """target + 2.5, 0.5, 0 and 4.5 for `four_samples`, with slope 5; a second member, always higher, has slope 10."""
    return linear((0.0, 5.0, target), (0.0, 10.0, target + 90), state=1.0)


def stage(cost_critic: dict, reference: float = 1.0) -> Stage:
    """Q_r is 3, 1, -1, 2 for `four_samples`; a second member, always higher, must not count."""
    critic = linear((4.0, 0.0, 0.0), (4.0, 0.0, 50.0))
    return Stage("after", 7, {"critic": critic, "cost_critic": cost_critic}, reference)


def four_samples() -> Samples:
    actions = torch.tensor([[0.75, 0.5], [0.25, 0.1], [-0.25, 0.0], [0.5, -0.3]])
    return Samples(torch.tensor([[0.0], [0.0], [0.0], [6.0]]), actions, random_dataset(1, 0))
