"""The paper's claims as testable statements: what its own numbers say of each by count, what ours say, and a verdict.

A claim is one entry of `CLAIMS`. Its test gives lines, each with values whose mean should be above (or below) a
threshold: one value per replicate, the mean over the cells that all replicates have, so that what cells of a replicate
share is no evidence twice. Their interval is Student's t. A line holds where the whole interval is on the claim's side,
and is refuted where it is on the other; in between, and with fewer than three replicates, nothing can be told. Methods
are compared within a replicate by `saferule.report.tables.ranked`; where the mean and the count of the pairs disagree
nothing can be told either, as the paper says "in most cases". A claim that one line decides, of several, is tested at
5 % over their number (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

import numpy as np
import pandas as pd

from saferule.detect import FALSE_ALARMS
from saferule.paper import READINGS, TABLE7, audit
from saferule.report.detection import judgements
from saferule.report.study import Study, shown
from saferule.report.style import ATTACKS, look
from saferule.report.tables import (
    CELL,
    FEWEST,
    OURS,
    SCORES,
    improves,
    interval,
    matched,
    ranked,
    replicate_means,
    with_clean,
)
from saferule.runs.spec import Run, key, lineage
from saferule.unlearn import METHODS

SUPPORTED, REFUTED, UNKNOWN = "supported", "refuted", "cannot tell"
ERROR = 0.05  # of a line, and of a claim that one line decides
RETURN_MARGIN, COST_MARGIN = 0.1, 1.0  # what "slight" is: a tenth of DSRL's range of returns; once the cost limit
SAFE_MARGIN = 0.1  # and of the share of safe policies
STEP_MARGIN = 2.0  # training steps: one on D_k, one on D_f
UNITS = {"lower_cost": ", in cost limits", "higher_return": ", of the data's range", "safe_first": ""}
COUNTED = dict(zip(SCORES, audit.SCORES, strict=True))  # the same in the paper's numbers
BASELINES = [name for name, m in METHODS.items() if (m.part, m.start) == ("main", "poisoned") and m.readings == {}]
BASELINES.remove(OURS)
OF_THE_PAPER = ["fine-tuning", "trajdeleter", "reward-only"]  # in its Figure 1


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

    means         `tables.replicate_means` with clean policies beside every condition, and `tables.ranked`
    times         `timing.table3`, with the number of blocks of each measurement
    inequalities  `appendix.check`'s of repairs that are stored
    detections    `detection.judgements` of the paper's ratios
    """

    means: pd.DataFrame
    times: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["task", "backbone", "method"]))
    inequalities: pd.DataFrame = field(default_factory=pd.DataFrame)
    detections: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Line:
    """One part of a claim: what is estimated, what ours are, and the paper's count.

    values     one per replicate; their mean should be above the threshold, or below it
    better     share of pairs of policies that are better, ties counted half; NaN where there are no pairs
    told       of what they are: cells, pairs, failures
    measured   in the place of values (estimate, low, high), where they are no sample of replicates: told says what
    counted    in the place of both (how many of, how many, whether that is as claimed): without inference
    """

    what: str
    threshold: float = 0.0
    below: bool = False
    values: tuple[float, ...] = ()
    better: float = np.nan
    told: str = ""
    measured: tuple[float, float, float] | None = None
    counted: tuple[int, int, bool | None] | None = None
    lacks: str = ""
    paper: str = ""

    def estimate(self, error: float = ERROR) -> tuple[float, float, float]:
        """The mean with the ends of its interval of this error rate; NaN where it cannot be told."""
        if self.measured:
            return self.measured
        enough = len(self.values) >= FEWEST
        return (float(np.mean(self.values)), *interval(self.values, 1 - error)) if enough else (np.nan,) * 3

    def holds(self, error: float = ERROR) -> bool | None:
        """True, False where the contrary is found, or None for what cannot be told."""
        if self.counted:
            return self.counted[2]
        _, low, high = self.estimate(error)
        if self.below:
            low, high = -high, -low
        threshold = -self.threshold if self.below else self.threshold
        if low > threshold and not self.better < 0.5:
            return True
        return False if high < threshold and not self.better > 0.5 else None

    @property
    def ours(self) -> str:
        """The estimate, or what it lacks."""
        if self.lacks:
            return self.lacks
        if self.counted:
            return f"{self.counted[0]} of {self.counted[1]}{self.told}; a count, without inference"
        mean, low, high = (round(number, 2) + 0.0 for number in self.estimate())  # no -0.00
        how = "range over" if self.measured else f"Student's t over {len(self.values)} replicates,"
        wanted = f"to be {'below' if self.below else 'above'} {self.threshold:g}"
        return f"{mean:.2f} ({low:.2f} to {high:.2f}), {wanted}; {how} {self.told}"


