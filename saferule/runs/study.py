"""What a notebook works with: the runs of one profile, made where they are missing, and the place for its results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from saferule.attack.poison import ForgetSet
from saferule.data.schema import Dataset
from saferule.files import write_bytes
from saferule.paper import TABLE7
from saferule.profiles import Profile, get_profile
from saferule.report.labels import ATTACKS
from saferule.report.tables import provenance
from saferule.runs import plan
from saferule.runs.cells import Policy, Relearning, Training, Unlearning
from saferule.runs.engine import Engine, identity
from saferule.runs.groups import cores
from saferule.runs.interruptible import snapshot_steps
from saferule.runs.inventory import REPAIRS, ablated, audited
from saferule.runs.places import default_data_folder, project_root
from saferule.runs.store import Store
from saferule.sim import get_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from saferule.report.videos import Film

CURVE = "learning_curve.json"  # beside an adversary


class Study:
    """One profile with its changes.

    profile                         smoke, cpu or paper
    tasks, ..., seeds               choose among the profile's; None takes all of them
    output                          root of the results, by default the checkout's ``artifacts``
    data                            folder of the datasets, by default ``artifacts/data``, or where dsrl keeps its own
    changes                         {field: value} for other fields of the profile
    """

    def __init__(
        self,
        profile: str = "smoke",
        tasks: Sequence[str] | None = None,
        backbones: Sequence[str] | None = None,
        attacks: Sequence[str] | None = None,
        ratios: Sequence[float] | None = None,
        seeds: Sequence[int] | None = None,
        *,
        output: str | Path | None = None,
        data: str | Path | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = {"tasks": tasks, "backbones": backbones, "attacks": attacks, "ratios": ratios, "seeds": seeds}
        self.changes = {name: value for name, value in (dict(changes or {}) | chosen).items() if value is not None}
        self.profile: Profile = get_profile(profile, **self.changes)
        self.folder = Path(output or project_root() / "artifacts") / profile
        self.data_folder = Path(data or default_data_folder(self.profile))
        self.store = Store(self.folder)
        self.engine = Engine(self.store, self.data_folder)

    @property
    def name(self) -> str:
        """The profile's name with what was changed, for tables."""
        changed = ", ".join(f"{name}={_plain(value)}" for name, value in sorted(self.changes.items()))
        return self.profile.name + (f" ({changed})" if changed else "")

    # Data and attack

    def dataset(self, task: str) -> Dataset:
        """The clean data D of a task."""
        return self.engine.dataset(task)

    def forget_sets(self, task: str) -> list[ForgetSet]:
        """D_f for every attack and ratio."""
        data, profile = self.dataset(task), self.profile
        pairs = product(profile.attacks, profile.ratios)
        with self.store.lock():
            return self.engine.forget_sets([plan.forget_set(profile, data, task, a, r) for a, r in pairs])

    def adversary_curves(self, task: str) -> pd.DataFrame:
        """Learning curves of the adversaries: attack, steps, scalar_return, return, cost, ..."""
        cells = [plan.adversary(self.profile, task, attack) for attack in self.profile.attacks]
        with self.store.lock():
            self.engine.adversaries(cells)
        rows = [
            {"attack": cell.attack} | row
            for cell in cells
            for row in json.loads((self.store.folder(cell) / CURVE).read_text())
        ]
        return pd.DataFrame(rows, columns=None if rows else ["attack", "steps", "scalar_return"])

    def adversary_films(self, task: str) -> list[Film]:
        """An episode of each adversary as a GIF, kept in ``videos/``; where there is none, a sentence says why.

        A kept one is shown on a machine that cannot draw the task, too.
        """
        from saferule.report.videos import Film, Job, film_adversaries, read
        from saferule.sim.graphics import drawing_problem

        if not self.profile.videos:
            return [Film(None, f"{task}: no films. Videos are switched off (videos=false).")]
        cells = [plan.adversary(self.profile, task, attack) for attack in self.profile.attacks]
        folders = [self.store.folder(cell) for cell in cells]
        jobs = [
            Job(folder, self.folder / "videos" / f"{folder.name}.gif", cell.attack, f"{task}, {ATTACKS[cell.attack]}")
            for cell, folder in zip(cells, folders, strict=True)
        ]
        kept = {job: film for job in jobs if (film := read(job.film))}
        missing = {job: cell for job, cell in zip(jobs, cells, strict=True) if job not in kept}
        if missing and (problem := drawing_problem(get_task(task))):
            names = ", ".join(ATTACKS[job.attack] for job in missing)
            return [*kept.values(), Film(None, f"{task}: no film of {names}. {problem}")]
        if missing:
            with self.store.lock():
                self.engine.adversaries(list(missing.values()))
        return film_adversaries(jobs, cores())

    # Policies

    def trained(self) -> list[Training]:
        """The policies of all tasks and backbones, clean and poisoned."""
        return self._train(self.profile, clean=True)

    def _train(self, profile: Profile, *, clean: bool) -> list[Training]:
        pairs = product(profile.tasks, profile.backbones)
        cells = [cell for t, b in pairs for cell in plan.trainings(profile, self.dataset(t), t, b, clean=clean)]
        with self.store.lock():
            self.engine.train(cells)
        return cells

    def repaired(self, policies: Sequence[Training], methods: Sequence[str]) -> list[Unlearning]:
        """Every method on every poisoned policy."""
        cells = plan.unlearnings(self.profile, policies, methods)
        with self.store.lock():
            self.engine.unlearn(cells)
        return cells

    def readings(self, policies: Sequence[Training]) -> list[Unlearning]:
        """Safe-RULE under every reading that makes another run, on one poisoned policy per backbone."""
        cells = plan.readings(self.profile, policies)
        with self.store.lock():
            self.engine.unlearn(cells)
        return cells

    def distances(self, repairs: Sequence[Unlearning]) -> pd.DataFrame:
        """How far the actions of finished repairs are from those of Safe-RULE as it is by default (`runs.actions`)."""
        from saferule.runs.actions import distances

        default = [cell for cell in repairs if cell.method == "safe-rule" and not cell.readings]
        return distances(self.engine, repairs, default)

    def ablation_policies(self) -> list[Training]:
        """The poisoned policies that the ablations start from (`inventory.ablated`)."""
        return self._train(ablated(self.profile), clean=False)

    def audited(self) -> tuple[list[Training], list[Training | Unlearning]]:
        """The clean policies, of two seeds at least, and those that the audit asks about (`inventory.audited`)."""
        profile = self.profile
        pairs = product(profile.tasks, profile.backbones)
        clean = [cell for t, b in pairs for cell in plan.clean_policies(profile, self.dataset(t), t, b)]
        with self.store.lock():
            self.engine.train(clean)
        poisoned = self.ablation_policies()
        return clean, audited(profile, clean, poisoned, self.repaired(poisoned, REPAIRS))

    def relearned(self, policies: Sequence[Training | Unlearning]) -> list[Relearning]:
        """The policies trained further on the poisoned data."""
        cells = plan.relearnings(self.profile, policies)
        with self.store.lock():
            self.engine.relearn(cells)
        return cells

    def stopped(self, policies: Sequence[Policy]) -> list[str]:
        """A sentence for each policy whose run ended early because a value was not finite."""
        return [meta["stopped"] for meta in map(self.store.meta, policies) if "stopped" in meta]

    # Results

    def episodes(self, policies: Sequence[Training | Unlearning]) -> pd.DataFrame:
        """The final evaluation: one row per episode."""
        with self.store.lock():
            return self.engine.evaluate(plan.evaluations(self.profile, policies))

    def side_by_side(self, others: Sequence[Unlearning], usual: Sequence[Unlearning]) -> pd.DataFrame:
        """Final episodes of ``others``, as few as of a snapshot, and those of ``usual`` on the same seeds."""
        profile = self.profile
        few = plan.curve(profile, others, [None])
        with self.store.lock():
            rows = self.engine.evaluate([*plan.evaluations(profile, usual), *few])
        return _few(rows, profile)

    def curves(self, policies: Sequence[Training | Unlearning]) -> pd.DataFrame:
        """Episodes of the snapshots and of the final policy, on the same seeds; for a repair also of its start."""
        profile = self.profile
        cells = [e for p in policies for e in plan.curve(profile, [p], snapshot_steps(self.store, p))]
        with self.store.lock():
            parts = [self.engine.evaluate([*cells, *plan.evaluations(profile, policies)])]
        for policy in policies:
            if isinstance(policy, Unlearning):
                parts.append(self.episodes([policy.training]).assign(method=policy.method, step=0))
        rows = pd.concat(parts, ignore_index=True)
        return _few(rows, profile)

    def relearning_curves(self, cells: Sequence[Relearning]) -> pd.DataFrame:
        """Episodes while policies relearn, the same few seeds at every step; step 0 is the policy itself."""
        profile = replace(self.profile, curve_episodes=self.profile.relearning_episodes)
        later = [e for c in cells for e in plan.curve(profile, [c], [*snapshot_steps(self.store, c), None])]
        starts = plan.evaluations(profile, [cell.policy for cell in cells])
        with self.store.lock():
            self.engine.evaluate([*starts, *later])
            parts = [self.engine.evaluate(later)]
            for cell, start in zip(cells, starts, strict=True):
                parts.append(self.engine.evaluate([start]).assign(**identity(cell), step=0))
        return _few(pd.concat(parts, ignore_index=True), profile)

    def logs(self, policies: Sequence[Training | Unlearning]) -> pd.DataFrame:
        """What the losses reported."""
        return self.engine.logs(policies)

    # What is shown

    def made_with(self) -> Any:
        """Markdown: profile, data, seeds, steps and episodes, and what that is worth."""
        from IPython.display import Markdown

        p = self.profile
        data = ", ".join(f"{t} `{self.dataset(t).digest()[:12]}` ({len(self.dataset(t))} steps)" for t in p.tasks)
        seeds = ", ".join(map(str, p.seeds))
        steps = {task: p.steps_of_adversary(task) for task in p.tasks}
        alike = len(set(steps.values())) == 1
        adversary = str(steps[p.tasks[0]]) if alike else ", ".join(f"{n} ({task})" for task, n in steps.items())
        lines = [
            f"**Profile {self.name}.** Data: {data}. Training seeds: {seeds}. Gradient steps: {p.training_steps} of "
            f"training, {p.unlearning_steps} of unlearning. Adversary: {adversary} simulator steps. "
            f"Evaluation: {p.episodes} episodes per policy ({p.curve_episodes} per snapshot), the same seeds for every "
            f"policy, deterministic, cost limit {TABLE7.kappa:g}.",
        ]
        if p.name != "paper" or self.changes:
            lines.append(
                f"This is a reduced run (the paper: {TABLE7.training_steps} training, {TABLE7.unlearning_steps} "
                "unlearning steps), **not the paper's result**."
            )
        if len(p.seeds) < 3:
            lines.append(f"n = {len(p.seeds)} training seed{'s' * (len(p.seeds) > 1)}: no interval is given.")
        return Markdown("\n\n".join(lines))

    def save_table(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write the table with its provenance to ``tables/<name>.csv``; returns what was written."""
        told = provenance(frame, self.name, {task: self.dataset(task).digest() for task in self.profile.tasks})
        (self.folder / "tables").mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / "tables" / f"{name}.csv", told.to_csv(index=False).encode())
        return told

    def show(self, figure: Figure, name: str) -> None:
        """Write the figure to ``figures/<name>.png`` and display that very image in the notebook."""
        from IPython.display import Image, display

        from saferule.report.canvas import png

        image = png(figure)
        (self.folder / "figures").mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / "figures" / f"{name}.png", image)
        display(Image(image, width=round(figure.get_figwidth() * 100), alt=str(figure.get_label()) or name))

    def show_films(self, films: Sequence[Film]) -> None:
        """Display the films side by side, embedded in the notebook, and the reasons for those that are missing."""
        from IPython.display import HTML, display

        from saferule.report.videos import as_html

        display(HTML(as_html(films)))


def _few(rows: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """The episodes on the seeds on which snapshots are evaluated."""
    return rows[rows["seed"].isin(profile.evaluation_seeds[: profile.curve_episodes])].reset_index(drop=True)


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
