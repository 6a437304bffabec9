"""Spot-check: a cell of a table, or a figure, made once more from what is committed, and compared with it.

Three things are compared: every file with its SHA-256; every committed episode with the same policy's on the same seed,
played now in the simulator; the committed numbers (or pixels, and the files beside them) with those built from the
committed episodes. Or the policies are trained again, from the dataset, and the means of the cell are compared.

The same networks in the same operations play the same episodes to the last digit. Another processor may round
otherwise, and the simulators are chaotic: after some hundred steps an episode is another one, and only means can be
compared. On the processor that the runs name all episodes have to be equal; on another one the rows tell which of the
two it is (`episodes_again`): rounding does not pick single episodes, an edit does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from itertools import chain
from numbers import Number
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from PIL import Image
from scipy import stats

from saferule.agents import BACKBONES
from saferule.errors import RunError, SettingsError
from saferule.report.figures import FIGURES, OF_ATTACK
from saferule.report.study import Study
from saferule.report.style import ATTACKS, METRICS, NAMES, TOLD, png, svg
from saferule.report.tables import (
    CELL,
    OURS,
    TABLES,
    Table,
    hyperparameters,
    in_reading_order,
    late,
    provenance,
    replicate_means,
)
from saferule.report.timing import table3
from saferule.runs import results
from saferule.runs.engine import make
from saferule.runs.interruptible import AGENT
from saferule.runs.spec import EvaluationRun, TimingRun
from saferule.runs.store import Store, processor
from saferule.sim.tasks import TASKS
from saferule.unlearn import METHODS

Say = Callable[[str], None]
Made = tuple[pd.DataFrame, list["Outcome"]]
POLICY = [*CELL, "method", "replicate"]
KEYS = [*CELL, "metric", "method", "source", "name"]  # of the rows of a table
EVERY, TIMES, SETTINGS = "methods", "table3", "table7"  # the table that figures are drawn from; those without episodes
ATTACK_OF = {figure: attack for attack, figure in OF_ATTACK.items()}
DAMAGED = "not built again: what it is built from is damaged"
PLAYED = ["return", "cost", "length"]
BY_CHANCE = 0.05  # how often a check of what is right may fail where only means can be compared
DIGITS = 1e-9  # relative, of numbers that are computed again from the same rows


@dataclass(frozen=True)
class Outcome:
    """One comparison; passed is None for what could not be compared."""

    passed: bool | None
    what: str
    why: str

    def __str__(self) -> str:
        return f"{'----' if self.passed is None else 'pass' if self.passed else 'FAIL'}  {self.what}: {self.why}"


# The cell


def name_of(cell: Mapping[str, Any]) -> str:
    """A cell as it is written on the command line, such as BCQ-Lag/max_cost/CarCircle/0.05."""
    words = {"ratio": "{:g}".format, "attack": str} | {name: NAMES[name] for name in ("backbone", "task")}
    return "/".join(words[name](cell[name]) for name in ("backbone", "attack", "task", "ratio") if name in cell)


def _spellings() -> list[tuple[str, str, str]]:
    """(column, value, a name of it) for tasks, backbones and attacks: ours, the paper's, the simulator's."""
    found = [("task", task.name, name) for task in TASKS.values() for name in (task.name, task.env_id, task.dsrl_id)]
    for column, values in (("backbone", BACKBONES), ("attack", ATTACKS)):
        for value in values:
            label = NAMES[column](value)
            found += [(column, value, name) for name in (value, label, label.partition("-")[0])]
    return sorted(found, key=lambda entry: -len(entry[2]))


def fitting(text: str, cells: pd.DataFrame) -> pd.DataFrame:
    """Those of the cells (columns `CELL`) that a text names; what it leaves out may be anything.

    Order, separators and capitals do not matter; a ratio is 0.05 or 5 %. SettingsError for a text that names none of
    them, with the nearest.
    """
    rest, wanted = text.lower(), {}
    for column, value, name in _spellings():
        letters = "[^a-z0-9]*".join(re.sub("[^a-z0-9]", "", name.lower()))
        rest, found = re.subn(f"(?<![a-z0-9]){letters}(?![a-z0-9])", " ", rest)
        if found and wanted.setdefault(column, value) != value:
            rest += f" {value}"
    numbers = re.findall(r"(\d*\.?\d+)\s*(%?)", rest)
    ratios = [float(number) / (100 if percent or float(number) >= 1 else 1) for number, percent in numbers]
    wanted |= {"ratio": ratios[0]} if ratios else {}
    left = re.findall("[a-z0-9]+", re.sub(r"\d*\.?\d+|ratio|rho", " ", rest))
    fits = pd.DataFrame({c: cells[c].eq(v) if c != "ratio" else np.isclose(cells[c], v) for c, v in wanted.items()})
    fits = fits.reindex(cells.index)
    if left or len(ratios) > 1 or not (chosen := cells[fits.all(axis=1)]).size:
        nearest = cells.loc[fits.sum(axis=1).sort_values(ascending=False, kind="stable").index[:4]]
        raise SettingsError(
            f"--cell {text[:40]!r}: none of the {len(cells)} cells with committed episodes, expected "
            f"BACKBONE/ATTACK/TASK/RATIO: the nearest are {', '.join(map(name_of, nearest.to_dict('records')))}"
        )
    return chosen


# Comparisons


def compared(committed: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """The episodes of both, one row per policy and seed; column same: whether they are equal to the last digit.

    Columns `POLICY`, seed, and return, cost and length with the suffix _again for the second; in says which has it:
    both, or left_only or right_only where the other has it less often. Failed episodes have no return in either.
    """
    twice = [frame.groupby([*POLICY, "seed"]).cumcount() for frame in (committed, again)]
    sides = [f[[*POLICY, "seed", *PLAYED]].assign(copy=n) for f, n in zip((committed, again), twice, strict=True)]
    both = sides[0].merge(sides[1], "outer", [*POLICY, "seed", "copy"], suffixes=("", "_again"), indicator="in")
    both = in_reading_order(both)
    pairs = [(both[name], both[f"{name}_again"]) for name in PLAYED]
    alike = [one.eq(other) | (one.isna() & other.isna()) for one, other in pairs]
    return both.assign(same=np.logical_and.reduce([both["in"] == "both", *alike]))


def tolerance(one: ArrayLike, other: ArrayLike, confidence: float) -> float:
    """How far the means of two samples of the same distribution may be apart (Student's t); 0 for a single value."""
    one, other = np.asarray(one, float), np.asarray(other, float)
    n = min(len(one), len(other))
    if n < 2:
        return 0.0
    return float(stats.t.ppf((1 + confidence) / 2, n - 1) * np.hypot(stats.sem(one), stats.sem(other)))


def episodes_again(committed: pd.DataFrame, again: pd.DataFrame, same_processor: bool = False) -> list[Outcome]:
    """For each policy, whether it plays its committed episodes: equal, or where the processor rounds otherwise, close.

    On the same processor all are equal. So they are on one that may be another where at least half of the episodes are,
    of all or of a policy: it rounds as the one of the committed rows. Else the means of cost and return must agree
    within `tolerance`, with a confidence at which all of these comparisons together fail by chance in 5 % of the cases.
    """
    rows, found = compared(committed, again), []
    alike, policies = same_processor or rows["same"].mean() >= 0.5, rows.groupby(POLICY, sort=False)
    confidence = 1 - BY_CHANCE / (len(METRICS) * policies.ngroups)
    for policy, own in policies:
        told = dict(zip(POLICY, policy, strict=True))
        what = f"episodes of {NAMES['method'](told['method'])}, replicate {told['replicate']}"
        differing = own[~own["same"]]
        pairs = [(own[m].dropna(), own[f"{m}_again"].dropna(), m) for m in METRICS]
        means = ", ".join(f"{m} {one.mean():.4g} and now {other.mean():.4g}" for one, other, m in pairs)
        if differing.empty:
            found.append(Outcome(True, what, f"{means}; {len(own)} equal to the last digit"))
            continue
        missing = (differing["in"] != "both").any()
        if missing or alike or len(differing) <= len(own) / 2:
            first = differing.iloc[0]
            why = "; ".join(f"{m} {first[m]:.6g}, now {first[f'{m}_again']:.6g}" for m in PLAYED)
            many = f"{len(differing)} of {len(own)} differ, the first on seed {first['seed']}: {why}"
            found.append(Outcome(False, what, f"{means}; {many}"))
            continue
        widths = [tolerance(one, other, confidence) for one, other, _ in pairs]
        close = all(abs(o.mean() - t.mean()) <= width for (o, t, _), width in zip(pairs, widths, strict=True))
        limits = " and ".join(f"{width:.3g}" for width in widths)
        how = "close, not equal: within" if close else "neither equal nor close: not within"
        found.append(Outcome(close, what, f"{means}; {how} {limits}, the spread of {len(own)} episodes"))
    return found


def means_again(committed: pd.DataFrame, again: pd.DataFrame) -> list[Outcome]:
    """For each method, whether policies that were trained again have the committed means of cost and return.

    Replicates are the unit where there are several, else episodes, which understates the spread of training.
    """
    several = again["replicate"].nunique() > 1
    left, right = (replicate_means(frame) if several else frame for frame in (committed, again))
    unit, found = "replicates" if several else "episodes of one replicate", []
    confidence = 1 - BY_CHANCE / (len(METRICS) * right["method"].nunique())
    for method, other in right.groupby("method", sort=False):
        one = left[(left["method"] == method) & left["replicate"].isin(other["replicate"])]
        for metric in METRICS:
            width, means = tolerance(one[metric], other[metric], confidence), (one[metric].mean(), other[metric].mean())
            close, equal = abs(means[0] - means[1]) <= width, np.array_equal(one[metric], other[metric])
            spread = f"{'within' if close else 'not within'} {width:.3g}, the spread of {len(one)} {unit}"
            why = f"{means[0]:.4g} and again {means[1]:.4g}; {'equal' if equal else spread}"
            found.append(Outcome(bool(equal or close), f"{metric} of {NAMES['method'](method)}, trained again", why))
    return found


def numbers_again(committed: pd.DataFrame, rebuilt: pd.DataFrame) -> list[Outcome]:
    """For each row of a table, whether its numbers are those built from the committed episodes, to nine digits."""
    one, two = (
        pd.read_csv(StringIO(frame.to_csv(index=False)), float_precision="round_trip") for frame in (committed, rebuilt)
    )
    if missing := [name for name in two if name not in one]:
        return [Outcome(False, "table", f"without column {', '.join(missing)}, expected {', '.join(two)}")]
    keys = [name for name in KEYS if name in two]
    one, two = (frame.astype(dict.fromkeys(keys, str)) for frame in (one, two))
    both = one.merge(two, on=keys, how="outer", suffixes=("", " again"), indicator="of")
    found = []
    for row in in_reading_order(both).to_dict("records"):
        what = " of ".join(NAMES.get(n, str)(row[n]) for n in ("metric", "method", "name") if n in keys)
        what += f" ({row['source']})" if row.get("source", "nan") != "nan" else ""
        values = {n: (row[n], row[f"{n} again"]) for n in two if n not in keys}
        differing = {n: pair for n, pair in values.items() if not _equal(*pair)}
        if row["of"] != "both":
            why = "there are episodes of it" if row["of"] == "right_only" else "there are no episodes of it"
            found.append(Outcome(False, what, f"{'not ' * (row['of'] == 'right_only')}in the committed table, {why}"))
        elif differing:
            why = "; ".join(f"{n} {pair[0]} committed and {pair[1]} built again" for n, pair in differing.items())
            found.append(Outcome(False, what, why))
        else:
            why = f"mean {row['mean']:.4g} (n {row['n']}), " if {"mean", "n"} <= values.keys() else ""
            found.append(Outcome(True, what, f"{why}as built again"))
    return found


def _equal(one: object, other: object) -> bool:
    numbers = isinstance(one, Number) and isinstance(other, Number)
    return bool(np.isclose(one, other, rtol=DIGITS, atol=0, equal_nan=True) if numbers else one == other)


def pixels_again(committed: bytes, drawn: bytes) -> tuple[bool, str]:
    """Whether two pictures show the same, pixel by pixel, and say the same of themselves."""
    pictures = [Image.open(BytesIO(content)) for content in (committed, drawn)]
    one, two = (np.asarray(picture.convert("RGB")) for picture in pictures)
    told = {name: [picture.info.get(name, "") for picture in pictures] for name in TOLD}
    if wrong := [f"its {n.lower()} is {a[:60]!r}, drawn again {b[:60]!r}" for n, (a, b) in told.items() if a != b]:
        return False, wrong[0]
    if one.shape != two.shape:
        return False, f"{one.shape[1]} x {one.shape[0]} pixels, drawn again {two.shape[1]} x {two.shape[0]}"
    differing = (one != two).any(axis=2).mean()
    return not differing, f"{differing:.3%} of the pixels differ" if differing else "drawn again, every pixel is equal"


def times_again(committed: pd.DataFrame, again: pd.DataFrame) -> list[Outcome]:
    """For each row of Table 3, whether the range of a step's relative time overlaps the one that is measured now."""
    found = []
    for row in committed.merge(again, on=["task", "backbone", "method"], suffixes=("", "_again")).itertuples():
        low, high = row.relative_step_low_again, row.relative_step_high_again
        overlap = low <= row.relative_step_high and row.relative_step_low <= high
        why = f"{row.relative_step_low:.3g} to {row.relative_step_high:.3g}, measured now {low:.3g} to {high:.3g}"
        what = f"steps of training in a step of {NAMES['method'](row.method)}"
        found.append(Outcome(bool(overlap), what, f"{why}, which {'overlap' if overlap else 'do not overlap'}"))
    return found


# Making it again


def runs_of(study: Study, name: str) -> list[EvaluationRun] | list[TimingRun]:
    """The stored runs that a table or figure is built from: of the methods it shows, and of what tells harm.

    Damaged ones too, which nothing else shows.
    """
    if name == SETTINGS:
        return []
    if name == TIMES:
        return [run for run in study.plan["timing"] if study.store.there(run)]
    table = TABLES[EVERY if name in ATTACK_OF else name]
    variants = [part for part in dict.fromkeys(METHODS[m].part for m in table.methods) if part != "main"]
    of = {run.policy: run for run in study.plan["evaluations"] if study.store.there(run)}
    policies = study.plan["main"]
    if variants:
        policies = study.asked_beside([p for p in study.plan[variants[0]] if p in of], "main", *variants)
    methods, attacks = {*table.methods, "clean", "poisoned"}, {"clean", ATTACK_OF.get(name, "")}
    shown = [p for p in policies if p.method in methods and (name not in ATTACK_OF or p.attack in attacks)]
    return [of[p] for p in shown if p in of]


def built(study: Study, name: str, runs: Sequence[EvaluationRun] | Sequence[TimingRun]) -> pd.DataFrame:
    """A table from its stored runs, as it is saved."""
    if name == SETTINGS:
        rows = hyperparameters(study.only(study.plan["main"], name=OURS))
    elif name == TIMES:
        rows = table3(results.times(study.store, runs))
    else:
        rows = TABLES[name].build(late(results.episodes(study.store, runs)), study.asked)
    return provenance(rows, study.name, {task: study.dataset(task).digest() for task in study.profile.tasks})


def played(study: Study, runs: Sequence[EvaluationRun]) -> Made:
    """The final episodes of stored policies, played now; and what failed, if anything did."""
    with TemporaryDirectory(prefix="saferule-check-") as folder:
        store = Store(folder)
        for run in runs:
            link = store.folder(run.policy)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(study.store.folder(run.policy).resolve(), target_is_directory=True)
        return made(study, runs, store, say=lambda line: None)


def made(study: Study, runs: Sequence[EvaluationRun], store: Store, say: Say) -> Made:
    """The final episodes of policies, made in another store with all that is not there; and what failed."""
    runs, failed = [replace(run, snapshot_seeds=()) for run in runs], []
    try:
        make(runs, replace(study.workspace, store=store), say=say)
    except RunError as error:
        failed = [Outcome(False, "policies", str(error))]
    return results.episodes(store, [run for run in runs if store.done(run)]), failed


# The check


def check(
    study: Study,
    name: str,
    cell: str = "",
    replicates: Sequence[int] = (),
    again: Path | None = None,
    say: Say = print,
) -> bool:
    """Check the cells of a table or figure that a text names (`fitting`): says every comparison; True if none failed.

    study       of what is stored (only_stored)
    replicates  whose policies are played or trained again [all]; the table's numbers are always built from all
    again       train the policies (of Table 3: measure) once more in this folder, instead of playing the stored ones
    SettingsError for an unknown name or cell, RunError where there is nothing to compare.
    """
    name, folder = re.sub("[^a-z0-9-]", "", name.lower()), study.folder
    known = [*(name for name, table in TABLES.items() if isinstance(table, Table)), TIMES, SETTINGS, *ATTACK_OF]
    if name not in known:
        raise SettingsError(f"unknown table or figure {name!r}: choose among {', '.join(sorted(known))}")
    if again and again.resolve() == folder.resolve():
        raise SettingsError(f"--into {again.parent}: the policies to compare with are there, expected another folder")
    file = folder / "figures" / f"{name}.png" if name in ATTACK_OF else folder / "tables" / f"{name}.csv"
    stored = runs_of(study, name)
    cells = pd.DataFrame([_place(run) for run in stored]).drop_duplicates(ignore_index=True)
    cells = cells[cells["attack"] != "clean"] if "attack" in cells else cells
    if not file.is_file() or (cells.empty and (cell or name not in (SETTINGS, *ATTACK_OF))):
        raise RunError(
            f"{file}: {'none of its runs is stored' if file.is_file() else 'no such file'}, expected it with its runs: "
            "give another --profile or --output, or make them with saferule run"
        )
    chosen = fitting(cell, cells) if len(cells) else cells
    places = [*chosen.to_dict("records"), *chosen.assign(attack="clean", ratio=0.0).to_dict("records")]
    runs = [run for run in stored if _place(run) in places]
    known = list(dict.fromkeys(run.policy.replicate for run in runs if isinstance(run, EvaluationRun)))
    if unknown := [number for number in replicates if number not in known]:
        raise SettingsError(
            f"--replicates {unknown[0]}: no policies of it, expected among {', '.join(map(str, known))}: leave it out"
        )
    say(" ".join([f"{name} of profile {study.name}:", *map(name_of, chosen.to_dict("records"))]))
    outcomes = chain(
        _files(study.store, runs),
        _timed(study, runs, again, say) if name == TIMES else _episodes(study, runs, replicates, again, say),
        _picture(study, name, file) if name in ATTACK_OF else _numbers(study, name, runs, chosen, file),
    )
    passed = True
    for outcome in outcomes:
        passed &= outcome.passed is not False
        say(str(outcome))
    say("PASS" if passed else "FAIL")
    return passed


def _place(run: EvaluationRun | TimingRun) -> dict[str, Any]:
    """The run's cell; of a clean policy, which belongs to several, with the attack "clean"."""
    about = run.policy if isinstance(run, EvaluationRun) else run
    return {name: getattr(about, name) for name in CELL if hasattr(about, name)}


def _files(store: Store, runs: Sequence[EvaluationRun | TimingRun]) -> Iterator[Outcome]:
    policies = [run.policy for run in runs if isinstance(run, EvaluationRun) and store.there(run.policy)]
    damage = [sentence for run in (*runs, *policies) for sentence in store.verify(run)]
    yield from (Outcome(False, "file", sentence) for sentence in damage)
    if runs and not damage:
        yield Outcome(True, "files", f"all of {len(runs) + len(policies)} runs have the SHA-256 they were written with")


def _episodes(
    study: Study, runs: Sequence[EvaluationRun], replicates: Sequence[int], again: Path | None, say: Say
) -> Iterator[Outcome]:
    store = study.store
    asked = [run for run in runs if not replicates or run.policy.replicate in replicates]
    some = [run for run in asked if again or (store.folder(run.policy) / AGENT).is_file()]
    if left := len(asked) - len(some):
        yield Outcome(None, f"episodes of {left} policies", "no networks are stored, rows only: --retrain makes them")
    some = [run for run in some if not store.verify(run) and (again or not store.verify(run.policy))]
    if not some:
        return
    rows, failed = made(study, some, Store(again), say) if again else played(study, some)
    yield from failed
    if rows.empty:
        return
    committed, machines = results.episodes(store, some), {store.meta(run)["machine"]["device"]: None for run in some}
    committed = committed[committed["final"]]
    found = means_again(committed, rows) if again else episodes_again(committed, rows, {*machines} == {processor()})
    yield from found
    if any("close" in outcome.why for outcome in found):
        there = " and ".join(machines)
        yield Outcome(None, "processor", f"the committed episodes were played on {there}, these on {processor()}")


def _timed(study: Study, runs: Sequence[TimingRun], again: Path | None, say: Say) -> Iterator[Outcome]:
    if again is None:
        yield Outcome(None, "times", "not measured again without --retrain")
        return
    store = Store(again)
    make(runs, replace(study.workspace, store=store), say=say)
    yield from times_again(results.times(study.store, runs), results.times(store, runs))


def _numbers(study: Study, name: str, runs: Sequence, chosen: pd.DataFrame, file: Path) -> Iterator[Outcome]:
    if any(study.store.verify(run) for run in runs):
        yield Outcome(False, name, DAMAGED)
        return
    committed = pd.read_csv(file, float_precision="round_trip")
    if wrong := {*committed["profile"]} - {study.name}:
        why = f"is of profile {min(wrong)}, expected {study.name}: give the same --set as when it was made"
        yield Outcome(False, file.name, why)
        return
    yield from numbers_again(*(t.merge(chosen) if len(chosen) else t for t in (committed, built(study, name, runs))))
    yield from _beside(file, study.texts(name, committed))


def _beside(file: Path, contents: Mapping[str, bytes]) -> Iterator[Outcome]:
    """Whether the files beside one, by their suffixes, are byte for byte what is made from the same."""
    for suffix, content in contents.items():
        if (page := file.with_suffix(suffix)).is_file():
            same = page.read_bytes() == content
            yield Outcome(
                same, page.name, "made again, every byte is equal" if same else f"is not what {file.name} says"
            )


def _picture(study: Study, name: str, file: Path) -> Iterator[Outcome]:
    """From the episodes under all attacks: its legend has the methods of all figures."""
    runs = runs_of(study, EVERY)
    if any(study.store.verify(run) for run in runs):
        yield Outcome(False, name, DAMAGED)
        return
    episodes = late(results.episodes(study.store, runs))
    ((_, figure),) = FIGURES[name].figures(TABLES[EVERY].build(episodes, study.asked), replicate_means(episodes))
    same, why = pixels_again(file.read_bytes(), png(figure, study.caption))
    yield Outcome(same, name, why)
    yield from _beside(file, {".svg": svg(figure)})
