"""Tables and sentences of the audit of forgetting. Pure functions of the rows of `saferule.runs.auditing`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from saferule.audit import relearned
from saferule.report.labels import BACKBONES, condition, method_name
from saferule.report.tables import CELL, SMALLEST_SAMPLE, in_reading_order

SIDES = {"forget": "states of D_f", "keep": "states of D"}


# Tables


def relearning_table(curves: pd.DataFrame) -> pd.DataFrame:
    """One row per suspect and seed: its mean cost before and after relearning, and when the cost was back.

    harm is the poisoned policy's mean cost less the clean one's, harm_error its standard error over the episodes, which
    have the same seeds for both.

    curves  episodes at step 0 and later (`Study.relearning_curves`), with the clean and the poisoned policy of each
            seed, whose costs at step 0 make the level that counts as back (`saferule.audit.relearned`)
    """
    means = curves.groupby([*CELL, "training_seed", "method", "step"], sort=False)["cost"].mean()
    rows = []
    for where, suspects in means.groupby(level=[*CELL, "training_seed"], sort=False):
        own = {m: cost.droplevel(list(range(6))).sort_index() for m, cost in suspects.groupby(level="method")}
        if not {"clean", "poisoned"} <= set(own):
            continue
        harm = _harm(curves, where)
        for method, cost in own.items():
            back = relearned(list(cost.index), list(cost), own["clean"].iloc[0], own["poisoned"].iloc[0])
            rows.append(
                dict(zip([*CELL, "training_seed"], where, strict=True))
                | {"method": method, "cost_start": cost.iloc[0], "cost_end": cost.iloc[-1], "level": back.level}
                | {"status": back.status, "steps": back.steps, "last_step": int(cost.index[-1])}
                | {"harm": harm.mean(), "harm_error": harm.sem()}
            )
    return in_reading_order(pd.DataFrame(rows))


def _harm(curves: pd.DataFrame, where: tuple) -> pd.Series:
    """Cost of the poisoned less that of the clean policy in each evaluation episode before relearning."""
    starts = curves[(curves["step"] == 0) & (curves[[*CELL, "training_seed"]] == list(where)).all(axis=1)]
    costs = starts.pivot(index="seed", columns="method", values="cost")
    return costs["poisoned"] - costs["clean"]


def over_seeds(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means of a table's numbers over training seeds, for each method and value of `by`, with the number of seeds."""
    keys = [*CELL, "method", *by]
    numbers = [name for name in frame.select_dtypes("number") if name not in (*keys, "training_seed")]
    grouped = frame.groupby(keys, sort=False)
    return in_reading_order(grouped[numbers].mean().assign(n_seeds=grouped["training_seed"].nunique()).reset_index())


def side_by_side(means: pd.DataFrame, by: str, columns: Sequence[str]) -> pd.DataFrame:
    """One row per method of a table of `over_seeds`, the columns of each value of `by` next to each other."""
    keys = ["task", "backbone", "method"]
    values = list(dict.fromkeys(means[by]))
    wide = means.pivot(index=[*keys, "n_seeds"], columns=by, values=list(columns))
    wide.columns = [f"{column}, {value}" for column, value in wide.columns]
    ordered = wide[[f"{column}, {value}" for column in columns for value in values]].reset_index()
    return in_reading_order(ordered)


