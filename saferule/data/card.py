"""A dataset's card: how it was made, what is in it and what was not reached, in Markdown with one figure."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from saferule.data.schema import Dataset
from saferule.errors import DataError
from saferule.files import write_bytes
from saferule.sim.tasks import get_task


def write_card(dataset: Dataset, path: Path | str, *, notes: str = "") -> None:
    """Write `path` (Markdown) and the return-cost scatter beside it (PNG) for a dataset made by `collect`.

    notes   a last section: what the data do not show
    """
    path = Path(path)
    if "policies" not in dataset.attributes:
        raise DataError(f"{path} needs the attributes that `saferule data collect` writes: collect the data with it.")
    figure = path.with_suffix(".png")
    write_bytes(figure, _scatter(dataset))
    write_bytes(path, _card(dataset, figure.name, notes).encode())


def _card(dataset: Dataset, figure: str, notes: str) -> str:
    about = dataset.attributes
    task = get_task(str(about["task"]))
    selection = json.loads(str(about["selection"]))
    returns, costs = dataset.episode_returns(), dataset.episode_costs()
    limit = selection["cost_limit"]
    safe = costs <= limit
    better = returns >= np.median(returns)
    lines = [
        f"# {task.name}: behaviour data",
        "",
        f"{len(returns)} episodes, {len(dataset)} steps of `{task.env_id}` in the DSRL schema: {about['made_by']}.",
        "",
        f"    {about['command']}",
        "",
        f"![Return against cost of every episode]({figure})",
        "",
        "| | smallest | lower quartile | median | upper quartile | largest |",
        "|---|---|---|---|---|---|",
        _quantiles("return", returns),
        _quantiles("cost", costs),
        _quantiles(f"return of episodes with cost at most {limit:g}", returns[safe]),
        "",
        f"- {safe.sum()} of {len(returns)} episodes ({safe.mean():.0%}) have a cost of at most {limit:g}.",
        f"- {(safe & better).sum()} of these are among the better half of returns (at least {np.median(returns):.1f}).",
        f"- Rewards per step: 5 % quantile {np.quantile(dataset.rewards, 0.05):.3f}, "
        f"95 % quantile {np.quantile(dataset.rewards, 0.95):.3f}.",
        f"- Content digest (SHA-256 of the arrays): `{dataset.digest()}`.",
        "",
        "## The policies",
        "",
        "Each ran PPO with a Lagrangian penalty on the episode cost (no limit: reward alone). All episodes of its "
        "training were recorded; the curve shows return / cost, means of 100 episodes.",
        "",
        "| cost limit | seed | steps | recorded | selected | curve at quarters of the training |",
        "|---|---|---|---|---|---|",
        *(_policy(row) for row in json.loads(str(about["policies"]))),
        "",
        f"Of {selection['recorded']} recorded episodes the selection (seed {selection['seed']}) takes "
        f"{selection['safe_share']:.0%} with a cost of at most {limit:g}, and both parts evenly over the cells of a "
        "grid on the (cost, return) plane.",
        "",
        f"Versions: {', '.join(f'{name} {number}' for name, number in json.loads(str(about['versions'])).items())}.",
    ]
    if notes:
        lines += ["", "## Not reached", "", notes]
    return "\n".join(lines) + "\n"


def _quantiles(name: str, values: np.ndarray) -> str:
    if not len(values):
        return f"| {name} | - | - | - | - | - |"
    return f"| {name} | " + " | ".join(f"{v:.1f}" for v in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])) + " |"


def _policy(row: dict[str, Any]) -> str:
    limit = "none" if row["cost_limit"] is None else f"{row['cost_limit']:g}"
    curve = ", ".join(f"{_short(score)} / {cost:.0f}" for _, score, cost in row["curve"])
    return (
        f"| {limit} | {row['seed']} | {row['steps']} | {row['recorded_episodes']} | {row['selected_episodes']} "
        f"| {curve} |"
    )


def _short(score: float) -> str:
    return f"{score:.0f}" if abs(score) >= 10 else f"{score + 0.0:.1f}"  # no -0.0


def _scatter(dataset: Dataset) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    limit = json.loads(str(dataset.attributes["selection"]))["cost_limit"]
    figure = Figure(figsize=(5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter(dataset.episode_costs(), dataset.episode_returns(), s=9, alpha=0.6, linewidths=0)
    axes.axvline(limit, color="tab:red", linewidth=1, label=f"cost limit {limit:g}")
    axes.set(xlabel="episode cost", ylabel="episode return", title=f"{dataset.attributes['task']}: one dot per episode")
    axes.legend(loc="lower right")
    image = BytesIO()
    figure.savefig(image, format="png", dpi=120, metadata={"Software": None})
    return image.getvalue()
