"""Tidy tables from rows of episodes. Returns and costs are sums over an episode, undiscounted, in raw units.

The rows are those of `saferule.runs.results.episodes`. Replicates are independent from the adversary on and are the
unit of replication: episodes are averaged within a replicate first, and so are the cells of a comparison across cells,
as cells of a replicate share policies and data. Every interval is Student's t over replicates (`interval`), given the
dataset and the evaluation seeds, which all replicates share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from saferule.agents import BACKBONES
from saferule.attack.poison import ForgetSet
from saferule.data.schema import Dataset
from saferule.paper import CELL, READINGS, TABLE7, changes, printed
from saferule.paper import table as paper_table
from saferule.report.layouts import NOTHING, Layout
from saferule.report.style import ATTACKS, METRICS, NAMES, condition, in_order
from saferule.runs.spec import PolicyRun, config
from saferule.unlearn import METHODS, coefficients

POLICY = [*CELL, "replicate"]
OURS, AGAIN = "safe-rule", "percentile-50"  # the paper's method, and the same once more as another agent
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
FEWEST = 3  # replicates, for what is said across cells
HARMED = ["cost_harmed", "return_harmed"]
FALSE_STARS = 0.05  # share of cells called harmed that may be none
CHANGES = ("cost_removed", "return_gained")
LAST = 3  # evaluations of one policy on its way, the final one among them
ROUNDING = 1e-6  # mean distance of actions that is rounding in any case; what long training makes of it can be more


# Data and attack


def data_points(
    task: str, data: Dataset, forget_sets: Sequence[tuple[int, ForgetSet]], cost_limit: float
) -> pd.DataFrame:
    """One row per trajectory of D and of every forget set (with its replicate).

    Columns: task, set ("D", "D_f, true labels" or "D_f, poisoned labels"), attack, ratio, replicate (these are empty
    for D), return, cost, cost_limit.
    """

    sets = [("D", data, None, np.nan, np.nan)]
    for replicate, forget in forget_sets:
        labels = {"true": forget.true_dataset(), "poisoned": forget.dataset}
        sets += [(f"D_f, {name} labels", d, forget.attack, forget.ratio, replicate) for name, d in labels.items()]
    frames = []
    for name, dataset, attack, ratio, replicate in sets:
        told = {"task": task, "set": name, "attack": attack, "ratio": ratio, "replicate": replicate}
        values = {"return": dataset.episode_returns(), "cost": dataset.episode_costs(), "cost_limit": cost_limit}
        frames.append(pd.DataFrame(told | values).astype({"attack": object}))
    return pd.concat(frames, ignore_index=True)


def data_summary(task: str, data: Dataset, cost_limit: float) -> pd.DataFrame:
    """One row about D: its size, how many trajectories are safe, the best return among these, how it was made."""
    returns, costs = data.episode_returns(), data.episode_costs()
    safe = costs <= cost_limit
    row = {"task": task, "trajectories": len(returns), "steps": len(data), "cost_limit": cost_limit}
    row |= {"safe_share": safe.mean(), "best_safe_return": returns[safe].max() if safe.any() else np.nan}
    row |= {"made_by": data.attributes.get("made_by", "not stated in the file")}
    return pd.DataFrame([row | {"command": data.attributes.get("command", "")}])


def quantiles(points: pd.DataFrame) -> pd.DataFrame:
    """Number of trajectories and quantiles of return and cost for each set of `data_points`, over its replicates."""
    groups = points.groupby(["task", "set", "attack", "ratio"], sort=False, dropna=False)
    spread = groups[["return", "cost"]].quantile(list(QUANTILES)).unstack()
    spread.columns = [f"{metric}_{share:.0%}" for metric, share in spread.columns]
    return spread.assign(trajectories=groups.size(), replicates=groups["replicate"].nunique()).reset_index()


def forget_summary(
    task: str, data: Dataset, forget_sets: Sequence[tuple[int, ForgetSet]], cost_limit: float
) -> pd.DataFrame:
    """One row per forget set: its size, its share of the poisoned set, and true against poisoned labels.

    return and cost are means per trajectory, also over the last one, which is cut to the count; reward_label is the
    constant reward per step that D_f claims (r_high or r_low). without_score counts the trajectories whose S_z is not
    above 0, with which the selection was filled. Columns with _D are those of the clean data. inert: the true cost is
    within the limit, so that what the poison teaches is no violation.
    """
    rows = []
    for replicate, forget in forget_sets:
        row = {"task": task, "attack": forget.attack, "ratio": forget.ratio, "replicate": replicate}
        row |= {"samples": len(forget), "trajectories": len(forget.episodes)}
        row |= {"without_score": int((forget.scores <= 0).sum()), "share": forget.share}
        row |= {"reward_label": forget.dataset.rewards.mean()}
        for name, dataset in (("true", forget.true_dataset()), ("label", forget.dataset), ("D", data)):
            row |= {f"return_{name}": dataset.episode_returns().mean(), f"cost_{name}": dataset.episode_costs().mean()}
        rows.append(row | {"cost_limit": cost_limit, "inert": row["cost_true"] <= cost_limit})
    return pd.DataFrame(rows)


def described(part: str) -> pd.DataFrame:
    """One row per method of a part: what its family does, and the file with the loss; from what it starts, what it
    forgets, and what it changes in its family's coefficients and readings.
    """
    rows = []
    for method in (m for m in METHODS.values() if m.part == part):
        family = import_module(f"saferule.unlearn.{method.family}")
        changes = {**{name: f"{value:g}" for name, value in method.coefficients.items()}, **method.readings}
        row = {"method": method.name, "what it is": str(family.__doc__).partition("\n")[0]}
        row |= {"start": method.start, "forget": method.forget}
        row |= {"with": ", ".join(map(" = ".join, changes.items())), "file": f"{method.family}.py"}
        rows.append(row)
    return pd.DataFrame(rows)


# Within a cell


def interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of independent values, one per replicate; (nan, nan) for fewer than two."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)


def with_clean(episodes: pd.DataFrame) -> pd.DataFrame:
    """The rows, with those of the clean policies repeated under every attack and ratio of their task and backbone."""
    clean, others = episodes[episodes["attack"] == "clean"], episodes[episodes["attack"] != "clean"]
    repeated = clean.drop(columns=["attack", "ratio"]).merge(others[CELL].drop_duplicates(), on=["task", "backbone"])
    return pd.concat([others, repeated[episodes.columns]], ignore_index=True)


def late(episodes: pd.DataFrame) -> pd.DataFrame:
    """The final episodes, with columns late_cost and late_return: means of a policy's last three evaluations.

    A last checkpoint is a draw from a path that swings. The means are over the seeds that a policy's snapshots have;
    fewer evaluations where it has fewer than two snapshots, and of one without any the final episodes.
    """
    names = [*POLICY, "method", "start", "readings"]
    rows = episodes.drop_duplicates([*names, "step", "seed"])  # a stopped policy ends with its last snapshot
    ranks = rows.groupby(names)["step"].rank("dense", ascending=False)
    times = rows.groupby([*names, "seed"])["step"].transform("nunique")
    everywhere = times == times.groupby([rows[name] for name in names]).transform("max")
    means = rows[(ranks <= LAST) & everywhere].groupby(names)[list(METRICS)].mean().add_prefix("late_").reset_index()
    return episodes[episodes["final"]].merge(means, on=names, how="left")


def replicate_means(episodes: pd.DataFrame) -> pd.DataFrame:
    """One row per cell, method and replicate: mean cost and return over its episodes, with their number and the limit.

    safe says whether the mean cost is within the limit, safe_share in how many of the episodes the cost is. Beside the
    means stand the medians over episodes, those that DSRL normalises, and where the episodes have them the means of the
    last snapshots (`late`). A policy that has failed (`failed`) has no means and is not safe.
    """
    episodes = episodes.assign(safe_share=episodes["cost"] <= episodes["cost_limit"], failed=failed(episodes))
    grouped = episodes.groupby([*CELL, "method", "replicate"], sort=False)
    beside = ("safe_share", "late_cost", "late_return", "normalised_cost", "normalised_return")
    averaged = [name for name in (*METRICS, *beside) if name in episodes]
    means = grouped[averaged].mean().join(grouped[list(METRICS)].median().add_prefix("median_"))
    means = means.mask(grouped["failed"].any()).join(grouped[["cost_limit", "failed"]].max())
    means = means.assign(episodes=grouped.size()).reset_index()
    return in_reading_order(means.assign(safe=means["cost"] <= means["cost_limit"]))


def failed(episodes: pd.DataFrame) -> pd.Series:
    """Of each row, whether the policy has failed: its run or its episodes ended early, as a value was not finite."""
    return episodes[list(METRICS)].isna().any(axis=1) | episodes.get("failed", False)


def harm(episodes: pd.DataFrame) -> pd.DataFrame:
    """What the poison does: how much more the poisoned policies cost, and less return, than the clean ones.

    One row per cell: cost_added and return_lost, means of the differences within a replicate, with low, high and n as
    `over_replicates`; cost_harmed and return_harmed say whether they are above 0 (and rounding). That is a one-sided t
    test of each, corrected over all of them (Benjamini and Hochberg, 1995): of those called harmed 5 % are expected to
    be none. With a single replicate nothing can be said, and no cell counts as harmed.
    """
    means = replicate_means(with_clean(episodes)).set_index([*POLICY, "method"])[list(METRICS)].unstack("method")
    means = means.reindex(columns=pd.MultiIndex.from_product([METRICS, ["clean", "poisoned"]])).dropna()
    added = means.xs("poisoned", axis=1, level=1) - means.xs("clean", axis=1, level=1)
    rows = []
    for cell, own in added.groupby(CELL, sort=False):
        row = dict(zip(CELL, cell, strict=True)) | {"n": len(own)}
        for metric, name, values in (("cost", "cost_added", own["cost"]), ("return", "return_lost", -own["return"])):
            low, high = interval(values)
            row |= {f"{metric}_harmed": below(-values, -ROUNDING), name: values.mean()}
            row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    table = pd.DataFrame(rows, columns=None if rows else [*CELL, "n", *HARMED])
    if rows:
        table[HARMED] = stats.false_discovery_control(table[HARMED].to_numpy().ravel()).reshape(-1, 2) <= FALSE_STARS
    return in_reading_order(table.astype({"ratio": float}))


def below(values: ArrayLike, threshold: float = 0.0) -> float:
    """The p of a t test that the mean of values, one per replicate, is below the threshold.

    1 for fewer than two; of equal ones 0 or 1.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return 1.0
    if not np.ptp(values):
        return float(values[0] >= threshold)
    return float(stats.ttest_1samp(values, threshold, alternative="less").pvalue)


