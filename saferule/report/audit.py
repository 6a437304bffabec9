"""Tables and sentences of the audit of forgetting. Pure functions of the rows of `saferule.runs.auditing`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from saferule.audit import relearned, t_interval
from saferule.report.labels import BACKBONES, condition, method_name
from saferule.report.tables import CELL, SMALLEST_SAMPLE, in_reading_order, with_clean

SIDES = {"forget": "states of D_f", "keep": "states of D"}


# Tables


def relearning_table(curves: pd.DataFrame, finals: pd.DataFrame) -> pd.DataFrame:
    """One row per suspect and seed: its mean cost before and after relearning, and when the cost was back.

    harm is the poisoned policy's mean cost less the clean one's, harm_low and harm_high its 95 % interval over the
    final episodes, which have the same seeds for both; level is halfway between the two (`saferule.audit.relearned`).

    curves  episodes at step 0 and later (`Study.relearning_curves`), of each point as many as `episodes`
    finals  the final episodes of the clean and the poisoned policies (`Study.episodes`), of each `level_episodes`;
            suspects whose seed lacks one of the two are left out
    """
    keys = [*CELL, "training_seed"]
    costs = with_clean(finals).pivot(index=[*keys, "seed"], columns="method", values="cost")
    costs = costs.reindex(columns=["clean", "poisoned"]).dropna()
    ends = {where: pair for where, pair in costs.groupby(level=keys)}
    rows = []
    for (*place, method), episodes in curves.groupby([*keys, "method"], sort=False):
        where = tuple(place)
        if where not in ends:
            continue
        clean, poisoned = ends[where]["clean"], ends[where]["poisoned"]
        low, high = t_interval(poisoned - clean)
        cost = episodes.groupby("step")["cost"].mean()  # ascending steps
        back = relearned(list(cost.index), list(cost), clean.mean(), poisoned.mean())
        rows.append(
            dict(zip(keys, where, strict=True))
            | {"method": method, "cost_start": cost.iloc[0], "cost_end": cost.iloc[-1], "level": back.level}
            | {"status": back.status, "steps": back.steps, "last_step": int(cost.index[-1])}
            | {"harm": (poisoned - clean).mean(), "harm_low": low, "harm_high": high}
            | {"episodes": episodes["seed"].nunique(), "level_episodes": len(clean)}
        )
    return in_reading_order(pd.DataFrame(rows, columns=RELEARNING_COLUMNS))


RELEARNING_COLUMNS = [
    *(*CELL, "training_seed", "method", "cost_start", "cost_end", "level", "status", "steps", "last_step"),
    *("harm", "harm_low", "harm_high", "episodes", "level_episodes"),
]


def over_seeds(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means of a table's numbers over training seeds, for each method and value of `by`, with the number of seeds.

    Columns that end in _sd hold the standard deviations over seeds, which are empty for one seed.
    """
    keys = [*CELL, "method", *by]
    numbers = [name for name in frame.select_dtypes("number") if name not in (*keys, "training_seed")]
    grouped = frame.groupby(keys, sort=False)
    means = grouped[numbers].mean().join(grouped[numbers].std().add_suffix("_sd"))
    return in_reading_order(means.assign(n_seeds=grouped["training_seed"].nunique()).reset_index())


def side_by_side(means: pd.DataFrame, by: str, columns: Sequence[str]) -> pd.DataFrame:
    """One row per method of a table of `over_seeds`, the columns of each value of `by` next to each other."""
    keys = ["task", "backbone", "method"]
    values = list(dict.fromkeys(means[by]))
    wide = means.pivot(index=[*keys, "n_seeds"], columns=by, values=list(columns))
    wide.columns = [f"{column}, {value}" for column, value in wide.columns]
    ordered = wide[[f"{column}, {value}" for column in columns for value in values]].reset_index()
    return in_reading_order(ordered)


