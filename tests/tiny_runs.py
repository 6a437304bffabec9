"""Tiny runs on tiny real data, and how two stores are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from helpers import assert_same_state

from saferule.agents.checkpoint import load_agent, read
from saferule.runs import engine, execute
from saferule.runs.interruptible import AGENT
from saferule.runs.spec import AdversaryRun, ForgetRun, Level, PolicyRun, frozen
from saferule.runs.store import Store
from saferule.runs.work import Workspace

TRIED = ("cpq", "bcq-lag")
CONFIG = frozen(hidden=(8, 8), vae_hidden=8, batch_size=8, samples=3)
STEPS, LOG_EVERY, SNAPSHOT, KILLED_IN, KEPT = 28, 4, 14, 19, 16
LOGGED = [4, 8, 12, 14, 16, 20, 24, 28]  # a snapshot is logged too


def trainings(digest: str, backbone: str) -> list[PolicyRun]:
    """One clean and two poisoned policies."""
    forget = ForgetRun(AdversaryRun("CarCircle", "max_cost", 1000), digest, 0.15, 2, 0.99, ())
    clean = PolicyRun("CarCircle", backbone, digest, None, "clean", STEPS, 0, config=CONFIG, snapshots=1)
    return [clean, *(replace(clean, forget=forget, method="poisoned", replicate=r) for r in (0, 1))]


def applied(method: str, start: PolicyRun, **changes) -> PolicyRun:
    return replace(start, method=method, start=start, **changes)


def repairs(digest: str, backbone: str) -> list[PolicyRun]:
    """Two variants of Safe-RULE on each poisoned policy."""
    return [applied(m, run) for run in trainings(digest, backbone)[1:] for m in ("safe-rule", "no-critic")]


def relearnings(digest: str, backbone: str) -> list[PolicyRun]:
    """Of replicate 0 the clean, poisoned and repaired policy, of replicate 1 the poisoned one."""
    clean, poisoned, other = trainings(digest, backbone)
    starts = [clean, poisoned, repairs(digest, backbone)[0], other]
    return [applied("relearn", start, forget=poisoned.forget) for start in starts]


def make_from(data_folder: Path, runs, root: Path, say=lambda line: None, executor=None, level=Level.WHOLE) -> Store:
    workspace = Workspace(Store(root), data_folder, "cpu")
    engine.make(runs, workspace, executor or execute.InProcess(), say, level)
    return workspace.store


def agent_of(root: Path, run: PolicyRun):
    return load_agent(Store(root).folder(run) / AGENT)


def moved(before, after) -> set[str]:
    """Names of the networks of which a parameter differs."""
    return {net for net in {*before, *after} if any(not torch.equal(before[net][k], after[net][k]) for k in after[net])}


def files(root: Path) -> dict[Path, int]:
    """When each file below was last changed."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name != ".lock"}


def assert_same_results(run, root: Path, other: Path) -> None:
    """Equal parameters, optimisers, generators, snapshots and log, bit for bit."""
    one, two = (Store(r).folder(run) for r in (root, other))
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for name in names:
        if name.suffix == ".safetensors":
            (tensors, meta), (tensors_two, meta_two) = read(one / name), read(two / name)
            assert_same_state(tensors, tensors_two)
            assert meta == meta_two
        elif name.name == "log.csv":
            assert (one / name).read_text() == (two / name).read_text()
    assert {path.name for path in one.iterdir()} == {AGENT, "log.csv", "run.json", "SHA256SUMS", "snapshots"}
