"""The paper's claims as testable statements: what its own numbers say of each by count, what ours say, and a verdict.

A claim is one entry of `CLAIMS`. Its test gives lines, each with an interval and a threshold. A line holds where the
whole interval is on the claim's side and fails where it is on the other; in between, and with fewer than three
replicates, nothing can be told. "Better" in a line between methods is the probability that the policy of a random
replicate has the lower cost, the higher return, or is better safety first (`saferule.paper.audit.scored`), averaged
over cells, against one half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd

from saferule.paper import TABLE7, audit
from saferule.paper.audit import scored
from saferule.report.study import Study
from saferule.report.style import ATTACKS, look
from saferule.report.tables import (
    FEWEST,
    OURS,
    bootstrapped,
    improves,
    interval,
    matched,
    replicate_means,
    with_clean,
)
from saferule.unlearn import METHODS

SUPPORTED, NOT_SUPPORTED, UNKNOWN = "supported", "not supported", "cannot tell"
RETURN_MARGIN, COST_MARGIN = 0.1, 1.0  # what "slight" is: a tenth of DSRL's range of returns; once the cost limit
BASELINES = [name for name, m in METHODS.items() if (m.part, m.start) == ("main", "poisoned") and m.readings == {}]
BASELINES.remove(OURS)


def controls(method: str) -> list[str]:
    """What shows whether the forget set does anything for a form of Safe-RULE: the controls from the poisoned policy
    under its readings, and ordinary training.
    """
    own = METHODS[method]
    alike = ((own.family, own.readings), (METHODS["clean"].family, {}))
    rows = [m for m in METHODS.values() if m.part == "controls" and m.start != "clean"]
    return [m.name for m in rows if (m.family, m.readings) in alike]


@dataclass(frozen=True)
class Evidence:
    """What claims are judged by; a frame without rows for what is not there.

    means         `tables.replicate_means` with clean policies beside every condition, and `audit.scored`
    times         `timing.table3`, with the number of blocks of each measurement
    inequalities  `appendix.check`'s, as the theory notebook saves them
    """

    means: pd.DataFrame
    times: pd.DataFrame
    inequalities: pd.DataFrame


@dataclass(frozen=True)
class Line:
    """One part of a claim: what is estimated, where ours lies, and the paper's count.

    value, low, high  the estimate and its interval, NaN where it cannot be told; it should be above the threshold
    """

    what: str
    threshold: float
    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    cells: int = 0
    replicates: int = 0
    unit: str = "replicates"
    lacks: str = ""
    paper: str = ""

    @property
    def holds(self) -> bool | None:
        """True, False, or None for what cannot be told."""
        if self.replicates < FEWEST or np.isnan(self.low):
            return None
        return True if self.low > self.threshold else False if self.high < self.threshold else None

    @property
    def ours(self) -> str:
        """The estimate, or what it lacks."""
        if self.lacks:
            return self.lacks
        numbers = f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"
        return f"{numbers}, to be above {self.threshold:g}; {self.cells} cells, {self.replicates} {self.unit}"


@dataclass(frozen=True)
class Claim:
    """One claim: a statement that can be tested, where the paper makes it, and the lines that it consists of.

    every    it holds where all of its lines do (else where any does), and fails where any does (else where all do)
    methods  whose policies it needs, under one attack or all
    """

    name: str
    statement: str
    where: str
    test: Callable[[Evidence], list[Line]]
    methods: tuple[str, ...] = ()
    attack: str = ""
    every: bool = True

    def verdict(self, lines: Sequence[Line]) -> str:
        """Supported, not supported or cannot tell."""
        found = [line.holds for line in lines]
        if not found:
            return UNKNOWN
        held, lost = (all, any) if self.every else (any, all)
        if held(line is True for line in found):
            return SUPPORTED
        return NOT_SUPPORTED if lost(line is False for line in found) else UNKNOWN


# Tests


def better(method: str, others: Sequence[str], scores: Sequence[str], attack: str, evidence: Evidence) -> list[Line]:
    """A line for each other method and score (of `audit.SCORES`): the method is better. attack: of one only, or ""."""
    means, lines = evidence.means, []
    means = means[means["attack"] == attack] if attack else means
    for other in others:
        theirs = _printed(method, other)
        theirs = theirs[theirs["attack"] == attack] if attack else theirs
        counts = audit.tally(audit.against(theirs, method, other))
        for score in scores:
            under = f", {ATTACKS[attack]}" if attack else ""
            what = f"{look(method).label} against {look(other).label}{under}: {audit.SCORES[score]}"
            paper = "{} better, {} equal, {} worse".format(*(counts[f"{score}_{word}"] for word in audit.OUTCOMES))
            line = Line(what, 0.5, paper=f"{paper} of {counts['cells']}" if counts["cells"] else "prints none")
            own, its = matched(means, f"score_{score}", method, other)
            lines.append(_estimated(line, means, (method, other), improves, own, its))
    return lines


def _printed(method: str, other: str) -> pd.DataFrame:
    """The table that prints both methods, else Tables 1 and 4."""
    tables = (_cells(number) for number in (1, 2, 4, 5, 6))
    both = (rows for rows in tables if {method, other} <= set(rows["method"]))
    return next(both, _cells(1, 4))


_cells = cache(audit.cells)  # which nobody changes


def slight_drop(evidence: Evidence) -> list[Line]:
    """Safe-RULE's return is at most a margin lower, its cost at most a margin higher, than the clean policy's."""
    lines = []
    for column, sign, margin in (("normalised_return", 1, RETURN_MARGIN), ("normalised_cost", -1, COST_MARGIN)):
        what = f"{look(OURS).label} against clean: {column.replace('_', ' ')}, difference in the mean over cells"
        own, clean = matched(evidence.means, column, OURS, "clean")
        line, scores = Line(what, -margin, paper="prints none"), (sign * own, sign * clean)
        lines.append(_estimated(line, evidence.means, (OURS, "clean"), lambda x, y: float((x - y).mean()), *scores))
    return lines


def _estimated(
    line: Line, means: pd.DataFrame, methods: Sequence[str], function: Callable[..., float], *scores: np.ndarray
) -> Line:
    """The line with its estimate, or with what it lacks."""
    values = {name: getattr(line, name) for name in ("what", "threshold", "paper")}
    if not scores[0].size:
        known = means[~means["failed"]].groupby([*audit.CELL, "method"]).size() if len(means) else pd.Series(dtype=int)
        most = [int(known.xs(m, level="method").max()) if m in known.index.get_level_values(-1) else 0 for m in methods]
        there = ", ".join(f"{n} of {look(m).label}" for n, m in zip(most, methods, strict=True))
        return Line(**values, lacks=f"needs {FEWEST} replicates of a cell; there are at most {there}")
    estimate = dict(zip(("value", "low", "high"), bootstrapped(function, *scores), strict=True))
    return Line(**values, **estimate, cells=scores[0].shape[1], replicates=scores[0].shape[0])


def faster(evidence: Evidence) -> list[Line]:
    """Retraining takes at least as many times as long as Table 3 says, at Table 7's numbers of steps: a line per task.

    The interval is the range over blocks of the measurement.
    """
    theirs, steps = audit.times().set_index("task"), TABLE7.training_steps / TABLE7.unlearning_steps
    rows = evidence.times[(evidence.times["backbone"] == "cpq") & (evidence.times["method"] == OURS)].set_index("task")
    lines = []
    for task, factor in theirs["retraining"].items():
        line = f"CPQ, {task}: times as long as {look(OURS).label} retraining takes, at Table 7's steps"
        least, printed = theirs["retraining"].min(), f"{factor:.1f}"
        if task in rows.index:
            times = (steps / rows.loc[task, f"relative_step{end}"] for end in ("", "_high", "_low"))
            lines.append(Line(line, least, *times, 1, int(rows.loc[task, "blocks"]), "blocks", paper=printed))
        else:
            lines.append(Line(line, least, paper=printed, lacks="needs the measurement of Table 3"))
    return lines


def lemmas(column: str, wanted: bool, evidence: Evidence) -> list[Line]:
    """Of the inequalities after unlearning the share that hold (or are vacuous): a line for Eq. 15 and one for Eq. 19.

    Over replicates, with Student's t. holds must be all of them, which is tested as a share above 0.999.
    """
    rows, lines = evidence.inequalities, []
    threshold = 0.999 if column == "holds" else 0.5
    on_target = np.log(2) / TABLE7.sigma
    printed = {"(15)": "prints none", "(19)": f"a critic exactly on target has the bound {on_target:.2f}, above 1"}
    for equation, paper in printed.items():
        what = f"Eq. {equation[1:-1]} after unlearning: share that {'hold' if column == 'holds' else 'are below 1'}"
        own = rows[(rows["inequality"] == equation) & (rows["stage"] == "after")] if len(rows) else rows
        shares = (own[column].astype(bool) == wanted).groupby(own["replicate"]).mean() if len(own) else pd.Series()
        if len(shares) < FEWEST:
            lacks = f"needs {FEWEST} replicates of the theory notebook; there are {len(shares)}"
            lines.append(Line(what, threshold, lacks=lacks, paper=paper))
            continue
        cells = len(own[audit.CELL].drop_duplicates())
        lines.append(Line(what, threshold, shares.mean(), *interval(shares), cells, len(shares), paper=paper))
    return lines


def percentiles(evidence: Evidence) -> list[Line]:
    """Table 6: the 50th percentile against the others, with the paper's count by its caption's rule."""
    wins = audit.best_percentile()
    paper = f"{wins['with_50']} of {sum(wins.values()) - wins['with_50']} pairs won by 50 %, {wins['50']} of them alone"
    lines = better("percentile-50", ("percentile-0", "percentile-100"), ("safe_first",), "", evidence)
    return [Line(**vars(line) | {"paper": paper}) for line in lines]


# Claims


def _versus(
    name: str,
    statement: str,
    where: str,
    method: str,
    others: Sequence[str],
    scores: Sequence[str],
    attack: str = "",
    every: bool = True,
) -> Claim:
    test = partial(better, method, tuple(others), tuple(scores), attack)
    return Claim(name, statement, where, test, (method, *others), attack, every)


LEVELS = ("cost", "return")
FIRST = ("safe_first",)
CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        _versus("max-cost-harms", "Under Max Cost, poisoned policies cost more than clean ones.",
                "Section 5.2, Figure 1", "clean", ["poisoned"], ("cost",), "max_cost"),
        _versus("max-reward-harms", "Under Max Reward, poisoned policies are worse than clean ones, safety first.",
                "Figure 2", "clean", ["poisoned"], FIRST, "max_reward"),
        _versus("min-reward-harms", "Under Min Reward, poisoned policies are worse than clean ones, safety first.",
                "Figure 3", "clean", ["poisoned"], FIRST, "min_reward"),
        _versus("repairs", "Safe-RULE lowers the poisoned policy's cost or raises its return.", "Section 5.2, Table 1",
                OURS, ["poisoned"], LEVELS, every=False),
        _versus("best-of-baselines", "Safe-RULE is better than every baseline, safety first.", "Section 5.2", OURS,
                BASELINES, FIRST),
        Claim("slight-drop", "Safe-RULE is slightly worse than the clean policy: its normalised return is less than "
              f"{RETURN_MARGIN:g} lower, its cost less than {COST_MARGIN:g} limit higher (margins of ours).",
              "Section 5.2", slight_drop, (OURS, "clean")),
        _versus("adaptive-weight", "The adaptive forget weight is better than a fixed one in cost and in return.",
                "Section 5.2, Table 2", OURS, ["fixed-weight"], LEVELS),
        Claim("faster", "Retraining takes at least 24 times as long as Safe-RULE.", "Table 3", faster),
        _versus("cost-aware-better", "Trajdeleter is better with the cost advantage, in cost and in return.",
                "Appendix B, Table 4", "trajdeleter-cost", ["trajdeleter"], LEVELS),
        _versus("cost-aware-worse", "Cost-aware Trajdeleter is still worse than Safe-RULE, safety first.", "Appendix B",
                OURS, ["trajdeleter-cost"], FIRST),
        _versus("critic-unlearning", "Unlearning in the critics lowers the cost.", "Appendix B, Table 5", OURS,
                ["no-critic"], ("cost",)),
        Claim("percentile", "The 50th percentile is the best reward reference, safety first.", "Appendix B, Table 6",
              percentiles, ("percentile-0", "percentile-50", "percentile-100")),
        Claim("lemmas-hold", "The inequalities of Lemmas A.1 and A.2 hold after unlearning.", "Appendix A",
              partial(lemmas, "holds", True)),
        Claim("lemmas-say-something", "Their bounds are below 1, in more than half of the repairs.", "Appendix A",
              partial(lemmas, "vacuous", False)),
        _versus("beyond-controls", "Beyond the paper: Safe-RULE is better than its controls, safety first.",
                "ours", OURS, controls(OURS), FIRST),
        _versus("described-beyond-controls", "Beyond the paper: Safe-RULE as described is better than its controls.",
                "ours", "safe-rule-described", controls("safe-rule-described"), FIRST),
    )
}  # fmt: skip


def judge(evidence: Evidence) -> pd.DataFrame:
    """One row per claim and line: claim, statement, where, verdict (of the claim), line, ours, paper, and numbers."""
    rows = []
    for claim in CLAIMS.values():
        lines = claim.test(evidence)
        told = {"claim": claim.name, "statement": claim.statement, "where": claim.where}
        told |= {"verdict": claim.verdict(lines)}
        for line in lines:
            numbers = {n: getattr(line, n) for n in ("value", "low", "high", "threshold", "cells", "replicates")}
            rows.append(told | {"line": line.what, "ours": line.ours, "paper": line.paper} | numbers)
    return pd.DataFrame(rows)


def evidence(study: Study) -> Evidence:
    """What a study has to judge claims by; the theory notebook's rows as it saved them."""
    policies = [run for part in PARTS for run in study.part(part)]
    means = scored(replicate_means(with_clean(study.episodes(policies))))
    blocks = {(run.task, run.backbone): run.rounds for run in study.plan["timing"]}
    times = study.times()
    times = times.assign(blocks=[blocks[at] for at in zip(times["task"], times["backbone"], strict=True)])
    saved = study.folder / "tables" / "theory-inequalities.csv"
    return Evidence(means, times, pd.read_csv(saved) if saved.is_file() else pd.DataFrame())


