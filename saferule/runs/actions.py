"""What policies do in the states of their data: how far a repair's actions are from another's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from saferule.agents.checkpoint import load_networks
from saferule.audit import action_distance, sample
from saferule.runs.cells import Unlearning
from saferule.runs.engine import Engine, identity
from saferule.runs.groups import forget_data
from saferule.runs.interruptible import snapshot_path

STATES = 2_000  # of each set, at most


def actions(path: Path, observations: np.ndarray) -> np.ndarray:
    """Actions (N, A) of the agent in a file, deterministic as in the evaluation, for observations (N, S)."""
    agent = load_networks(path)
    with torch.no_grad():
        return agent.backbone.act(agent.nets, torch.from_numpy(observations).float(), None, agent.cfg).double().numpy()


def distances(engine: Engine, cells: Sequence[Unlearning], references: Sequence[Unlearning]) -> pd.DataFrame:
    """How far the actions of finished repairs are from those of the reference that repaired the same policy.

    Columns: those of `identity`, actions_keep and actions_forget (mean Euclidean distance of the actions, each in
    [-1, 1], over at most STATES states of D and of D_f). Cells without a reference are left out.
    """
    by_policy = {reference.training: reference for reference in references}
    cells = [cell for cell in cells if cell.training in by_policy]
    rows = {cell: identity(cell) for cell in cells}
    for root in dict.fromkeys(cell.training for cell in cells):
        sets = {"keep": engine.dataset(root.task), "forget": forget_data(engine.store, root.forget).dataset}
        for name, data in sets.items():
            states = data.observations[sample(len(data), STATES)]
            reference = actions(snapshot_path(engine.store, by_policy[root], None), states)
            for cell in (cell for cell in cells if cell.training == root):
                own = actions(snapshot_path(engine.store, cell, None), states)
                rows[cell][f"actions_{name}"] = action_distance(own, reference)
    return pd.DataFrame(rows.values())