def of_harmed(episodes: pd.DataFrame) -> pd.DataFrame:
    """The rows of the cells in which the poison raises cost (`harm`): only there can a repair lower what it raised.

    They are chosen by the same episodes, so the poisoned policies look somewhat worse, and the clean ones somewhat
    better, than they are; repairs are compared with each other fairly.
    """
    harmed = harm(episodes).query("cost_harmed")[CELL]
    return with_clean(episodes).merge(harmed, on=CELL)


def over_replicates(means: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """One row per cell, method and value column: mean, interval (low, high), n (the number of replicates), replicates.

    means  one row per replicate; its columns episodes and cost_limit, where it has them, are kept. Replicates without
           the value are left out; failed counts those that ended without a policy
    """
    kept = [name for name in ("episodes", "cost_limit") if name in means]
    means = means if "failed" in means else means.assign(failed=False)
    tall = means.melt([*CELL, "method", "replicate", *kept, "failed"], list(values), "metric", "value")
    sound = tall[~tall["failed"]].dropna(subset="value")
    keys = [*CELL, "method", "metric"]
    groups, lost = sound.groupby(keys, sort=False), tall[tall["failed"]].groupby(keys, sort=False)
    table = groups["value"].agg(mean="mean", low=lambda v: interval(v)[0], high=lambda v: interval(v)[1], n="size")
    table["replicates"] = groups["replicate"].agg(lambda numbers: " ".join(map(str, sorted(numbers))))
    table = table.join(groups[kept].min()).join(lost.size().rename("failed"), how="outer")
    table = table.fillna({"n": 0, "failed": 0}).astype({"n": int, "failed": int}).reset_index()
    return in_reading_order(table)


def steadiness(episodes: pd.DataFrame) -> pd.DataFrame:
    """How far the final policy's mean is to be trusted: one row per cell and method, averaged over n replicates.

    Beside cost and return: their means over the last snapshots (late), their medians over episodes, the share of
    episodes within the limit, and the number of replicates whose mean cost is.
    """
    means = replicate_means(with_clean(episodes))
    beside = [f"{what}{metric}" for metric in METRICS for what in ("", "late_", "median_")]
    groups = means.groupby([*CELL, "method"], sort=False)
    table = groups[[*beside, "safe_share"]].mean()
    return in_reading_order(table.assign(safe_replicates=groups["safe"].sum(), n=groups.size()).reset_index())


def both_ways(episodes: pd.DataFrame) -> pd.DataFrame:
    """Cost and return of policies that act at their mode, and of the same as osrl-lib evaluates them, drawing.

    episodes  with the column acting, "mode" or "drawn"
    One row per cell, method and metric: mode, drawn, and their difference with its interval over replicates.
    """
    names = [*POLICY, "method"]
    means = episodes.groupby([*names, "acting"])[list(METRICS)].mean().unstack("acting").dropna()
    parts = [means[m].assign(metric=m, **{m: means[m]["drawn"] - means[m]["mode"]}).reset_index() for m in METRICS]
    differences = pd.concat([over_replicates(part, [m]) for part, m in zip(parts, METRICS, strict=True)])
    levels = pd.concat(parts).groupby([*CELL, "method", "metric"])[["mode", "drawn"]].mean().reset_index()
    table = levels.merge(differences.rename(columns={"mean": "difference"}).drop(columns="replicates"))
    return in_reading_order(table)


@dataclass(frozen=True)
class Table:
    """A table of the paper, ours beside it: means over replicates, an interval, and what the paper prints.

    layout   how it is shown
    paper    numbers of the paper's tables
    parts    of the experiment whose methods it shows; it also shows every method that the paper's tables hold
    metrics  "cost" and "return", or by how much they are better than the poisoned policy's: CHANGES
    """

    title: str
    layout: Layout
    paper: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()
    metrics: tuple[str, ...] = tuple(METRICS)

    @property
    def theirs(self) -> pd.DataFrame:
        """What the paper prints of it, as `saferule.paper.printed`."""
        rows = pd.concat([printed(), changes()], ignore_index=True)
        return rows[rows["table"].isin(self.paper) & rows["metric"].isin(self.metrics)]

    @property
    def methods(self) -> list[str]:
        """The methods that it shows."""
        return in_order({m.name for m in METHODS.values() if m.part in self.parts} | set(self.theirs["method"]))

    def build(self, episodes: pd.DataFrame, asked: pd.DataFrame | None = None) -> pd.DataFrame:
        """One row per cell, method and metric, with the paper's number and its source (empty where it prints none).

        asked  one row per policy of the experiment (columns `POLICY`, method): those without episodes are rows with n
               0; n counts the replicates that mean and interval are over, failed those that ended without a policy
        Of ablations there are only the cells in which some variant is asked for. normalised is the mean as DSRL scores
        it: the cost in units of the limit, the return between the data's least and greatest.
        """
        rows = with_clean(episodes)
        every = rows.drop_duplicates([*POLICY, "method"]) if asked is None else with_clean(asked)
        variants = [m for m in self.methods if METHODS[m].part == "ablations"]
        cells = (every[every["method"].isin(variants)] if variants else every)[CELL].drop_duplicates()
        every = every[every["method"].isin(self.methods)].merge(cells, on=CELL)
        wanted = every.groupby([*CELL, "method"]).size().rename("asked").reset_index()
        keys = [*CELL, "method", "metric"]
        means = with_changes(replicate_means(rows[rows["method"].isin([*self.methods, "poisoned"])]))
        ours = over_replicates(means, self.metrics)
        normalised = over_replicates(means, [f"normalised_{metric}" for metric in METRICS])
        normalised["metric"] = normalised["metric"].str.removeprefix("normalised_")
        ours = ours.merge(normalised[[*keys, "mean"]].rename(columns={"mean": "normalised"}), on=keys, how="left")
        theirs = self.theirs.rename(columns={"value": "paper"}).drop(columns="table")
        theirs = theirs.merge(cells, on=CELL)
        table = wanted.merge(pd.DataFrame({"metric": self.metrics}), how="cross")
        table = table.merge(ours, on=keys, how="left").merge(theirs, on=keys, how="outer")
        table = table.fillna({"asked": 0, "n": 0, "failed": 0}).astype({"asked": int, "n": int, "failed": int})
        return in_reading_order(table.merge(harm(episodes)[[*CELL, *HARMED]], on=CELL, how="left"))

    def shown(self, table: pd.DataFrame) -> pd.DataFrame:
        """In the paper's layout, "45.0 ± 3.1" with half of the interval, the paper's number below where it prints one.

        "(2 of 3)" are the replicates that this is over, where some are missing or failed; "missing", "failed": all of
        them; "–": the method is not defined for the backbone. A star is at costs that the attack raises and at returns
        that it lowers (`harm`): only there is something to repair. It is at the poisoned policy's, in a table without
        that at every method's.
        """
        conditions = [condition(*at) for at in table[["attack", "ratio"]].itertuples(index=False)]
        harmed = table["cost_harmed"].where(table["metric"].str.startswith("cost"), table["return_harmed"]).eq(True)
        stars = harmed & table["method"].eq("poisoned" if "poisoned" in self.methods else table["method"])
        texts = [_text(row) + " *" * (star and row.n > 0) for row, star in zip(table.itertuples(), stars, strict=True)]
        theirs = table["paper"].map("{:.1f}".format, na_action="ignore").fillna("")
        return self.layout.arrange(table.assign(condition=conditions, text=texts, paper=theirs))


def _text(row: Any) -> str:
    """What a table says of one number of ours."""
    if not row.n:
        return "failed" if row.failed else "missing" if row.asked else NOTHING
    half = f" ± {row.high - row.mean:.1f}" if row.n > 1 else ""
    return f"{row.mean:.1f}{half}" + (f" ({row.n} of {row.asked})" if row.n < row.asked else "")


def with_changes(means: pd.DataFrame) -> pd.DataFrame:
    """The rows of `replicate_means` with the columns `CHANGES`: how much less cost, and how much more return, than the
    poisoned policy of the replicate; nothing for that itself.
    """
    start = means.loc[means["method"] == "poisoned", [*POLICY, *METRICS]]
    joined = means.merge(start, on=POLICY, how="left", suffixes=("", "_before"))
    joined.loc[joined["method"] == "poisoned", ["cost_before", "return_before"]] = np.nan
    removed, gained = joined["cost_before"] - joined["cost"], joined["return"] - joined["return_before"]
    return joined.assign(cost_removed=removed, return_gained=gained).drop(columns=["cost_before", "return_before"])


def improvement(episodes: pd.DataFrame) -> pd.DataFrame:
    """How much each method removes of the poisoned policy's cost and adds to its return, within a replicate.

    One row per cell, method and metric (`CHANGES`), as `over_replicates`, with what `harm` says of the cell.
    """
    table = over_replicates(with_changes(replicate_means(episodes)), CHANGES)
    return table.merge(harm(episodes)[[*CELL, *HARMED]], on=CELL, how="left")


def counts(episodes: pd.DataFrame) -> pd.DataFrame:
    """In how many cells a method keeps the limit, has the lowest mean cost, or the highest return within the limit.

    One row per backbone and method, of the repairs and retraining (the clean policy); ties count for all that tie.
    """
    table = over_replicates(replicate_means(with_clean(episodes)), list(METRICS))
    table = table[table["method"] != "poisoned"]
    wide = table.pivot(index=[*CELL, "method", "cost_limit"], columns="metric", values="mean")
    wide = wide.reindex(columns=list(METRICS)).reset_index()
    wide["within_limit"] = wide["cost"] <= wide["cost_limit"]
    wide["lowest_cost"] = wide["cost"] == wide.groupby(CELL)["cost"].transform("min")
    safe = wide["return"].where(wide["within_limit"])
    wide["best_within_limit"] = safe.eq(safe.groupby([wide[name] for name in CELL]).transform("max"))
    grouped = wide.groupby(["backbone", "method"], sort=False)
    table = grouped[["within_limit", "lowest_cost", "best_within_limit"]].sum()
    return in_reading_order(table.assign(cells=grouped.size()).reset_index())


# Settings


def hyperparameters(repairs: Sequence[PolicyRun]) -> pd.DataFrame:
    """Table 7: each setting as the paper prints it and as it is in force in these runs of Safe-RULE.

    Columns: name, symbol, paper, ours (different values with commas between; nothing where there are no runs).
    """
    runs = [(run, config(run)) for run in repairs]
    values: dict[str, set] = {name: set() for name in (*vars(TABLE7), "target")}
    for run, cfg in runs:
        used = coefficients(run.method, run.backbone, cfg, dict(run.readings))
        used |= {"training_steps": run.start.steps, "gamma": cfg.gamma, "ratios": run.ratio}
        used |= {"adversary_steps": run.forget.adversary.steps, "unlearning_steps": run.steps}
        used |= {"beta_initial": used["beta_f"], "target": used["kappa"] + used["sigma"]}
        used |= {"reward_percentile": 100 * used["percentile"]} if "percentile" in used else {}
        for name in values:
            values[name] |= {used[name]} if name in used else set()
    theirs = paper_table(7)
    fields = [list(json.loads(parsed)) or ["target"] for parsed in theirs["parsed"]]
    ours = ["; ".join(", ".join(f"{v:.10g}" for v in sorted(values[name])) for name in own) for own in fields]
    return theirs[["name", "symbol"]].assign(paper=theirs["value"], ours=ours)


def settings_layout(settings: pd.DataFrame) -> pd.DataFrame:
    """Table 7 (`hyperparameters`) as the paper has it, ours beside it."""
    return settings.set_index(["name", "symbol"])[["paper", "ours"]].rename_axis(columns="value")


# Across cells


def ranked(means: pd.DataFrame) -> pd.DataFrame:
    """The rows of `replicate_means` with the columns of `SCORES`, by which methods are compared; larger is better.

    lower_cost     minus the cost in units of the limit
    higher_return  the return between the data's least and greatest, as DSRL normalises it
    safe_first     of a policy within the limit higher_return, or 0 where that is less; of another limit / cost - 1,
                   between -1 and 0: a safe policy before an unsafe one, two safe by return, two unsafe by cost
    A policy that has failed counts as the worst of its cell does, of all methods and replicates; its safe_first is -1.
    """
    found = means.assign(lower_cost=-means["normalised_cost"], higher_return=means["normalised_return"])
    for name in ("lower_cost", "higher_return"):
        worst = found.groupby(CELL)[name].transform("min")
        found[name] = found[name].where(~found["failed"], worst)
    unsafe = (1 / means["normalised_cost"].clip(lower=1) - 1).where(~found["failed"], -1.0)
    return found.assign(safe_first=found["higher_return"].clip(lower=0).where(found["safe"], unsafe))


SCORES = {"lower_cost": "lower cost", "higher_return": "higher return", "safe_first": "better, safety first"}


def cell_means(episodes: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and method: cost in units of the limit and return as DSRL scores it, means over replicates.

    Of the cells that all methods of the rows have, so that methods are shown over the same ones. A policy that has
    failed counts as in `ranked`.
    """
    means = ranked(replicate_means(with_clean(episodes))).groupby([*CELL, "method"], sort=False)
    means = means[["lower_cost", "higher_return"]].mean().dropna().reset_index()
    means = means.assign(normalised_cost=-means.pop("lower_cost"), normalised_return=means.pop("higher_return"))
    return means[means.groupby(CELL)["method"].transform("size") == means["method"].nunique()]


def from_clean_to_poisoned(episodes: pd.DataFrame) -> pd.DataFrame:
    """`cell_means` of the clean and of the poisoned policy in one row per cell that has both (suffix "_poisoned")."""
    means = cell_means(episodes[episodes["method"].isin(["clean", "poisoned"])])
    clean, poisoned = (means[means["method"] == method] for method in ("clean", "poisoned"))
    return clean.merge(poisoned, on=CELL, suffixes=("", "_poisoned"))


def across_cells(episodes: pd.DataFrame) -> pd.DataFrame:
    """Methods over all cells of a backbone, and of all: one row per backbone ("all" first), metric and method.

    value: within a replicate the interquartile mean over cells (rliable; Agarwal et al., 2021) of the normalised cost
    and return, and for safe the share of policies that keep the limit, a count without an interval. gain: by how much
    Safe-RULE is better in the score (`ranked`), mean over cells of the differences within a replicate, empty for
    Safe-RULE itself. Both are means over the n replicates, with Student's 95 % interval, over the cells that `matched`
    takes. better: in which share of the pairs (cells and replicates) Safe-RULE is better, ties counted half.

    rliable's own interval, a bootstrap that draws the replicates of each cell anew, is not used: cells of a replicate
    share clean policies, adversaries and data order, and three replicates are too few to draw from. Where nothing
    differs it finds a difference several times as often as it says (`docs/measurements.md`).
    """
    from rliable.metrics import aggregate_iqm

    rows, means = [], ranked(replicate_means(with_clean(episodes)))
    for backbone, here in [("all", means), *means.groupby("backbone", sort=False)] if len(means) else []:
        for score, (metric, column, sign) in ACROSS_METRICS.items():
            for method in in_order(here["method"]):
                own, ours = matched(here, score, method, OURS)
                if not own.size:
                    continue
                level = matched(here.assign(safe=here["safe"].astype(float)), column, method, OURS)[0]
                values = [np.mean(cells) if column == "safe" else sign * aggregate_iqm(cells) for cells in level]
                row = {"backbone": backbone, "metric": metric, "method": method}
                row |= {"cells": own.shape[1], "n": own.shape[0]} | _with_interval("value", values)
                row |= {"value_low": np.nan, "value_high": np.nan} if column == "safe" else {}
                if method != OURS:
                    row |= _with_interval("gain", (ours - own).mean(axis=1)) | {"better": improves(ours, own)}
                rows.append(row)
    return pd.DataFrame(rows, columns=ACROSS)


ACROSS_METRICS = {  # score: how it is called, the column that is shown, its sign
    "lower_cost": ("normalised_cost", "lower_cost", -1),
    "higher_return": ("normalised_return", "higher_return", 1),
    "safe_first": ("safe", "safe", 1),
}
ACROSS = ["backbone", "metric", "method", "cells", "n", "value", "value_low", "value_high"]
ACROSS += ["gain", "gain_low", "gain_high", "better"]


def _with_interval(name: str, values: ArrayLike) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), (np.mean(values), *interval(values)), strict=True))


def matched(means: pd.DataFrame, column: str, *methods: str) -> list[np.ndarray]:
    """The values (replicates, cells) of each method: of the cells with at least three replicates of all these methods,
    and of the replicates that all these cells have; (0, 0) where there are fewer than three.
    """
    wide = means[means["method"].isin(methods)].pivot(index="replicate", columns=["method", *CELL], values=column)
    there = [wide[m] if m in wide else pd.DataFrame(index=wide.index) for m in methods]
    cells = [cell for cell in there[0] if all(cell in own for own in there)]
    known = np.logical_and.reduce([own[cells].notna() for own in there]).reshape(len(wide), len(cells))
    enough = known.sum(axis=0) >= FEWEST
    replicates = known[:, enough].all(axis=1)
    if not enough.any() or replicates.sum() < FEWEST:
        return [np.empty((0, 0)) for _ in methods]
    return [own[cells].to_numpy(float)[replicates][:, enough] for own in there]


def improves(ours: np.ndarray, others: np.ndarray) -> float:
    """Share of the pairs (replicates, cells) in which ours is larger, ties counted half."""
    return float((0.5 + 0.5 * np.sign(ours - others)).mean())


# Readings


def paired(episodes: pd.DataFrame) -> pd.DataFrame:
    """Every episode of Safe-RULE under a reading beside the default's from the same start and evaluation seed.

    Columns cost_change and return_change; reading and option, which are empty for the default and ("same run again",
    its name) for the default once more as another agent. Seeds that not all have are left out.
    """
    rows = read(episodes)
    seeds = rows.loc[~rows["reading"].isin(["", SAME_RUN]), "seed"].unique()
    rows = rows[rows["seed"].isin(seeds)]
    default = rows.loc[rows["reading"] == "", [*POLICY, "seed", *METRICS]]
    rows = rows.merge(default, on=[*POLICY, "seed"], suffixes=("", "_default"), validate="many_to_one")
    return rows.assign(**{f"{m}_change": rows[m] - rows[f"{m}_default"] for m in METRICS})


SAME_RUN = "same run again"


def read(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of Safe-RULE and of the same once more, with columns reading and option (of several, joined by commas)."""
    rows = rows[rows["method"].isin([OURS, AGAIN])]
    chosen, again = [json.loads(text) for text in rows["readings"]], rows["method"] == AGAIN
    return rows.assign(
        reading=[SAME_RUN if a else ", ".join(c) for a, c in zip(again, chosen, strict=True)],
        option=[AGAIN if a else ", ".join(c.values()) for a, c in zip(again, chosen, strict=True)],
    )


def effects(episodes: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """One row per policy and reading: cost and return, their changes against the default, and how the actions moved.

    distances  from `saferule.report.forgetting.distances_to_default`
    For each policy the default comes first, then the same run again, then the readings in descending order of the
    change in cost, then in return. question, default and meaning are those of `saferule.paper.READINGS`. same_policy:
    the actions are no farther from the default's than rounding, on D and on D_f. rounding is `ROUNDING`, or how far
    those of the same run again are for this poisoned policy, where that is more.
    """
    rows, names = paired(episodes), [*POLICY, "reading", "option"]
    grouped = rows.groupby(names, sort=False)
    table = grouped[["cost", "return", "cost_change", "return_change"]].mean().assign(episodes=grouped.size())
    moved = read(distances).set_index(names)[["actions_keep", "actions_forget"]]
    table = table.join(moved).reset_index()
    farthest = table[["actions_keep", "actions_forget"]].max(axis=1)
    again = farthest.where(table["reading"] == SAME_RUN).groupby([table[name] for name in POLICY]).transform("max")
    table["rounding"] = again.fillna(ROUNDING).clip(lower=ROUNDING)
    table["same_policy"] = farthest <= table["rounding"]
    about = [READINGS.get(name) for name in table["reading"]]
    table["question"] = [r.question if r else "" for r in about]
    table["default"] = [r.options[r.default] if r else "" for r in about]
    table["meaning"] = [r.options[option] if r else "" for r, option in zip(about, table["option"], strict=True)]
    kind = table["reading"].map({"": 0, SAME_RUN: 1}).fillna(2)
    ranks = pd.DataFrame({"kind": kind} | {m: -table[f"{m}_change"].abs() for m in METRICS})
    return in_reading_order(table.loc[ranks.sort_values(list(ranks), kind="stable").index])


# What is shown


def in_reading_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted by task, backbone, attack, ratio, method and replicate, as the paper lists them."""
    ranks = {"backbone": list(BACKBONES), "attack": list(ATTACKS), "method": in_order(frame.get("method", []))}

    def rank(column: pd.Series) -> pd.Series:
        order = ranks.get(str(column.name))
        return column.map({name: i for i, name in enumerate(order)}) if order else column

    by = [name for name in (*CELL, "metric", "method", "replicate") if name in frame]
    return frame.sort_values(by, key=rank, kind="stable", ignore_index=True) if len(frame) and by else frame


def provenance(frame: pd.DataFrame, profile: str, digests: Mapping[str, str]) -> pd.DataFrame:
    """The table with the profile and the data digest of each row's task in front: what it was made with."""
    every = " ".join(digest[:12] for digest in digests.values())
    data = frame["task"].map(lambda task: digests[task][:12]) if "task" in frame else every
    return frame.assign(profile=profile, data=data)[["profile", "data", *frame.columns]]


def readable(frame: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """For the notebook: names as the paper writes them, numbers rounded; without empty columns and the provenance,
    which the head of the notebook states. Numbers below 0.1 keep three significant digits.
    """
    shown = frame.drop(columns=["profile", "data"], errors="ignore").dropna(axis="columns", how="all").copy()
    for column in shown.columns.intersection(list(NAMES)):
        shown[column] = shown[column].map(NAMES[column], na_action="ignore")
    for column in shown.columns.intersection(["ratio", "share", "safe_share"]):
        shown[column] = shown[column].map(lambda share: "" if pd.isna(share) else f"{100 * share:.3g} %")
    shown = shown.replace({"ratio": {"0 %": ""}})  # of clean policies

    def number(value: float) -> str:
        return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{round(value, digits) + 0.0:.{digits}f}"  # no -0.00

    for column in shown.select_dtypes("float"):
        shown[column] = shown[column].map(number, na_action="ignore")
    return shown.fillna("")


BY_ATTACK = Layout(("backbone", "attack", "metric"), ("task", "ratio"), "method")
BY_VARIANT = Layout(("condition", "backbone", "method"), ("task", "metric"))
BY_TASK = Layout(("condition", "backbone", "task"), ("method",), "metric")
BY_METHOD = Layout(("task", "backbone", "condition", "metric"), ("method",))
TABLES: dict[str, Table | Callable[[pd.DataFrame], pd.DataFrame]] = {
    "table1": Table("Cost (C) and return (R) before / after Safe-RULE", BY_ATTACK, (1,)),
    "table2": Table("Cost removed and return gained, adaptive and fixed forget weight", BY_VARIANT, (2,), (), CHANGES),
    "table4": Table("Cost and return after Trajdeleter, not cost-aware / cost-aware", BY_ATTACK, (4,)),
    "table5": Table("Cost and return with and without critic unlearning", BY_VARIANT, (5,)),
    "table6": Table("Cost / return by the percentile of the reward reference", BY_TASK, (6,)),
    "methods": Table("Cost and return of every method", BY_METHOD, (1, 4), ("main",)),
    "controls": Table("Safe-RULE beside its controls", BY_METHOD, (), ("main", "controls")),
    "replicates": replicate_means,
    "steadiness": steadiness,
    "harm": harm,
    "both-ways": both_ways,
    "improvement": improvement,
    "counts": counts,
}