PARTS = ("main", "controls", "ablations")


def spent(study: Study, claim: Claim) -> str:
    """How a claim is made again, and what its stored policies and their evaluations took: a sentence each."""
    of_theory = isinstance(claim.test, partial) and claim.test.func is lemmas
    notebook = "theory --notebooks tables" if of_theory else "tables"
    command = f"`saferule run --profile {study.profile.name} --notebooks {notebook}` makes it"
    wanted = [run for part in PARTS for run in study.plan[part] if run.method in claim.methods]
    asked = {run for run in wanted if run.attack in (claim.attack, "clean") or not claim.attack}
    done = study.store.seen()
    runs = [run for run in study.plan["evaluations"] if run.policy in asked and done(run)]
    every = [*runs, *(run.policy for run in runs if done(run.policy))]
    if claim.test is faster:
        every = [run for run in study.plan["timing"] if done(run)]
    metas = [study.store.meta(run) for run in every]
    hours = sum(meta.get("seconds", 0.0) / meta.get("population", 1) for meta in metas) / 3600
    machines = ", ".join(sorted({meta["machine"]["device"] for meta in metas}))
    what = f"{len(runs)} of {len(asked)} policies are stored" if asked else f"{len(every)} measurements are stored"
    return f"{command}. {what}{f', {hours:.1f} hours of a process on {machines}' if every else ''}."