@dataclass(frozen=True)
class Claim:
    """One claim: a statement that can be tested, the paper's words, where they stand, and its lines.

    every    it holds where all of its lines do (else where any does), and is refuted where any is (else where all are)
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
        """Supported, refuted or cannot tell."""
        if not lines:
            return UNKNOWN
        each = [line.holds() for line in lines]
        one = [line.holds(ERROR / len(lines)) for line in lines]
        held, lost = (all(e is True for e in each), any(o is False for o in one))
        if not self.every:
            held, lost = (any(o is True for o in one), all(e is False for e in each))
        return SUPPORTED if held else REFUTED if lost else UNKNOWN


# Tests


def quoted(method: str) -> str:
    """A method's label as a word in a sentence."""
    return f"“{look(method).label}”"


def better(
    method: str, others: Sequence[str], scores: Sequence[str], attack: str, evidence: Evidence, margin: float = 0.0
) -> list[Line]:
    """A line for each other method and score (of `tables.SCORES`): the method is better, or not worse by the margin.

    attack: of one only, or "".
    """
    means, lines = evidence.means, []
    means = means[means["attack"] == attack] if attack else means
    for other in others:
        theirs = _printed(method, other)
        theirs = theirs[theirs["attack"] == attack] if attack else theirs
        counts = audit.tally(audit.against(theirs, method, other))
        for score in scores:
            under = f", {ATTACKS[attack]}" if attack else ""
            what = f"{quoted(method)} against {quoted(other)}{under}: {SCORES[score]}{UNITS[score]}"
            paper = "{} better, {} equal, {} worse".format(*(counts[f"{COUNTED[score]}_{o}"] for o in audit.OUTCOMES))
            line = Line(what, 0.0 - margin, paper=f"{paper} of {counts['cells']}" if counts["cells"] else "prints none")
            own, its = matched(means, score, method, other)
            share = improves(own, its) if own.size and not margin else np.nan
            lines.append(_estimated(line, means, (method, other), own - its, share))
    return lines


def _printed(method: str, other: str) -> pd.DataFrame:
    """The table that prints both methods, else Tables 1 and 4."""
    tables = (_cells(number) for number in (1, 2, 4, 5, 6))
    both = (rows for rows in tables if {method, other} <= set(rows["method"]))
    return next(both, _cells(1, 4))


_cells = cache(audit.cells)  # which nobody changes


def _estimated(
    line: Line, means: pd.DataFrame, methods: Sequence[str], differences: np.ndarray, share: float = np.nan
) -> Line:
    """The line with its differences (replicates, cells), or with what it lacks."""
    of = means[means["method"].isin(methods)] if len(means) else means
    if not differences.size:
        known = of[~of["failed"]].groupby([*CELL, "method"]).size() if len(of) else pd.Series(dtype=int)
        most = [int(known.xs(m, level="method").max()) if m in known.index.get_level_values(-1) else 0 for m in methods]
        there = ", ".join(f"{n} of {quoted(m)}" for n, m in zip(most, methods, strict=True))
        return replace(line, lacks=f"needs {FEWEST} replicates of a cell; there are at most {there}")
    signs, cells = np.sign(differences), differences.shape[1]
    told = f"{cells} cell{'s' if cells > 1 else ''}"
    if not np.isnan(share):
        pairs = ", ".join(f"{(signs == sign).sum()} {word}" for word, sign in audit.OUTCOMES.items())
        told += f"; {pairs} of {signs.size} pairs"
    failed = int(of["failed"].sum())
    told += f"; {failed} policies failed, which counts as the worst of their cells" if failed else ""
    return replace(line, values=tuple(differences.mean(axis=1)), better=share, told=told)


