"""The audit's statistics (`saferule.audit`) of finished policies, from their files and their data: one row per suspect.

A suspect comes as the run in which it relearns, which names the policy and the forget set that it is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from saferule.audit import (
    action_distance,
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
