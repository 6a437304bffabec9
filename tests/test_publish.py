"""What is published of a store: how much of which run, checked on the way, nothing twice and nothing foreign."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import files
from typer.testing import CliRunner

from saferule.agents import get_backbone
from saferule.agents.checkpoint import load_agent, load_networks, save_agent
from saferule.agents.population import create
from saferule.cli import app
from saferule.errors import RunError
from saferule.runs.experiment import Data, asked, get_profile, plan
from saferule.runs.interruptible import AGENT, LOG
from saferule.runs.publish import publish
from saferule.runs.spec import AdversaryRun, EvaluationRun, ForgetRun, Level, PolicyRun, config, key
from saferule.runs.store import Store, write_sums
from saferule.runs.work import EPISODES, snapshot

CHANGES = {"backbones": "cpq", "snapshots": 1}
PROFILE = replace(get_profile("smoke", **CHANGES), config=(("hidden", (8, 8)), ("vae_hidden", 8)))


@pytest.fixture(scope="module")
def known(car_data) -> dict[str, Data]:
    return {"CarCircle": Data(car_data.digest(), len(car_data))}


@pytest.fixture
def source(tmp_path, known) -> Store:
    """A run of each kind that is told apart, with real agents in full."""
    store, runs = Store(tmp_path / "source" / "smoke"), list(dict.fromkeys(run for _, run in asked(PROFILE, known)))
    methods = ("clean", "poisoned", "safe-rule", "reward-only", "keep-only", "percentile-0", "relearn")
    first = {run.method: run for run in reversed(runs) if isinstance(run, PolicyRun) and not run.readings}
    policies = [first[method] for method in methods] + [
        run for run in runs if getattr(run, "readings", ()) and isinstance(run, PolicyRun)
    ][:1]
    for run in policies:
        agent = create(get_backbone("cpq"), config(run), [run.replicate])
        with store.write(run, seconds=1.0) as folder:
            for path in (folder / AGENT, folder / "snapshots" / f"{run.snapshot_steps[0]}.safetensors"):
                save_agent(agent, 0, path, run.task, run.backbone, config(run), {"run": key(run)})
            (folder / LOG).write_text("step\n1\n")
    others = [next(run for run in runs if isinstance(run, kind)) for kind in (AdversaryRun, ForgetRun)]
    others += [run for run in runs if isinstance(run, EvaluationRun) and run.policy in policies]
    for run in others:
        with store.write(run) as folder:
            (folder / EPISODES).write_text("cost\n1\n")
    return store


def levels(store: Store, known) -> dict[str, Level]:
    """Of every policy in a store, by method; "readings" for those under other readings."""
    policies = [run for part, run in asked(PROFILE, known) if isinstance(run, PolicyRun) and store.done(run)]
    return {"readings" if run.readings else run.method: store.level(run) for run in policies}


def test_of_each_run_so_much_is_published(source, tmp_path, known):
    target = Store(tmp_path / "target")
    report = publish(PROFILE, known, source, target)
    acting = dict.fromkeys(("clean", "safe-rule"), Level.ACTING)
    recorded = dict.fromkeys(("reward-only", "keep-only", "percentile-0", "relearn", "readings"), Level.RECORD)
    assert levels(target, known) == acting | recorded | {"poisoned": Level.WHOLE}
    asked_for = {run for _, run in asked(PROFILE, known)}
    made = {run for run in asked_for if source.done(run)}
    assert {run for run in asked_for if target.done(run)} == {r for r in made if not isinstance(r, ForgetRun)}
    assert all(target.verify(run) == [] for run in asked_for if target.done(run)) and report.refused == []
    assert report.copied == {"policy": 8, "evaluation": 8, "adversary": 1} and report.kept == 0
    assert report.missing == len(asked_for) - len(made)
    assert sum(report.size.values()) == sum(p.stat().st_size for p in target.root.glob("runs/**/*") if p.is_file())
    clean, poisoned, relearned = (
        next(run for run in asked_for if isinstance(run, PolicyRun) and run.method == method and target.done(run))
        for method in ("clean", "poisoned", "relearn")
    )
    folder = target.folder(relearned)
    assert sorted(p.name for p in folder.iterdir()) == ["SHA256SUMS", LOG, "run.json"]
    assert target.meta(clean) == source.meta(clean) | {"kept": "ACTING"}
    networks, full = (load_networks(store.folder(clean) / AGENT).nets for store in (target, source))
    assert (
        set(networks) == set(get_backbone("cpq").ACTING) and not snapshot(target, clean, *clean.snapshot_steps).exists()
    )
    assert all(
        leaf.dtype == torch.float32 and torch.equal(leaf, full["actor"][k]) for k, leaf in networks["actor"].items()
    )
    again = load_agent(target.folder(poisoned) / AGENT).population
    assert again is not None and not again.optimisers and snapshot(target, poisoned, *poisoned.snapshot_steps).is_file()


def test_what_is_there_is_not_copied_again_and_what_came_since_is(source, tmp_path, known):
    target, second = Store(tmp_path / "target"), Store(tmp_path / "second")
    publish(PROFILE, known, source, target)
    before = files(target.root)
    report = publish(PROFILE, known, source, target)
    assert files(target.root) == before and not report.copied and report.kept == 17
    publish(PROFILE, known, target, second)  # what is published can be published
    assert levels(second, known) == levels(target, known)
    run = next(run for run in plan(PROFILE, known)["main"] if run.method == "clean")
    (target.folder(run) / LOG).write_text("other")
    assert publish(PROFILE, known, source, target).copied == {"policy": 1} and target.verify(run) == []


def flip(folder: Path) -> None:
    content = bytearray((folder / AGENT).read_bytes())
    content[-1] ^= 1
    (folder / AGENT).write_bytes(content)


def foreign(folder: Path) -> None:
    """The agent of another run, with a list of digests to suit."""
    other = next(path for path in folder.parent.iterdir() if "clean" in path.name)
    (folder / AGENT).write_bytes((other / AGENT).read_bytes())
    write_sums(folder)


def renamed(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["run"]["steps"] = 7
    (folder / "run.json").write_text(json.dumps(record))
    write_sums(folder)


@pytest.mark.parametrize(
    ("damage", "told"),
    [(flip, "agent.safetensors: has changed"), (foreign, "the agent of run "), (renamed, "describes another run")],
)
def test_a_damaged_run_is_refused_by_name_and_the_others_are_published(source, tmp_path, known, damage, told):
    target = Store(tmp_path / "target")
    run = next(run for run in plan(PROFILE, known)["main"] if run.method == "safe-rule")
    damage(source.folder(run))
    report = publish(PROFILE, known, source, target)
    (built,) = (other for other in plan(PROFILE, known)["evaluations"] if other.policy == run)
    assert told in report.refused[0] and source.folder(run).name in report.refused[0]
    assert report.refused[1:] == [f"refused: {source.folder(built)}: what it was made from is damaged"]
    assert not target.done(run) and report.copied == {"policy": 7, "evaluation": 7, "adversary": 1}
    assert not list(target.root.rglob("*.part"))


def test_nothing_foreign_is_published_and_an_empty_source_is_named(source, tmp_path, known):
    (source.root / "runs" / "policy" / "CarCircle-cpq-clean-r0-000000000000").mkdir()
    target = Store(tmp_path / "target")
    publish(replace(PROFILE, training_steps=999), known, source, target)  # other policies, the same adversary
    assert [path.name for path in (target.root / "runs").iterdir()] == ["adversary"]
    with pytest.raises(RunError, match="nowhere: no runs there, expected a store of profile smoke"):
        publish(PROFILE, known, Store(tmp_path / "nowhere"), target)


def test_the_command_tells_what_it_copied(source, tmp_path, data_folder):
    """Under the profile's own settings, of which only the adversary is in this store."""
    options = [
        "--profile",
        "smoke",
        "--source",
        tmp_path / "source",
        "--output",
        tmp_path / "out",
        "--data",
        data_folder,
    ]
    done = CliRunner().invoke(app, ["publish", *map(str, options)])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].split()[:3] == ["adversary", "1", "runs,"]
    assert "1 runs copied" in done.stdout and (tmp_path / "out" / "smoke" / "runs" / "adversary").is_dir()