def slight_drop(attack: str, evidence: Evidence) -> list[Line]:
    """Where the attack did harm: how much less Safe-RULE returns, and more it costs, than the clean policy, and by how
    much its share of safe policies is lower.

    Harm is a poisoned policy that is outside the margins in the mean over replicates. It is found in the same episodes,
    so the clean policies look somewhat better there than they are: that is to the disadvantage of the claim.
    """
    means = evidence.means[evidence.means["attack"] == attack]
    columns = ["lower_cost", "higher_return"]
    levels = means.groupby([*CELL, "method"])[columns].mean().unstack("method") if len(means) else pd.DataFrame()
    harmed = means.iloc[:0]
    if {("lower_cost", "clean"), ("lower_cost", "poisoned")} <= set(levels):
        lost = levels.xs("clean", axis=1, level=1) - levels.xs("poisoned", axis=1, level=1)
        outside = (lost["lower_cost"] > COST_MARGIN) | (lost["higher_return"] > RETURN_MARGIN)
        harmed = means.merge(lost.index[outside].to_frame(index=False), on=CELL)
        harmed = harmed.assign(safe=harmed["safe"].astype(float))
    lines = []
    for column, margin, what in (
        ("higher_return", RETURN_MARGIN, "return lower by, of the data's range"),
        ("lower_cost", COST_MARGIN, "cost higher by, in cost limits"),
        ("safe", SAFE_MARGIN, "policies within the limit"),
    ):
        line = Line(f"{quoted(OURS)} against {quoted('clean')}: {what}", margin, below=True, paper="prints none")
        own, clean = matched(harmed, column, OURS, "clean")
        found = _estimated(line, harmed if len(harmed) else means, (OURS, "clean"), clean - own)
        if column == "safe" and found.values:  # of few policies a share has no spread to estimate an interval from
            drops = np.array(found.values)
            right = True if drops.mean() < margin else False if drops.min() > margin else None
            told = f", {int(clean.sum())} of the clean ones"
            found = replace(line, counted=(int(own.sum()), own.size, right), told=told)
        if found.lacks and len(means) and not len(harmed):
            found = replace(found, lacks=f"no cell of {ATTACKS[attack]} in which the poisoned policy is outside of it")
        lines.append(found)
    return lines


def step_cost(evidence: Evidence) -> list[Line]:
    """How many training steps a step of Safe-RULE takes, a line per task, as Table 3 is about CPQ."""
    theirs = audit.times().set_index("task")["training_steps_per_step"]
    rows = evidence.times[(evidence.times["backbone"] == "cpq") & (evidence.times["method"] == OURS)].set_index("task")
    lines = []
    for task, implied in theirs.items():
        line = Line(f"CPQ, {task}: training steps that a step of {quoted(OURS)} takes", STEP_MARGIN, below=True)
        line = replace(line, paper=f"{implied:.1f}, by its minutes and Table 7's numbers of steps")
        if task in rows.index:
            row = rows.loc[task]
            ends = (float(row[f"relative_step{end}"]) for end in ("", "_low", "_high"))
            line = replace(line, measured=tuple(ends), told=f"{row['blocks']} timing blocks on one machine")
        else:
            line = replace(line, lacks="needs the measurement of Table 3")
        lines.append(line)
    return lines


def lemmas(column: str, evidence: Evidence) -> list[Line]:
    """Of the inequalities after unlearning, those that are violated, or not vacuous: counted, a line per equation."""
    rows, lines = evidence.inequalities, []
    on_target = f"a critic exactly on target has the bound {np.log(2) / TABLE7.sigma:.2f}, above 1"
    for equation in ("(15)", "(19)"):
        paper = on_target if (equation, column) == ("(19)", "vacuous") else "prints none"
        what = f"Eq. {equation[1:-1]} after unlearning: " + ("violated" if column == "holds" else "bound below 1")
        own = rows[(rows["inequality"] == equation) & (rows["stage"] == "after")] if len(rows) else rows
        replicates = own["replicate"].nunique() if len(own) else 0
        many = int((~own[column].astype(bool)).sum()) if len(own) else 0
        enough = replicates >= FEWEST
        if column == "holds":
            right = False if many else True if enough else None
        else:
            right = many > len(own) / 2 if enough else None
        if right is None:
            lacks = f"needs {FEWEST} replicates of the theory notebook; there are {replicates}"
            lines.append(Line(what, lacks=lacks, paper=paper))
            continue
        told = f" inequalities of {len(own.drop_duplicates([*CELL, 'replicate']))} repairs"
        lines.append(Line(what, counted=(many, len(own), right), told=told, paper=paper))
    return lines


def percentiles(evidence: Evidence) -> list[Line]:
    """Table 6: the 50th percentile against the others, with the paper's count by its caption's rule."""
    wins = audit.best_percentile()
    paper = f"{wins['with_50']} of {sum(wins.values()) - wins['with_50']} pairs won by 50 %, {wins['50']} of them alone"
    lines = better("percentile-50", ("percentile-0", "percentile-100"), ("safe_first",), "", evidence)
    return [replace(line, paper=paper) for line in lines]


