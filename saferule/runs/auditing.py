"""The audit's statistics (`saferule.audit`) of finished policies, from their files and their data: one row per suspect.

A suspect comes as the run in which it relearns, which names the policy and the forget set that it is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from saferule.agents import get_backbone
from saferule.agents.checkpoint import load_networks
from saferule.agents.networks import Network, q_values
from saferule.audit import (
    DRAWS,
    NOISE,
    SUSPECT_DRAWS,
    TRAJECTORIES,
    action_distance,
    auc,
    auc_chance,
    deviation,
    floor,
    pair_distances,
    sample,
)
from saferule.data.schema import Dataset
from saferule.runs.actions import STATES, actions
from saferule.runs.cells import Forget, Relearning, Training, origin
from saferule.runs.engine import Engine, identity
from saferule.runs.groups import forget_data
from saferule.runs.interruptible import snapshot_path

CRITICS = {"reward": "critic", "cost": "cost_critic"}  # the judge's, by what they estimate


def action_distances(engine: Engine, clean: Sequence[Training], suspects: Sequence[Relearning]) -> pd.DataFrame:
    """Mean action distances of the suspects, one row per suspect and set of states ("keep" or "forget").

    Columns: those of `identity`, states,
    distance           to the clean policies of all other seeds, averaged over these
    floor              the same of the clean policy of the suspect's own seed
    floor_low, _high   the smallest and largest distance of any pair of clean policies, of which there are `pairs`
    distance_own       to the clean policy of its own seed, which began as the same network and saw the same batches
    distance_poisoned  to the poisoned policy of its own seed, where a repair began
    """
    rows = []
    for group in _grouped(suspects, lambda cell: (origin(cell).task, origin(cell).backbone, cell.forget)):
        root = origin(group[0])
        peers = [cell for cell in clean if (cell.task, cell.backbone) == (root.task, root.backbone)]
        seeds = [cell.seed for cell in peers]
        for name, data in _sets(engine, root.task, group[0].forget).items():
            states = data.observations[sample(len(data), STATES)]
            acts = _actions(engine, [*peers, *(cell.policy for cell in group)], states)
            theirs = [acts[peer] for peer in peers]
            pairs = pair_distances(theirs)
            poisoned = {origin(cell).seed: acts[cell.policy] for cell in group if cell.method == "poisoned"}
            for cell in group:
                own, seed = acts[cell.policy], origin(cell).seed
                others = [a for a, s in zip(theirs, seeds, strict=True) if s != seed]
                rows.append(
                    identity(cell)
                    | {
                        "states": name,
                        "distance": float(np.mean([action_distance(own, other) for other in others])),
                        "floor": floor(theirs, seeds.index(seed)),
                        "floor_low": min(pairs),
                        "floor_high": max(pairs),
                        "distance_own": action_distance(own, theirs[seeds.index(seed)]),
                        "distance_poisoned": action_distance(own, poisoned[seed]) if seed in poisoned else np.nan,
                        "pairs": len(pairs),
                    }
                )
    return pd.DataFrame(rows)


def judge(suspect: Relearning, suspects: Sequence[Relearning]) -> Training | None:
    """Whose critics judge a suspect: the poisoned policy of its seed and forget set, which no repair has touched.

    Of the suspect's own backbone, or where that has no critics (COptiDICE) of the first backbone that has; None where
    there is none.
    """
    root = origin(suspect)
    poisoned = [
        cell.policy
        for cell in suspects
        if cell.method == "poisoned" and (cell.forget, origin(cell).seed) == (suspect.forget, root.seed)
    ]
    able = [policy for policy in poisoned if get_backbone(policy.backbone).CRITICS]
    return next(iter([policy for policy in able if policy.backbone == root.backbone] or able), None)


def value_sequences(engine: Engine, suspects: Sequence[Relearning], trajectories: int = TRAJECTORIES) -> pd.DataFrame:
    """The value-sequence audit, one row per suspect and critic of the judge ("reward" or "cost").

    The reference is the poisoned policy of the suspect's own backbone and seed; members are trajectories of D_f, others
    those of D, at most ``trajectories`` of each. Noise and trajectories are the same for all suspects.

    Columns: those of `identity`, judge (backbone), critic, z_forget and z_keep (medians over trajectories), auc (of z
    on forget against keep trajectories: 0.5 where the policy changed no more on one than on the other), auc_chance (its
    standard deviation there).
    """
    rows = []
    for group in _grouped(suspects, lambda c: (origin(c).task, origin(c).backbone, origin(c).seed, c.forget)):
        chosen = judge(group[0], suspects)
        references = [cell.policy for cell in group if cell.method == "poisoned"]
        if chosen is None or not references:
            continue
        critics = load_networks(snapshot_path(engine.store, chosen, None)).nets
        scores = _deviations(engine, group, references[0], critics, trajectories)
        for cell in group:
            for name in CRITICS:
                z = {side: scores[cell, name, side] for side in ("keep", "forget")}
                rows.append(
                    identity(cell)
                    | {"judge": chosen.backbone, "critic": name}
                    | {f"z_{side}": float(np.median(values)) for side, values in z.items()}
                    | {"auc": auc(z["forget"], z["keep"])}
                    | {"auc_chance": auc_chance(len(z["forget"]), len(z["keep"]))}
                )
    return pd.DataFrame(rows)


def _deviations(
    engine: Engine, group: Sequence[Relearning], reference: Training, critics: dict[str, Network], trajectories: int
) -> dict[tuple[Relearning, str, str], list[float]]:
    """z of each trajectory for each suspect of a group, critic and set."""
    scores: dict[tuple[Relearning, str, str], list[float]] = {}
    sets = _sets(engine, reference.task, group[0].forget)
    scale = NOISE * sets["keep"].observations.std(axis=0)
    for side, data in sets.items():
        generator = np.random.default_rng(0)
        episodes = data.episodes()
        chosen = [data.observations[episodes[i]] for i in sample(len(episodes), trajectories)]
        ends = np.cumsum([len(states) for states in chosen])[:-1]
        acts = _actions(engine, [reference, *(cell.policy for cell in group)], np.concatenate(chosen))
        parts = {policy: np.split(all_of_them, ends) for policy, all_of_them in acts.items()}
        for i, states in enumerate(chosen):
            noise = generator.standard_normal((DRAWS + SUSPECT_DRAWS, *states.shape))
            noised = torch.from_numpy(states + scale * noise).float()
            for name, net in CRITICS.items():
                own = _values(critics[net], noised[:DRAWS], parts[reference][i])
                for cell in group:
                    z = deviation(own, _values(critics[net], noised[DRAWS:], parts[cell.policy][i]))
                    scores.setdefault((cell, name, side), []).append(z)
    return scores


@torch.no_grad()
def _values(critic: Network, observations: torch.Tensor, actions: np.ndarray) -> np.ndarray:
    """The critic's values (K, T), averaged over its ensemble, of actions (T, A) at K noised sequences (K, T, S)."""
    return q_values(critic, observations, torch.from_numpy(actions).float()).mean(0).double().numpy()


def _actions(engine: Engine, policies: Sequence[Any], states: np.ndarray) -> dict[Any, np.ndarray]:
    return {cell: actions(snapshot_path(engine.store, cell, None), states) for cell in dict.fromkeys(policies)}


def _sets(engine: Engine, task: str, forget: Forget) -> dict[str, Dataset]:
    return {"keep": engine.dataset(task), "forget": forget_data(engine.store, forget).dataset}


def _grouped(suspects: Sequence[Relearning], key: Callable[[Relearning], Hashable]) -> list[list[Relearning]]:
    """Suspects with the same key, in order of appearance."""
    groups: dict[Hashable, list[Relearning]] = {}
    for cell in suspects:
        groups.setdefault(key(cell), []).append(cell)
    return list(groups.values())
