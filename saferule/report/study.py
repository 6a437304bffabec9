"""The notebooks' face: the runs of one profile, made where they are missing, and what is shown of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Image, Markdown, display

from saferule.attack.adversary import CURVE_FILE
from saferule.attack.poison import ForgetSet, attack_reward
from saferule.data.schema import Dataset, clean_data
from saferule.files import write_bytes
from saferule.paper import TABLE7
from saferule.report.figures import FIGURES, OF_ATTACK
from saferule.report.layouts import latex, markdown
from saferule.report.style import ATTACKS, png, svg
from saferule.report.tables import TABLES, Table, data_points, late, provenance, readable, settings_layout
from saferule.report.timing import minutes, table3
from saferule.runs import results
from saferule.runs.engine import make
from saferule.runs.execute import cores, process_pool
from saferule.runs.experiment import Profile, ablated, ablated_condition, get_profile, plan, slices
from saferule.runs.places import known_data, workspace
from saferule.runs.spec import EvaluationRun, ForgetRun, Level, PolicyRun, Run, identity, lineage
from saferule.runs.work import forget_data
from saferule.sim.film import Job, as_html, film_adversary, film_all
from saferule.unlearn import METHODS


class Study:
    """One profile with its changes.

    profile                    smoke, cpu or paper
    tasks, ..., replicates     choose among the profile's; None takes all of them
    output                     root of the results, by default the checkout's ``artifacts``
    data                       folder of the datasets, by default ``artifacts/data``, or where dsrl keeps its own
    changes                    {field: value} for other fields of the profile
    only_stored                make nothing: what is not stored is left out, and `missing` names it
    """

    def __init__(
        self,
        profile: str = "smoke",
        tasks: Sequence[str] | None = None,
        backbones: Sequence[str] | None = None,
        attacks: Sequence[str] | None = None,
        ratios: Sequence[float] | None = None,
        replicates: Sequence[int] | None = None,
        *,
        output: str | Path | None = None,
        data: str | Path | None = None,
        changes: Mapping[str, Any] | None = None,
        only_stored: bool = False,
    ) -> None:
        chosen = {"tasks": tasks, "backbones": backbones, "attacks": attacks, "ratios": ratios}
        given = {name: value for name, value in (chosen | {"replicates": replicates}).items() if value is not None}
        self.changes = dict(changes or {}) | given
        self.profile: Profile = get_profile(profile, **self.changes)
        self.workspace = workspace(self.profile, output, data)
        self.store, self.folder = self.workspace.store, self.workspace.store.root
        self.only_stored = only_stored

    @property
    def name(self) -> str:
        """The profile's name with what was changed, for tables."""
        plain = {k: " ".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in self.changes.items()}
        changed = ", ".join(f"{name}={value}" for name, value in sorted(plain.items()))
        return self.profile.name + (f" ({changed})" if changed else "")

    @cached_property
    def plan(self) -> dict[str, list[Run]]:
        """What the profile asks for, by part (`saferule.runs.experiment.plan`)."""
        for task in self.profile.tasks:
            self.dataset(task)  # an error about one that is not there is better now
        return plan(self.profile, known_data(self.profile, self.workspace.data_folder)[0])

    # Runs

    def dataset(self, task: str) -> Dataset:
        """The clean data D of a task."""
        return clean_data(self.workspace.data_folder, task)

    def make(self, runs: Sequence[Run], level: Level = Level.RECORD) -> list[Run]:
        """The runs, made where they are missing, with what they build on; or those that are done (`only_stored`).

        level  how much of policies is read
        """
        if self.only_stored:
            done = self.store.seen()
            return [run for run in runs if done(run, level)]
        make(runs, self.workspace, level=level)
        return list(runs)

    def part(self, part: str, **which: str) -> list[PolicyRun]:
        """The policies of a part of the plan (`only` those), evaluated where that is missing."""
        return self._evaluated(self.only(self.plan[part], **which))

    def missing(self, part: str, **which: str) -> list[PolicyRun]:
        """The policies of a part that are asked for and neither stored nor evaluated."""
        asked, done = self.only(self.plan[part], **which), self.store.seen()
        return [run for run in asked if not done(self._evaluation_of.get(run, run))]

    def only(self, policies: Sequence[PolicyRun], **which: str) -> list[PolicyRun]:
        """The policies whose methods are declared so, such as start="fresh" or family="safe_rule"."""
        return [run for run in policies if which.items() <= vars(METHODS[run.method]).items()]

    def beside(self, policies: Sequence[PolicyRun], *parts: str) -> list[PolicyRun]:
        """The policies of these parts [main] that share data and replicate with any of the given; their clean ones."""
        return self._evaluated(self.asked_beside(policies, *parts))

    def asked_beside(self, policies: Sequence[PolicyRun], *parts: str) -> list[PolicyRun]:
        """The same, be they made or not."""

        def where(run: PolicyRun, forget: Any) -> tuple:
            return run.task, run.backbone, run.replicate, forget

        known = {where(run, forget) for run in policies for forget in (run.forget, None)}
        compared = [run for part in parts or ("main",) for run in self.plan[part]]
        return [run for run in compared if where(run, run.forget) in known]

    def inside(self, policies: Sequence[PolicyRun], whole: bool = False) -> list[PolicyRun]:
        """The policies that can be looked into: those whose networks and forget sets are there, made where missing.

        whole  not the networks that act alone, but critics, targets and snapshots too
        """
        return self.with_forget_sets(self.make(policies, Level.WHOLE if whole else Level.ACTING))

    def with_forget_sets(self, policies: Sequence[PolicyRun]) -> list[PolicyRun]:
        """Those of the policies whose D_f is there, made where missing, or that have none."""
        sets = set(self.make([run.forget for run in policies if isinstance(run.forget, ForgetRun)]))
        return [run for run in policies if run.forget in sets or not isinstance(run.forget, ForgetRun)]

    def _evaluated(self, policies: Sequence[PolicyRun]) -> list[PolicyRun]:
        """Those whose episodes are there, made where missing; those without an evaluation that are there themselves."""
        there = set(self.make([self._evaluation_of.get(policy, policy) for policy in policies]))
        return [policy for policy in policies if self._evaluation_of.get(policy, policy) in there]

    def _evaluations(self, policies: Sequence[PolicyRun]) -> list[EvaluationRun]:
        return self.make([self._evaluation_of[policy] for policy in policies if policy in self._evaluation_of])

    @cached_property
    def _evaluation_of(self) -> dict[PolicyRun, EvaluationRun]:
        return {run.policy: run for run in self.plan["evaluations"]}

    def ablated(self, policies: Sequence[PolicyRun]) -> list[PolicyRun]:
        """Those of the condition of the ablations (`saferule.runs.experiment.ablated`)."""
        return [run for run in policies if ablated(self.profile, run)]

    def forget_sets(self, task: str) -> list[tuple[int, ForgetSet]]:
        """D_f for every attack and ratio, each with its replicate."""
        runs = self.make([run for run in self.plan["forget sets"] if run.adversary.task == task])
        return [(run.adversary.seed, forget_data(self.store, run)) for run in runs]

    # Rows

    def adversary_curves(self) -> pd.DataFrame:
        """Learning curves of the adversaries: task, attack, replicate, steps, scalar_return, return, cost, ..."""
        rows = [
            {"task": run.task, "attack": run.attack, "replicate": run.seed} | row
            for run in self.make(self.plan["adversaries"])
            for row in json.loads((self.store.sound(run) / CURVE_FILE).read_bytes())
        ]
        return pd.DataFrame(rows, columns=None if rows else ["task", "attack", "replicate", "steps", "scalar_return"])

    def trajectories(self) -> pd.DataFrame:
        """Every trajectory of D and of the forget sets, of all tasks that have one (`tables.data_points`)."""
        limit = self.profile.cost_limit
        points = [data_points(t, self.dataset(t), self.forget_sets(t), limit) for t in self.profile.tasks]
        rows = pd.concat(points, ignore_index=True)
        return rows[rows["task"].isin(rows.loc[rows["set"] != "D", "task"])]

    def episodes(self, policies: Sequence[PolicyRun]) -> pd.DataFrame:
        """The final evaluation, one row per episode, with its last snapshots (`saferule.report.tables.late`)."""
        return late(results.episodes(self.store, self._evaluations(policies)))

    def acting(self, policies: Sequence[PolicyRun]) -> pd.DataFrame:
        """The final evaluation both ways, at the mode and as osrl-lib draws, of the policies that have both.

        One row per episode, column acting; none without a backbone that osrl-lib lets draw.
        """
        runs = self.make([run for run in self.plan["drawn evaluations"] if run.policy in set(policies)])
        if not runs:
            return pd.DataFrame()
        ways = {"drawn": results.episodes(self.store, runs), "mode": self.episodes([run.policy for run in runs])}
        return pd.concat([rows.assign(acting=way) for way, rows in ways.items()], ignore_index=True)

    def curves(self, policies: Sequence[PolicyRun]) -> pd.DataFrame:
        """Episodes on the way and at the end, on the same seeds; step 0 is the policy that one started from."""
        parts = [results.episodes(self.store, self._evaluations(policies))]
        on_the_way = parts[0].loc[~parts[0]["final"], "seed"]
        for run in policies:
            if run.start and (begun := self._evaluations([run.start])):
                rows = results.episodes(self.store, begun)
                parts.append(rows[rows["final"]].assign(**identity(run), step=0, final=False))
        rows = pd.concat(parts, ignore_index=True)
        return rows[rows["seed"].isin(on_the_way)] if len(on_the_way) else rows

    def logs(self, policies: Sequence[PolicyRun]) -> pd.DataFrame:
        """What the losses reported, one row per policy and logged step."""
        return results.logs(self.store, self.make(policies))

    def times(self) -> pd.DataFrame:
        """Table 3, measured where that is missing (`saferule.report.timing.table3`)."""
        return table3(results.times(self.store, self.make(self.plan["timing"])))

    def stopped(self, policies: Sequence[PolicyRun]) -> None:
        """Print a sentence for each policy whose run ended early because a value was not finite."""
        for sentence in results.stopped(self.store, filter(self.store.seen(), policies)):
            print(sentence)

    # What is shown

    def made_with(self) -> None:
        """Show `about`."""
        display(Markdown(self.about))

    @property
    def about(self) -> str:
        """Profile, data, replicates, steps and episodes, and what that is worth, in Markdown."""
        p = self.profile
        data = ", ".join(f"{t} `{self.dataset(t).digest()[:12]}` ({len(self.dataset(t))} steps)" for t in p.tasks)
        steps = {run.task: run.steps for run in self.plan["adversaries"]}
        adversary = ", ".join(f"{count} ({task})" for task, count in steps.items())
        lines = [
            f"**Profile {self.name}.** Data: {data}. Replicates: {', '.join(map(str, p.replicates))}, each with "
            f"its own adversary, forget sets and seeds. Gradient steps: {p.training_steps} of training, "
            f"{p.unlearning_steps} of unlearning. Simulator steps of the adversaries: {adversary}. Evaluation: "
            f"{p.episodes} episodes per policy ({p.curve_episodes} per snapshot), the same seeds for every policy, "
            f"deterministic, cost limit {p.cost_limit:g}.",
        ]
        if p.slices:
            told = [
                f"({number}) {', '.join(own.tasks)}; {', '.join(own.attacks)}; {', '.join(map(str, own.ratios))}; "
                f"replicates {', '.join(map(str, own.replicates))}; ablations at {ablated_condition(own)[1]}"
                for number, own in enumerate(slices(p), 1)
            ]
            lines.append(f"Made in slices (tasks; attacks; ratios; replicates): {'. '.join(told)}.")
        if self.only_stored:
            policies = self.plan["evaluations"]
            lines.append(f"Shown is what is stored: {len(self.make(policies))} of {len(policies)} evaluated policies.")
            damaged = [run for run in lineage(policies) if self.store.damage(run)]
            if damaged:
                lines.append(
                    f"**{len(damaged)} damaged runs and what they were for are left out** (`saferule status`)."
                )
        if p.name != "paper" or self.changes:
            lines.append(
                f"This is a reduced run (the paper: {TABLE7.training_steps} training, {TABLE7.unlearning_steps} "
                "unlearning steps), **not the paper's result**."
            )
        return "\n\n".join(lines)

    def save_table(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write the table with its provenance to ``tables/<name>.csv``; returns what was written."""
        digests = {task: self.dataset(task).digest() for task in self.profile.tasks}
        return self.save(provenance(frame, self.name, digests), name)

    def save(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write a table as it is to ``tables/<name>.csv``; returns it."""
        write_bytes(self.folder / "tables" / f"{name}.csv", frame.to_csv(index=False).encode())
        return frame

    def table(self, name: str, rows: pd.DataFrame, file: str = "") -> None:
        """Build a table of `TABLES` from rows of episodes, save it under its name (or ``file``) and display it."""
        table = TABLES[name]
        if isinstance(table, Table):
            self.arranged(name, self.save_table(table.build(rows, self.asked), file or name))
        else:
            self.display(self.save_table(table(rows), file or name))

    def arranged(self, name: str, built: pd.DataFrame) -> None:
        """Write a table in the paper's layout to ``tables/<name>.md`` and ``.tex``, display it, with its caption."""
        wide, caption = self.layout(name, built)
        for suffix, content in self.texts(name, built).items():
            write_bytes(self.folder / "tables" / f"{name}{suffix}", content)
        display(Markdown(caption))
        self._display(wide)

    def layout(self, name: str, built: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        """A table as it is saved in the paper's layout, and its caption."""
        if name == "table3":
            machines = ", ".join(built["machine"].unique())
            wide, title = minutes(built, self.plan["timing"]), f"Minutes on {machines}"
        elif name == "table7":
            wide, title = settings_layout(built), "Settings, the paper's and those in force"
        else:
            wide, title = TABLES[name].shown(built), TABLES[name].title
        number = f"Table {name.removeprefix('table')}. " if name.startswith("table") else ""
        return wide, f"{number}{title}. {self.caption}{shown(built)}"

    def texts(self, name: str, built: pd.DataFrame) -> dict[str, bytes]:
        """{suffix: content} of the files beside the CSV of a table that has a layout."""
        wide, caption = self.layout(name, built)
        return {".md": markdown(wide, caption).encode(), ".tex": latex(wide, caption, name).encode()}

    @cached_property
    def asked(self) -> pd.DataFrame:
        """One row for each policy that tables are about, stored or not."""
        return pd.DataFrame(identity(run) for part in ("main", "controls", "ablations") for run in self.plan[part])

    @property
    def caption(self) -> str:
        """What every table and figure says below its title."""
        p, data = self.profile, ", ".join(f"{task} {self.dataset(task).digest()[:12]}" for task in self.profile.tasks)
        replicates = ", ".join(map(str, sorted(self.asked["replicate"].unique())))
        asked = f"asked for are replicates {replicates} and {p.episodes} episodes per policy"
        return f"Profile {self.name}; data {data}; cost limit {p.cost_limit:g}; {asked}."

    def display(self, frame: pd.DataFrame) -> None:
        """Display all rows of a table with names as the paper writes them and rounded numbers."""
        self._display(readable(frame))

    def _display(self, frame: pd.DataFrame) -> None:
        with pd.option_context("display.max_rows", None, "display.max_columns", None, "display.max_colwidth", None):
            display(frame)

    def films(self) -> None:
        """Show an episode of each adversary of the first replicate, kept in ``videos/``; without it, say why not."""
        runs = [run for run in self.plan["adversaries"] if run.seed == self.profile.replicates[0]]
        if not self.profile.videos:
            return print("No films: videos are switched off (videos=false).")
        jobs = []
        for run in self.make(runs):
            folder, title = self.store.folder(run), f"{run.task}, {ATTACKS[run.attack]}"
            draw = partial(film_adversary, folder, partial(attack_reward, run.attack))
            jobs.append(Job(self.folder / "videos" / f"{folder.name}.gif", title, draw))
        with process_pool(cores()) as pool:
            display(HTML(as_html(film_all(jobs, pool))))

    def figure(self, name: str, *rows: pd.DataFrame) -> None:
        """Draw a figure of `FIGURES` for each task (and backbone), write ``figures/<name>-*.png`` and display that."""
        for where, figure in FIGURES[name].figures(*rows):
            image = png(figure, self.caption)
            write_bytes(self.folder / "figures" / f"{name}{where}.png", image)
            if name in OF_ATTACK.values():
                write_bytes(self.folder / "figures" / f"{name}.svg", svg(figure))
            alt = str(figure.get_label()).replace("\n", ". ")
            display(Image(image, width=round(figure.get_figwidth() * 100), alt=alt))


def shown(table: pd.DataFrame) -> str:
    """A sentence: the replicates (column replicate or replicates) and the numbers of episodes in a table's rows."""
    rows = table[table["episodes"].notna()] if "episodes" in table else table[:0]
    if not len(rows):
        return ""
    names = rows["replicates"] if "replicates" in rows else rows["replicate"]
    numbers = sorted({int(float(number)) for text in names.astype(str) for number in text.split()})
    least, most = (f"{episodes:.0f}" for episodes in rows["episodes"].agg(["min", "max"]))
    played = most if least == most else f"{least} to {most}"
    return f" Shown are replicates {', '.join(map(str, numbers))}; {played} episodes per policy."