def retains(evidence: Evidence) -> list[Line]:
    """The adaptive weight returns more than a fixed one, and its cost is higher by less than the margin."""
    pair = OURS, ["fixed-weight"]
    lines = better(*pair, ("higher_return",), "", evidence)
    return lines + better(*pair, ("lower_cost",), "", evidence, margin=COST_MARGIN)


def detected(labels: Iterable[str], evidence: Evidence) -> list[Line]:
    """For each way of labelling the poison how much of it is found, and how many honest trajectories are flagged."""
    lines = []
    for name in labels:
        rows = evidence.detections
        rows = rows[rows["labels"] == name].assign(method="detect", backbone="") if len(rows) else rows
        for column, threshold, below, what in (
            ("recall", 0.5, False, "share of the poisoned trajectories that is flagged"),
            ("false_alarms", FALSE_ALARMS, True, "share of the others that is flagged"),
        ):
            line = Line(f"labels “{name}”: {what}", threshold, below, paper="measures none")
            (values,) = matched(rows, column, "detect") if len(rows) else [np.empty((0, 0))]
            if values.size:
                told = f"{values.shape[1]} forget sets each"
                lines.append(replace(line, values=tuple(values.mean(axis=1)), told=told))
            else:
                there = rows["replicate"].nunique() if len(rows) else 0
                lacks = f"needs {FEWEST} replicates of the detect notebook; there are at most {there}"
                lines.append(replace(line, lacks=lacks))
    return lines


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