def document(study: Study) -> str:
    """CLAIMS.md of what a study has."""
    told = f"Profile {study.name}, {study.caption.partition('; ')[2]}"
    return markdown(judge(evidence(study)), told, {name: spent(study, claim) for name, claim in CLAIMS.items()})


def markdown(judged: pd.DataFrame, made: str, costs: dict[str, str]) -> str:
    """A table of verdicts, then every claim with its lines.

    made   what ours were made with; costs: of each claim how it is made again, and what it took
    """
    heads = judged.drop_duplicates("claim")
    lines = [
        "# Claims",
        "",
        "Each claim of the paper as a statement that can be tested, with what the paper's own numbers say of it by "
        "count (`saferule/paper/audit.py`) and what ours say. Written by `saferule claims`; a test compares this file "
        "with the stored episodes.",
        "",
        made,
        "",
        "A number is the probability that the first policy of a random replicate is better than the second, with its "
        "95 % interval (stratified bootstrap over replicates, rliable), unless the line says otherwise. A claim is "
        "supported where the intervals of its lines are above their thresholds, not supported where one is below, and "
        f"else it cannot be told, as with fewer than {FEWEST} replicates. Safety first: a policy within the cost limit "
        "before one that is not, two within it by return, two others by cost.",
        "",
        "| claim | statement | where | verdict |",
        "|---|---|---|---|",
        *(f"| [{r.claim}](#{r.claim}) | {r.statement} | {r.where} | **{r.verdict}** |" for r in heads.itertuples()),
    ]
    for row in heads.itertuples():
        lines += ["", f"## {row.claim}", "", f"{row.statement} *{row.where}.* **{row.verdict.capitalize()}.**", ""]
        lines += ["| | ours | the paper's own numbers |", "|---|---|---|"]
        own = judged[judged["claim"] == row.claim]
        lines += [f"| {line.line} | {line.ours} | {line.paper} |" for line in own.itertuples()]
        lines += ["", costs[row.claim]]
    return "\n".join([*lines, ""])