def relearning_summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each method, how many seeds ended how, and the restricted mean of the steps: a cost that was not back counts
    with the last step, so it is a lower bound as soon as not_back is not 0.
    """
    rows = []
    for where, group in table.groupby([*CELL, "method"], sort=False):
        status = group["status"]
        rows.append(
            dict(zip([*CELL, "method"], where, strict=True))
            | {"cost_start": group["cost_start"].mean(), "cost_end": group["cost_end"].mean()}
            | {"harm": group["harm"].mean(), "harm_error": (group["harm_error"] ** 2).sum() ** 0.5 / len(group)}
            | {"level": group["level"].mean(), "steps": group["steps"].mean(), "last_step": group["last_step"].max()}
            | {name.replace(" ", "_"): int((status == name).sum()) for name in STATUSES}
            | {"n_seeds": len(group)}
        )
    return in_reading_order(pd.DataFrame(rows))


STATUSES = ("back", "not back", "from the start", "no harm")


# Sentences


def action_sentences(table: pd.DataFrame) -> str:
    """What the action distances say, a Markdown list with a point per task and backbone."""
    points = []
    for name, cell in by_cell(over_seeds(table, ["states"])):
        parts = []
        for side, words in SIDES.items():
            rows = cell[cell["states"] == side].set_index("method")
            floor, poisoned = rows["floor"].iloc[0], rows["distance"].get("poisoned", np.nan)
            repairs = rows["distance"].drop(["clean", "poisoned"], errors="ignore").sort_values()
            said = f"On {words} the floor is {floor:.2f} and the poisoned policy at {poisoned:.2f}"
            if poisoned <= floor:
                said += ", so the poison does not show in these actions at all"
            between = [m for m in repairs.index if floor < repairs[m] < poisoned]
            reached = [m for m in repairs.index if repairs[m] <= floor]
            beyond = [m for m in repairs.index if repairs[m] >= max(poisoned, floor)]
            for what, methods in (("at the floor", reached), ("between", between), ("no nearer", beyond)):
                said += f"; {what}: {_listed(repairs, methods)}" if methods else ""
            parts.append(said)
        points.append(f"**{name}.** {'. '.join(parts)}.")
    return _points(points)


def value_sentences(table: pd.DataFrame, backbones: Sequence[str]) -> str:
    """What the value sequences say, a Markdown list with a point per task, backbone and critic of the judge.

    backbones  that were asked about; those without a judge are named
    """
    judged = set(table["backbone"]) if len(table) else set()
    points = [
        f"{BACKBONES[name]} is left out: it has no critics of actions, and no other backbone's are among these runs."
        for name in backbones
        if name not in judged
    ]
    if not judged:
        return _points(points)
    for name, cell in by_cell(over_seeds(table, ["judge", "critic"])):
        for (by, critic), rows in cell.groupby(["judge", "critic"], sort=False):
            values = rows.set_index("method")
            scale = [
                f"{method_name(m)} z {_tenths(values['z_forget'][m])}, AUC {values['auc'][m]:.2f}"
                for m in ("poisoned", "clean")
                if m in values.index
            ]
            repairs = values.drop(["clean", "poisoned"], errors="ignore").sort_values("z_forget", ascending=False)
            order = [
                f"{method_name(m)} (z {_tenths(z)}, AUC {auc:.2f})"
                for m, z, auc in zip(repairs.index, repairs["z_forget"], repairs["auc"], strict=True)
            ]
            points.append(
                f"**{name}**, {critic} critic of the poisoned {BACKBONES[by]} policy. The scale: {'; '.join(scale)}. "
                f"Farthest from the poisoned policy first: {'; '.join(order) or 'no repair'}."
            )
    return _points(points)


def relearning_sentences(table: pd.DataFrame) -> str:
    """What relearning says, a Markdown list with a point per task and backbone."""
    points = []
    for name, cell in by_cell(relearning_summary(table)):
        last, seeds = int(cell["last_step"].max()), int(cell["n_seeds"].max())
        if (cell["no_harm"] == cell["n_seeds"]).all():
            points.append(
                f"**{name}**: in these episodes the poisoned policy costs no more than the clean one, there is "
                "nothing to relearn."
            )
            continue
        harm, error = cell["harm"].iloc[0], cell["harm_error"].iloc[0]
        said = f"**{name}**: the poisoned policy costs {harm:.0f} ± {error:.0f} more than the clean one"
        if harm < 2 * error:
            said += " (standard error over episodes: **not told from noise, nor is anything that follows**)"
        said += f"; back is a mean cost of {cell['level'].iloc[0]:.0f}"
        for status in STATUSES:
            column = status.replace(" ", "_")
            who = cell[(cell[column] > 0) & ~((status == "from the start") & (cell["method"] == "poisoned"))]
            if len(who):
                after = f" within {last} steps" if status == "not back" else ""
                names = [
                    method_name(m) + (f" after {s:.0f} steps" if status == "back" else "") + _of(n, seeds)
                    for m, s, n in zip(who["method"], who["steps"], who[column], strict=True)
                ]
                said += f". {status.capitalize()}{after}: {'; '.join(names)}"
        clean = cell[cell["method"] == "clean"]
        if (clean["not_back"] > 0).any():
            said += (
                f". The clean policy was not back within {last} steps: a method that was not cannot be told from "
                "it, one that was relearned sooner than a policy that never saw D_f"
            )
        points.append(said + ".")
    return _points(points)


def limits(seeds: int) -> str:
    """What so many training seeds cannot show."""
    if seeds >= SMALLEST_SAMPLE:
        return f"Means over {seeds} training seeds."
    return (
        f"**n = {seeds} training seed{'s' * (seeds > 1)}.** The floor is the distance of a single pair of clean "
        "policies, without a spread. How methods rank, every step count and every AUC may be another with the next "
        "seed: differences between methods are not evidence here."
    )


def by_cell(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each task, backbone, attack and ratio, named, such as "CarCircle, CPQ, Max Cost 5 %"."""
    for (task, backbone, attack, ratio), cell in frame.groupby(CELL, sort=False):
        yield f"{task}, {BACKBONES[backbone]}, {condition(attack, ratio)}", cell


def _listed(values: pd.Series, methods: Sequence[str]) -> str:
    return ", ".join(f"{method_name(m)} ({values[m]:.2f})" for m in methods)


def _of(count: int, seeds: int) -> str:
    return "" if seeds == 1 else f" ({count} of {seeds} seeds)"


def _tenths(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # no minus before a zero


def _points(points: Sequence[str]) -> str:
    return "\n".join(f"- {point}" for point in points)