LEVELS = ("lower_cost", "higher_return")
FIRST = ("safe_first",)
LABELS = READINGS["labels"]
CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        _versus("max-cost-harms", "Under Max Cost, poisoned policies cost more than clean ones, and are worse, safety "
                "first.", "Section 5.2: “the Max Cost attack substantially increases the evaluation cost and degrades "
                "policy performance”", "clean", ["poisoned"], ("lower_cost", "safe_first"), "max_cost"),
        _versus("max-reward-harms", "Under Max Reward, poisoned policies cost more than clean ones.", "Section 5: “the "
                "high-reward trajectories discard the cost constraints, which also leads to high cost”", "clean",
                ["poisoned"], ("lower_cost",), "max_reward"),
        _versus("min-reward-harms", "Under Min Reward, poisoned policies are worse than clean ones, safety first.",
                "Figure 3: “it can still degrade the learned policy”", "clean", ["poisoned"], FIRST, "min_reward"),
        _versus("repairs", "Safe-RULE lowers the poisoned policy's cost or raises its return. (A change at random does "
                "one of the two in three of four cells.)", "Section 5.2, Table 1: “safe unlearning reduces cost or "
                "improves reward in many settings”", OURS, ["poisoned"], LEVELS, every=False),
        _versus("repairs-safely", "Stricter than the paper says it: Safe-RULE's policy is better than the poisoned "
                "one, safety first.", "ours", OURS, ["poisoned"], FIRST),
        _versus("best-of-baselines", "Under Max Cost, Safe-RULE is better than each of the paper's baselines, safety "
                "first.", "Section 5.2, of Figure 1: “achieves the best performance among all baselines, outperforming "
                "both Trajetele and fine-tuning approaches”", OURS, OF_THE_PAPER, FIRST, "max_cost"),
        _versus("best-of-all", "Wider than the paper says it: under every attack, Safe-RULE is better than every "
                "baseline, safety first.", "ours", OURS, BASELINES, FIRST),
        Claim("slight-drop", "Where Max Cost harms beyond these margins (ours), Safe-RULE's policies are within them "
              f"of the clean ones: the normalised return less than {RETURN_MARGIN:g} lower, the cost less than "
              f"{COST_MARGIN:g} limit higher, and the share of safe policies less than {SAFE_MARGIN:g} lower.",
              "Section 5.2, of Figure 1: “has a slight performance drop compared with the clean policy”",
              partial(slight_drop, "max_cost"), (OURS, "clean", "poisoned"), "max_cost"),
        Claim("adaptive-weight", "The adaptive forget weight has the higher return than a fixed one, and its cost is "
              f"less than {COST_MARGIN:g} limit higher (a margin of ours).", "Section 5.2, Table 2: “better "
              "performance in most cases, especially in retaining reward while maintaining competitive cost "
              "reduction”", retains, (OURS, "fixed-weight"), "max_cost"),
        _versus("adaptive-weight-both", "Stricter than the paper says it: the adaptive forget weight is better than a "
                "fixed one in cost and in return.", "ours, Table 2", OURS, ["fixed-weight"], LEVELS, "max_cost"),
        Claim("step-cost", f"A step of Safe-RULE takes less than {STEP_MARGIN:g} training steps (one on D_k, one on "
              "D_f). That it is many times faster than retraining is for the rest the choice of step numbers: Table "
              f"7's are {TABLE7.training_steps // TABLE7.unlearning_steps} to 1.", "Section 5.2, Table 3: “require "
              "only a small number of update steps, they are much more efficient than retraining”", step_cost),
        _versus("cost-aware-better", "Trajdeleter is better with the cost advantage, safety first.", "Appendix B, "
                "Table 4: “improves the performance of the safe policy in most cases”", "trajdeleter-cost",
                ["trajdeleter"], FIRST),
        _versus("cost-aware-better-both", "Stricter than the paper says it: Trajdeleter is better with the cost "
                "advantage, in cost and in return.", "ours, Table 4", "trajdeleter-cost", ["trajdeleter"], LEVELS),
        _versus("cost-aware-worse", "Cost-aware Trajdeleter is worse than Safe-RULE, safety first.", "Appendix B: "
                "“its performance is still worse than Safe-RULE”", OURS, ["trajdeleter-cost"], FIRST),
        _versus("critic-unlearning", "Unlearning in the critics lowers the cost.", "Appendix B, Table 5: “critic "
                "unlearning improves safety recovery in many settings”", OURS, ["no-critic"], ("lower_cost",),
                "max_cost"),
        Claim("percentile", "The 50th percentile is the best reward reference, safety first.", "Appendix B, Table 6: "
              "“in most cases the 50% yields the best unlearn performance”", percentiles,
              ("percentile-0", "percentile-50", "percentile-100"), "max_cost"),
        Claim("lemmas-hold", "The inequalities of Lemmas A.1 and A.2 hold after unlearning, beyond rounding. They are "
              "proved, so this can only find errors of the code.", "Appendix A", partial(lemmas, "holds")),
        Claim("lemmas-say-something", "Their bounds are below 1, in more than half of the cases.", "Lemma A.2: "
              "“non-vacuous safety separation”", partial(lemmas, "vacuous")),
        _versus("beyond-controls", "Beyond the paper: Safe-RULE is better than its controls, safety first.",
                "ours", OURS, controls(OURS), FIRST),
        _versus("described-beyond-controls", "Beyond the paper: Safe-RULE as described is better than its controls, "
                "safety first.", "ours", "safe-rule-described", controls("safe-rule-described"), FIRST),
        Claim("detects", "Beyond the paper: `saferule detect` flags more than half of the paper's poisoned "
              f"trajectories, and fewer of the others than it was asked for ({FALSE_ALARMS:.0%}).", "Section 6: “If "
              "poisoned samples cannot be detected or isolated, Safe-RULE cannot directly remove their influence”",
              partial(detected, (LABELS.default,))),
        Claim("detects-other-labels", "The same, where the poison is labelled less naively.", "ours",
              partial(detected, tuple(name for name in LABELS.options if name != LABELS.default))),
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
            numbers = dict(zip(("value", "low", "high"), line.estimate(), strict=True))
            numbers |= {"threshold": line.threshold, "replicates": len(line.values), "lacks": bool(line.lacks)}
            rows.append(told | {"line": line.what, "ours": line.ours, "paper": line.paper} | numbers)
    return pd.DataFrame(rows)


def evidence(study: Study) -> Evidence:
    """What a study has to judge claims by.

    The theory notebook's rows as it saved them, but for those of repairs that are not stored, or not of this study.
    """
    policies = [run for part in PARTS for run in study.part(part)]
    means = ranked(replicate_means(with_clean(study.episodes(policies))))
    blocks = {(run.task, run.backbone): run.rounds for run in study.plan["timing"]}
    times = study.times()
    times = times.assign(blocks=[blocks[at] for at in zip(times["task"], times["backbone"], strict=True)])
    saved = study.folder / "tables" / "theory-inequalities.csv"
    checked = pd.read_csv(saved, dtype={"run": str}) if saved.is_file() else pd.DataFrame()
    known = {key(run) for run in study.plan["main"] if study.store.there(run)}
    checked = checked[checked["run"].isin(known)] if "run" in checked else checked[:0]
    found = judgements(study.store, [run for run in study.plan["detections"] if study.store.there(run)])
    found = found[found["ratio"].isin(TABLE7.ratios)] if len(found) else found
    return Evidence(means, times, checked, found)


