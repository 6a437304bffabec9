"""Appendix A from the rows of `saferule.runs.theory_checks`: short tables, and what the rows say in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from saferule.paper import TABLE7
from saferule.profiles import Profile
from saferule.report.labels import BACKBONES, condition
from saferule.report.tables import readable
from saferule.report.theory import POLICY
from saferule.runs.theory_checks import BALLS, FACTORS, SAMPLES

STAGES = ("before", "during", "after")
SHOWN_LEVELS = (1.0, 10.0)  # of u in Eq. 15, in the short table
WHERE = ["task", "backbone", "stage"]


# Tables


def with_tightness(inequalities: pd.DataFrame) -> pd.DataFrame:
    """The rows with observed / bound: 1 where an inequality is tight, 0 where it is not at all."""
    return inequalities.assign(tightness=inequalities["observed"] / inequalities["bound"])


def short_inequalities(rows: pd.DataFrame) -> pd.DataFrame:
    """Before and after unlearning, means over the poisoned policies of a task and backbone; Eq. 15 at few levels.

    vacuous and violated count policies. rows: from `with_tightness`.
    """
    shown = (rows["inequality"] != "(15)") | rows["u"].isin(SHOWN_LEVELS)
    ends = rows[shown & (rows["stage"] != "during")].assign(violated=lambda shown: ~shown["holds"])
    groups = ends.groupby([*WHERE, "inequality", "u"], sort=False, dropna=False)
    means = groups[["observed", "bound", "sharper", "tightness"]].mean()
    return means.join(groups[["vacuous", "violated"]].sum()).assign(policies=groups.size()).reset_index()


def short_balls(balls: pd.DataFrame) -> pd.DataFrame:
    """Before and after unlearning, means over the poisoned policies of a task and backbone.

    radius and printed are means over those that have a sample with a ball, which with_ball counts.
    """
    groups = balls[balls["stage"] != "during"].groupby(WHERE, sort=False)
    columns = ["nonempty", "radius", "printed", "slope_bound", "slope_found", "diameter"]
    counts = {"policies": groups.size(), "with_ball": groups["radius"].count()}
    return groups[columns].mean().assign(**counts).reset_index()


def short_searches(searches: pd.DataFrame) -> pd.DataFrame:
    """At each stage, sums over the poisoned policies of a task and backbone; lowest is the smallest of all."""
    groups = searches.groupby([*WHERE, "factor"], sort=False)
    return groups.agg({"searched": "sum", "violated": "sum", "lowest": "min", "whole": "sum"}).reset_index()


def table_or_sentence(table: pd.DataFrame, digits: int, sentence: str) -> Any:
    """For the notebook: the table with rounded numbers, or Markdown with the sentence that says why it has no rows."""
    from IPython.display import Markdown

    return readable(table, digits) if len(table) else Markdown(sentence)


# Words

NO_CRITICS = "No backbone here has Q critics: there is no inequality and no ball to check."
NO_BALLS = "No poisoned action has a certified ball at any stage: nothing was searched."


def what_is_checked(neighbourhood: Profile) -> str:
    """Markdown: the policies and samples that are checked.

    neighbourhood  the part of the profile for whose policies the certified neighbourhood is checked
                   (`saferule.runs.inventory.ablated`)
    """
    conditions = [condition(attack, ratio) for attack in neighbourhood.attacks for ratio in neighbourhood.ratios]
    where = f"only for the policies of the ablations ({', '.join(conditions)})"
    drawn = f"**Samples**: {SAMPLES:,} transitions of $\\mathcal D_f$ drawn once per forget set with a fixed seed (all "
    drawn += f"where there are fewer), with their poisoned actions; the first {BALLS} of these for the neighbourhood. "
    reference = f"the {TABLE7.reward_percentile}th percentile of the Bellman targets $y_r$ on $\\mathcal D_k$: before "
    reference += f"and after over {SAMPLES:,} transitions with the agent's own target networks, during unlearning "
    lines = [
        f"The certified neighbourhood takes longer and is checked {where}.",
        drawn + "$\\mathbb E$ and $\\Pr$ below are over these samples.",
        f"**Reward reference** $\\bar Q^r$: Safe-RULE's own (Algorithm 2, line 7), {reference}(snapshots hold no "
        "targets) the one that Safe-RULE logged in that step.",
        f"$\\kappa = {TABLE7.kappa:g}$ and $\\sigma = {TABLE7.sigma:g}$ as in Table 7.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def how_searched() -> str:
    """Markdown: which balls are searched for a violation, and what a find would mean."""
    *most, last = [f"{factor:g}" for factor in FACTORS if 1 < factor < np.inf]
    return (
        "**Search.** In each ball: random points, then projected gradient descent on $Q^c$. Inside the certified "
        "radius, whether in the action box $[-1, 1]^A$ or not, it must find no action with $Q^c < \\kappa$. Before and "
        f"after unlearning balls {', '.join(most)} and {last} times as wide are searched too, and `inf`, which is "
        "every action of the box. Of these wider balls only the actions of the box count, as no others can be taken, "
        "so the search stays in both; a ball that holds the whole box (`whole` counts them) is therefore no wider than "
        "`inf`. There it may find one: that shows that the search can find violations, and where it finds none in much "
        "wider balls, how cautious the certificate is."
    )


def in_words(inequalities: pd.DataFrame, balls: pd.DataFrame, searches: pd.DataFrame, backbones: Sequence[str]) -> str:
    """Markdown: what the bounds say in practice, made of the numbers in the rows.

    backbones  all of the profile's, so that those without rows are named
    """
    lines = []
    if left_out := [BACKBONES[b] for b in backbones if b not in set(inequalities["backbone"])]:
        lines.append(f"{', '.join(left_out)}: no Q critics, so neither lemma applies.")
    if len(inequalities):
        lines += [_validity(inequalities), _counted_vacuous(inequalities)]
        for task, backbone, rows in _by_backbone(inequalities):
            lines.append(f"**{task}, {BACKBONES[backbone]}**, after unlearning: {_reward(rows)} {_cost(rows)}")
    if len(balls):
        lines.append(_searched(searches))
        for task, backbone, rows in _by_backbone(balls):
            lines.append(f"**{task}, {BACKBONES[backbone]}**, certified neighbourhood: {_balls(rows)}")
    return "\n".join(f"- {line}" for line in lines)


def _by_backbone(rows: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    return [(*names, group) for names, group in rows.groupby(["task", "backbone"], sort=False)]


def _validity(rows: pd.DataFrame) -> str:
    failed, policies = int((~rows["holds"]).sum()), len(rows[["task", "backbone", *POLICY]].drop_duplicates())
    told = f"{len(rows)} inequalities were evaluated on the critics of "
    told += _count(policies, "repaired policy", "repaired policies")
    return f"{told}: every one holds." if not failed else f"{told}: **for {failed} this fails, which is an error**."


def _counted_vacuous(rows: pd.DataFrame) -> str:
    cost = rows[rows["inequality"] == "(19)"]
    stages = [(stage, cost[cost["stage"] == stage]) for stage in STAGES if stage in set(cost["stage"])]
    printed = ", ".join(f"{int(here['vacuous'].sum())} of {len(here)} {stage}" for stage, here in stages)
    ours = ", ".join(f"{int((here['sharper'] >= 1).sum())} of {len(here)} {stage}" for stage, here in stages)
    _, after = stages[-1]
    told = f"The printed bound (19) is vacuous (eps_c >= sigma) for {printed} unlearning; the sharper one for {ours}."
    return told + (
        " **Lemma A.2 as printed says nothing about any repaired policy here.**" if after["vacuous"].all() else ""
    )


def _reward(rows: pd.DataFrame) -> str:
    after = rows[rows["stage"] == "after"]
    excess, tail = after[after["inequality"] == "(14)"], after[after["inequality"] == "(15)"]
    before = rows[(rows["stage"] == "before") & (rows["inequality"] == "(14)")]
    told = (
        f"eps_r went from {middle(before['residual'])} to {middle(excess['residual'])}, and the mean excess that it "
        f"bounds is {middle(excess['observed'])}; (15) says nothing below u = eps_r"
    )
    useful = tail[~tail["vacuous"]]
    if useful.empty:
        return f"{told}, which is above every u tried."
    first = useful[useful["u"] == useful["u"].min()]
    some = "" if len(first) == len(excess) else f", where it says something for {len(first)} of {len(excess)} policies,"
    return (
        f"{told}, and at u = {first['u'].iloc[0]:g}{some} it allows {span(first['bound'], percent)} (sharper: "
        f"{span(first['sharper'], percent)}) where {span(first['observed'], percent)} are found."
    )


def _cost(rows: pd.DataFrame) -> str:
    here = rows[(rows["stage"] == "after") & (rows["inequality"] == "(19)")]
    told = f"eps_c is {span(here['residual'])} with sigma = {here['u'].iloc[0]:g}: "
    seen = f"{span(here['observed'], percent)} of the forget samples are still called safe"
    useful = here[~here["vacuous"]]
    if len(useful) == len(here):
        said = f"(19) allows {span(here['bound'], percent)}"
    elif useful.empty:
        said = "**(19) is vacuous**"
    else:
        said = f"**(19) is vacuous for {len(here) - len(useful)} of {len(here)}** and else allows "
        said += span(useful["bound"], percent)
    sharper = here[here["sharper"] < 1]["sharper"]
    ours = (
        "the sharper bound says nothing either"
        if sharper.empty
        else f"the sharper bound allows {span(sharper, percent)}"
    )
    if 0 < len(sharper) < len(here):
        ours += f" (vacuous for {len(here) - len(sharper)} of {len(here)})"
    return f"{told}{said}, {ours}, and {seen}."


def _searched(searches: pd.DataFrame) -> str:
    inside = searches[searches["factor"] == 1]
    if inside.empty:
        return "No forget sample has a certified ball at any stage: Eq. 23-25 say nothing here."
    found, balls = int(inside["violated"].sum()), int(inside["searched"].sum())
    told = _count(balls, "certified ball was", "certified balls were")
    told += " searched for an action that Q_c calls safe: "
    told += "none was found." if not found else f"**in {found} one was found, which is an error**."
    hits, misses = [], []
    for factor, rows in searches[searches["factor"] > 1].groupby("factor"):
        whole = rows["whole"].sum() / rows["searched"].sum()
        name = f"balls {factor:g} times as wide" + (f" ({percent(whole)} of them hold the whole box)" if whole else "")
        share = percent(rows["violated"].sum() / rows["searched"].sum())
        if rows["violated"].any():
            every = f"for {share} of the samples with a ball where every action of the box is allowed"
            hits.append(every if np.isinf(factor) else f"in {share} of the {name}")
        else:
            misses.append("among all actions of the box" if np.isinf(factor) else f"in the {name}")
    return f"{told} {_wider(hits, misses)}".rstrip()


def _wider(hits: Sequence[str], misses: Sequence[str]) -> str:
    """What was found in the wider balls; empty where none were searched."""
    parts = [f"none {_listed(misses)}"] if misses else []
    parts += [f"one {_listed(hits)}"] if hits else []
    return f"Confined to the actions of the box, the same search finds {'; and '.join(parts)}." if parts else ""


def _balls(rows: pd.DataFrame) -> str:
    after = rows[rows["stage"] == "after"]
    share = f"{span(after['nonempty'], percent)} of the poisoned actions have a ball after unlearning"
    rough = f"the product of spectral norms is {span(after['slope_bound'] / after['slope_found'])} times the steepest "
    rough += "slope that was found"
    if not after["radius"].notna().any():
        return f"{share}: **nothing is certified**; {rough}."
    size = span((after["radius"] / after["diameter"]).dropna(), percent)
    printed = span((after["printed"] / after["diameter"]).dropna(), percent)
    return f"{share}, with a median radius of {size} of the box's diameter (as printed {printed}); {rough}."


def number(value: float) -> str:
    """Three significant digits, none in exponent form: 12345 is 12,300."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}" if abs(rounded) >= 1e-4 or not rounded else "~0"


def percent(value: float) -> str:
    """A share in percent; what would be shown as 0 % or 100 % only after rounding says so."""
    shown = 100 * value
    if 0 < shown < 0.1:
        return "less than 0.1 %"
    return "more than 99.9 %" if 99.9 < shown < 100 else f"{number(shown)} %"


def span(values: pd.Series, name: Callable[[float], str] = number) -> str:
    """The value, or the smallest and the largest: "3.2", "0.4 to 3.2"."""
    low, high = name(values.min()), name(values.max())
    return low if low == high else f"{low} to {high}"


def middle(values: pd.Series) -> str:
    """The value, or the mean with the smallest and the largest: "3.2", "1.8 (0.4 to 3.2)"."""
    low, high = number(values.min()), number(values.max())
    return low if low == high else f"{number(values.mean())} ({low} to {high})"


def _count(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _listed(parts: Sequence[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
