"""What a repair does inside, looked at now and then: why a policy moves, or does not.

A look changes nothing and draws nothing; it takes the batch and the noise of the step that follows.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from saferule.agents.networks import Network
from saferule.agents.parts import Nets, Noise, Scalars
from saferule.agents.population import Look, Losses
from saferule.data.batches import Pair

SATURATED = 0.99  # of a box of [-1, 1]


def inside(backbone: ModuleType, losses: Losses, forgets: bool = False) -> Look:
    """A look at the actor in a step with these losses on a pair of batches.

    forgets  the actor's whole loss is about D_f; else the part on D_k is what the loss reports as ``actor_loss``
    Of one agent, in a dictionary:
    keep_gradient, forget_gradient    norms of the gradients of the actor's keep loss and of its weighted forget loss
    keep_distance, forget_distance    mean distance of the policy's action to the data's, on D_k and (poisoned) on D_f
    keep_saturated, forget_saturated  share of components of its actions at the edge of the box
    Actions are deterministic, as in evaluation.
    """
    actor_loss = dict(losses).get(("actor",))

    def look(nets: Nets, scalars: Scalars, batch: Pair, noise: Noise, cfg: Any) -> dict[str, Tensor]:
        def parts(actor: Network) -> tuple[Tensor, Tensor]:
            if actor_loss is None:  # a phase in which the actor stands still
                nothing = sum(leaf.sum() for leaf in actor.values()) * 0
                return nothing, nothing
            whole, info, _ = actor_loss(nets | {"actor": actor}, scalars, batch, noise, cfg)
            keep = whole * 0 if forgets else info["actor_loss"]
            return keep, whole - keep

        (keep, _), pull = torch.func.vjp(parts, nets["actor"])
        one, zero = torch.ones_like(keep), torch.zeros_like(keep)
        seen = {"keep_gradient": norm(pull((one, zero))[0]), "forget_gradient": norm(pull((zero, one))[0])}
        for name, side in batch._asdict().items():
            actions = backbone.act(nets, side.observations, None, cfg)
            seen[f"{name}_distance"] = (actions - side.actions).norm(dim=-1).mean()
            seen[f"{name}_saturated"] = (actions.abs() > SATURATED).to(actions.dtype).mean()
        return seen

    return look


def norm(gradient: Network) -> Tensor:
    """Euclidean norm of a network's gradient (scalar); in float64, as squares of one that diverges leave float32."""
    return torch.stack([leaf.double().pow(2).sum() for leaf in gradient.values()]).sum().sqrt()