PARTS = ("main", "controls", "ablations")


def spent(study: Study, claim: Claim, done: Callable[[Run], bool]) -> str:
    """How a claim is made again, and what its done runs took with all that they build on: a sentence each."""
    test = claim.test.func if isinstance(claim.test, partial) else claim.test
    of = {step_cost: "timing", detected: "detections"}.get(test)
    notebooks = {lemmas: "theory --notebooks tables", detected: "detect --notebooks tables"}.get(test, "tables")
    narrow = claim.attack and all(METHODS[m].part == "main" for m in claim.methods) and len(study.profile.attacks) > 1
    attack = f" --attacks {claim.attack}" if narrow else ""  # ablations are of one condition in any case
    command = f"`saferule run --profile {study.profile.name}{attack} --notebooks {notebooks}` makes it"
    if of:
        asked, what = study.plan[of], "measurements" if of == "timing" else "detections"
        asked = [run for run in asked if of != "timing" or run.backbone == "cpq"]
    else:
        methods, what = claim.methods or (OURS,), "policies"
        wanted = [run for part in PARTS for run in study.plan[part] if run.method in methods]
        policies = {run for run in wanted if run.attack in (claim.attack, "clean") or not claim.attack}
        asked = [run for run in study.plan["evaluations"] if run.policy in policies]
    there = [run for run in asked if done(run)]
    metas = [study.store.meta(run) for run in lineage(there) if done(run)]
    hours = sum(meta.get("seconds", 0.0) / meta.get("population", 1) for meta in metas) / 3600
    machines = ", ".join(sorted({meta["machine"]["device"] for meta in metas}))
    took = f"; with what they build on they took {hours:.1f} hours of a process on {machines}" if metas else ""
    return f"{command}. {len(there)} of {len(asked)} {what} are stored{took}."


def document(study: Study) -> str:
    """CLAIMS.md of what a study has."""
    found = evidence(study)
    done = study.store.seen()
    costs = {name: spent(study, claim, done) for name, claim in CLAIMS.items()}
    return markdown(judge(found), study.caption + (shown(found.means) or " None is stored."), costs)


def markdown(judged: pd.DataFrame, made: str, costs: dict[str, str]) -> str:
    """A table of verdicts, then every claim with its lines; of one without evidence what it lacks, and the paper's.

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
        "Methods are compared within a replicate, by the mean over cells of their differences; a number is the mean of "
        "these over replicates, with its 95 % interval, and the line says which. **Supported**: the intervals of all "
        "lines are on the claim's side (where the statement says “or”, of one line). **Refuted**: an interval is on "
        "the other side (of all lines, with “or”). **Cannot tell**: neither, as always with fewer than "
        f"{FEWEST} replicates; absence of support is no refutation. Where one of several lines decides, its interval "
        "is that of 5 % over their number (Bonferroni), which is wider than the one that is printed; claims are not "
        f"corrected for each other: there are {len(heads)}. Safety first: a policy within the cost limit counts its "
        "normalised return, at least 0, another limit / cost - 1, which is between -1 and 0. That ranking is ours.",
        "",
        "| claim | statement | verdict |",
        "|---|---|---|",
        *(f"| [{r.claim}](#{r.claim}) | {r.statement} | **{r.verdict}** |" for r in heads.itertuples()),
    ]
    for row in heads.itertuples():
        own = judged[judged["claim"] == row.claim]
        number = f" {len(own)} lines." if len(own) > 1 else ""
        lines += ["", f"## {row.claim}", "", f"{row.statement} *{row.where}.* **{row.verdict.capitalize()}.**{number}"]
        if own["lacks"].all():
            printed = own.loc[~own["paper"].isin(["prints none", "measures none"]), ["line", "paper"]].drop_duplicates()
            lines += ["", f"Ours: {own['ours'].iloc[0]}."]
            lines += ["", *(f"- The paper, {line}: {paper}" for line, paper in printed.itertuples(index=False))]
        else:
            lines += ["", "| | ours | the paper's own numbers |", "|---|---|---|"]
            lines += [f"| {line.line} | {line.ours} | {line.paper} |" for line in own.itertuples()]
        lines += ["", costs[row.claim]]
    return "\n".join([*lines, ""]).replace("\n\n\n", "\n\n")