def relearning_summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each method, how many seeds ended how (columns of STATUSES), and the means of its costs over seeds.

    steps_back is the mean over the seeds that were back, and nan without any; watched_to the fewest steps after which
    a seed was still not back. harm_low and harm_high are the harm's 95 % interval: over seeds from two on (Student's t
    of the seeds' means), over the episodes of a single one.
    """
    rows = []
    for where, group in table.groupby([*CELL, "method"], sort=False):
        status, steps = group["status"], group["steps"]
        low, high = t_interval(group["harm"]) if len(group) > 1 else group[["harm_low", "harm_high"]].iloc[0]
        rows.append(
            dict(zip([*CELL, "method"], where, strict=True))
            | {"cost_start": group["cost_start"].mean(), "cost_end": group["cost_end"].mean()}
            | {"harm": group["harm"].mean(), "harm_low": low, "harm_high": high, "level": group["level"].mean()}
            | {"steps_back": steps[status == "back"].mean(), "watched_to": steps[status == "not back"].min()}
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
        sides = [_action_words(words, cell[cell["states"] == side]) for side, words in SIDES.items()]
        points.append(f"**{name}.** {'. '.join(sides)}.")
    return _points(points)


def _action_words(words: str, means: pd.DataFrame) -> str:
    """Where policies lie on one set of states; what is less than the floor's range apart is not told apart."""
    distances = means.set_index("method")["distance"]
    low, high, pairs = means[["floor_low", "floor_high", "pairs"]].iloc[0]
    poisoned, repairs = distances["poisoned"], distances.drop(["clean", "poisoned"], errors="ignore").sort_values()
    floor = f"{high:.2f} (one pair of clean seeds: a point)"
    if pairs > 1:
        floor = f"{low:.2f} to {high:.2f} ({pairs:.0f} pairs of clean seeds)"
    said = f"On {words} the floor is {floor}, the poisoned policy at {poisoned:.2f}"
    above = repairs > high
    if poisoned <= high:
        said += ": **the poison does not show here**"
        groups = {"within the floor too": ~above, "farther than it": above}
    else:
        off = repairs - poisoned
        near = off.abs() <= high - low
        groups = {
            "at the floor": ~above,
            "between": above & ~near & (off < 0),
            "not told from the poisoned policy": above & near,
            "no nearer": above & ~near & (off > 0),
        }
    for what, chosen in groups.items():
        listed = ", ".join(f"{method_name(m)} ({d:.2f})" for m, d in repairs[chosen].items())
        said += f"; {what}: {listed}" if listed else ""
    return said


def relearning_sentences(table: pd.DataFrame) -> str:
    """What relearning says, a Markdown list with a point per task and backbone."""
    if not len(table):
        return _points(["No seed has both a clean and a poisoned policy: there is no cost to compare with."])
    points = [f"**{name}**: {_relearning_words(cell)}" for name, cell in by_cell(table)]
    points += [
        f"The level is made of {level} episodes of each policy, a point of a curve of {few}: a single point is noisier "
        "than the level and can be above it by chance."
        for few, level in [(table["episodes"].min(), table["level_episodes"].max())]
        if few < level
    ]
    return _points(points)


