"""What of a grid's results is published: copied from the store in which it was made to the one that is committed.

Everything that is shown is computed from what is published; the rest is made again from it by the code that made it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from saferule.agents.checkpoint import acting_part, read, starting_part, write
from saferule.errors import RunError, SaferuleError
from saferule.runs.experiment import Data, Profile, ablated, asked
from saferule.runs.interruptible import AGENT, SNAPSHOTS
from saferule.runs.spec import ForgetRun, Level, PolicyRun, Run, read_by
from saferule.runs.store import KEPT, RECORD, SUMS, Store, write_json

# Methods whose networks one can watch.
WATCHED = ("clean", "poisoned", "fine-tuning", "safe-rule", "safe-rule-described")


def published(profile: Profile, run: Run) -> Level | None:
    """How much of a run is published; None: nothing of a forget set, which its adversary makes again in a minute.

    Of every policy its record and log; the networks that act of some methods; and all of the poisoned policies of the
    ablated condition, so that a repair can be made again.
    """
    if not isinstance(run, PolicyRun):
        return None if isinstance(run, ForgetRun) else Level.WHOLE
    if run.method == "poisoned" and ablated(profile, run):
        return Level.WHOLE
    return Level.ACTING if run.method in WATCHED and not run.readings else Level.RECORD


@dataclass
class Report:
    """What was copied (by kind: runs, bytes), what was there already, what is missing, and why a run was refused."""

    copied: Counter[str] = field(default_factory=Counter)
    size: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    missing: int = 0
    refused: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The same in words."""
        told = [f"{kind:11} {n:6} runs, {self.size[kind] / 1e6:.1f} MB" for kind, n in sorted(self.copied.items())]
        total = f"{sum(self.copied.values())} runs copied, {sum(self.size.values()) / 1e6:.1f} MB"
        return [*told, f"{total}; {self.kept} were there already, {self.missing} are not made yet", *self.refused]


def publish(profile: Profile, known: Mapping[str, Data], source: Store, target: Store) -> Report:
    """Copy what is published of a profile's finished runs from one store to another; what is there stays as it is.

    Only runs that this code would make, whose files are as they were written. RunError when there is no source.
    """
    if not (source.root / "runs").is_dir():
        raise RunError(f"{source.root}: no runs there, expected a store of profile {profile.name}: give its artifacts")
    report, refused, sound = Report(), set[Run](), source.seen()
    with target.lock():
        for run in dict.fromkeys(run for _, run in asked(profile, known)):
            level = published(profile, run)
            if level is None:
                continue
            if not source.there(run):
                report.missing += not target.done(run)
                continue
            sentences = source.verify(run)
            if not sentences and (not sound(run) or not refused.isdisjoint(read_by(run))):
                sentences = [f"{source.folder(run)}: what it was made from is damaged"]
            if not sentences:
                level = min(level, source.level(run))
                if target.done(run, level):
                    report.kept += 1
                    continue
                try:
                    copy(run, level, source, target)
                except SaferuleError as error:
                    sentences = [str(error)]
            if sentences:
                refused.add(run)
                report.refused += [f"refused: {sentence}" for sentence in sentences]
                continue
            report.copied[run.KIND] += 1
            report.size[run.KIND] += sum(p.stat().st_size for p in target.folder(run).rglob("*") if p.is_file())
    return report


def copy(run: Run, level: Level, source: Store, target: Store) -> None:
    """Copy so much of a finished run from one store to another."""
    folder = source.folder(run)
    with target.draft(run) as draft:
        write_json(draft / RECORD, source.meta(run) | ({KEPT: level.name} if isinstance(run, PolicyRun) else {}))
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder)
            if str(name) in (RECORD, SUMS) or (SNAPSHOTS in name.parts and level < Level.SNAPSHOTS):
                continue
            (draft / name).parent.mkdir(exist_ok=True)
            if str(name) != AGENT or not isinstance(run, PolicyRun):
                shutil.copy(path, draft / name)
            elif level >= Level.ACTING:
                _copy_agent(path, draft / name, run, level)


def _copy_agent(path: Path, final: Path, run: PolicyRun, level: Level) -> None:
    tensors, meta = read(path)
    write(final, starting_part(tensors) if level == Level.WHOLE else acting_part(tensors, run.backbone), meta)
