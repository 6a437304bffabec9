"""Rows of episodes as the engine gives them, made by hand."""

import pandas as pd

CELL = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15}
CLEAN = CELL | {"attack": "clean", "ratio": 0.0}


def rows(method, seed, costs, returns, step=100, **cell):
    where = (CLEAN if method == "clean" else CELL) | cell
    return pd.DataFrame(
        {"cost": costs, "return": returns, "seed": range(len(costs)), "cost_limit": 10.0, "step": step}
        | where
        | {"method": method, "training_seed": seed}
    )


def two_seeds():
    """Two seeds, the first with cost 20 and 40 before, the second with 60."""
    return pd.concat(
        [
            rows("clean", 0, [4.0, 8.0], [90.0, 110.0]),
            rows("clean", 1, [0.0, 0.0], [100.0, 100.0]),
            rows("poisoned", 0, [20.0, 40.0], [100.0, 200.0]),
            rows("poisoned", 1, [60.0, 60.0], [50.0, 50.0]),
            rows("safe-rule", 0, [5.0, 5.0], [100.0, 120.0]),
            rows("safe-rule", 1, [20.0, 30.0], [70.0, 50.0]),
            rows("fine-tuning", 0, [10.0, 10.0], [10.0, 10.0]),
            rows("fine-tuning", 1, [10.0, 10.0], [10.0, 10.0]),
        ],
        ignore_index=True,
    )