def _relearning_words(cell: pd.DataFrame) -> str:
    """Harm, level and how each method ended, of one task, backbone, attack and ratio."""
    summary, seeds = relearning_summary(cell), cell["training_seed"].nunique()
    said = _harm_words(summary.iloc[0], seeds, cell["level_episodes"].min())
    if (cell["status"] == "no harm").all():
        aim = "" if cell["attack"].iloc[0] == "max_cost" else " (a poison of the return is not made to raise it)"
        return f"{said}, so there is no cost to relearn{aim}."
    told = summary["harm_low"].iloc[0] > 0
    said += "" if told else ". **This is not told from noise, nor is anything that follows**"
    levels = ", ".join(f"{level:.0f}" for level in cell.groupby("training_seed")["level"].first())
    said += f". Back is a mean cost of {levels}" + (" (by seed)" if seeds > 1 else "")
    last = cell["last_step"].max()
    for status in STATUSES:
        ended = cell[(cell["status"] == status) & ~((status == "from the start") & (cell["method"] == "poisoned"))]
        names = []
        for method, rows in ended.groupby("method", sort=False):
            name = method_name(method)
            early = rows.loc[rows["last_step"] < last, "last_step"]
            if status == "back":
                name += f" after {_listed(rows['steps'])} steps"
            elif status == "not back" and len(early):
                name += f", which stopped early, within {_listed(early)} steps"
            names.append(name + (f" ({_of(len(rows), seeds)})" if seeds > 1 else ""))
        after = f" within {last} steps" if status == "not back" else ""
        said += f". {status.capitalize()}{after}: {'; '.join(names)}" if names else ""
    return said + (_clean_words(summary, seeds, last) if told else "") + "."


def _harm_words(first: pd.Series, seeds: int, episodes: int) -> str:
    harm, low, high = first[["harm", "harm_low", "harm_high"]]
    amount, over = f"{abs(harm):.0f}", f"over {seeds} seeds" if seeds > 1 else f"over {episodes} episodes of one seed"
    much = "as much as" if amount == "0" else f"{amount} {'more' if harm > 0 else 'less'} than"
    interval = f"95 % interval {low:.0f} to {high:.0f} {over}" if np.isfinite(low) else "one episode, no interval"
    return f"the poisoned policy costs {much} the clean one ({interval})"


def _clean_words(summary: pd.DataFrame, seeds: int, last: int) -> str:
    """What it means for the others when the clean policy was not back."""
    clean = summary[summary["method"] == "clean"].iloc[0]
    if not clean["not_back"]:
        return ""
    said = f". The clean policy was not back within {clean['watched_to']:.0f} steps"
    said += f" in {_of(clean['not_back'], seeds)}" if seeds > 1 else ""
    if clean["back"]:
        return f"{said} and was back in {clean['back']}: no general statement about methods that were not"
    if clean["watched_to"] < last:
        return f"{said}, when its run stopped: nothing to compare later steps with"
    return (
        f"{said}: a method that was not cannot be told from it, one that was relearned sooner than a policy that "
        "never saw D_f"
    )


def limits(seeds: int) -> str:
    """What so many training seeds cannot show."""
    if seeds < SMALLEST_SAMPLE:
        return (
            f"**n = {seeds} training seed{'s' * (seeds > 1)}.** The floor is the distance of a single pair of clean "
            "policies: a point without a range, so a difference however small decides whether a policy is at it. How "
            "methods rank, every step count and every AUC may be another with the next seed: differences between "
            "methods are not evidence here."
        )
    widths = stats.t.ppf(0.975, seeds - 1) / seeds**0.5
    return (
        f"**n = {seeds} training seeds**, which is few: the 95 % interval of a mean is ± {widths:.1f} standard "
        "deviations over seeds (columns `_sd`; every dot and line of the figures is one seed). The floor's range is "
        f"over {seeds * (seeds - 1) // 2} pairs of the same {seeds} clean policies, not over independent ones. "
        "Differences between methods within these spreads are not evidence."
    )


def by_cell(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each task, backbone, attack and ratio, named, such as "CarCircle, CPQ, Max Cost 5 %"."""
    for (task, backbone, attack, ratio), cell in frame.groupby(CELL, sort=False):
        yield f"{task}, {BACKBONES[backbone]}, {condition(attack, ratio)}", cell


def _listed(steps: pd.Series) -> str:
    """The steps of several seeds, each number once: "50, 100"."""
    return ", ".join(f"{step:.0f}" for step in sorted(set(steps)))


def _of(count: int, seeds: int) -> str:
    return f"{count} of {seeds} seeds"


def _points(points: Sequence[str]) -> str:
    return "\n".join(f"- {point}" for point in points)
