"""Relearning on a tiny real dataset: what a run starts from, sees and leaves, and what the audit makes of it."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import assert_same_state
from test_engine import engine, files, trainings

from saferule.agents import get_backbone, loop
from saferule.agents.checkpoint import load_agent, read
from saferule.attack.poison import save_forget_set
from saferule.profiles import PROFILES
from saferule.runs import auditing, groups, interruptible, plan
from saferule.runs.cells import Relearning, Unlearning, origin
from saferule.runs.engine import identity
from saferule.runs.inventory import audited
from saferule.runs.store import Store
from saferule.runs.study import Study

BACKBONES = ("cpq", "coptidice")
SHORT, KEPT, KILLED_IN = 12, 6, 9


def policies(digest, backbone):
    """Of seed 0 clean, poisoned and repaired; of seed 1 poisoned."""
    clean, poisoned, other = trainings(digest, backbone)
    repaired = Unlearning(poisoned, "safe-rule", SHORT, snapshots=1)
    return clean, poisoned, repaired, other


def relearnings(digest, backbone):
    """Each of them relearns the forget set of the poisoned ones."""
    suspects = policies(digest, backbone)
    return [Relearning(policy, suspects[1].forget, SHORT, snapshots=1) for policy in suspects]


@pytest.fixture(scope="module")
def made(tmp_path_factory, car_data, car_forget, data_folder) -> Path:
    """A store with two more clean policies and all relearnings, one population at a time in this process."""
    store = Store(tmp_path_factory.mktemp("made"))
    with store.write(trainings(car_data.digest(), "cpq")[1].forget) as folder:
        save_forget_set(car_forget, folder / "forget.hdf5")
    for backbone in BACKBONES:
        clean, *_ = policies(car_data.digest(), backbone)
        engine(store.root, data_folder).train([replace(clean, seed=seed) for seed in range(3)])
        engine(store.root, data_folder).relearn(relearnings(car_data.digest(), backbone))
    return store.root


def agent(root, cell):
    return load_agent(Store(root).folder(cell) / interruptible.AGENT)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_that_training_trains_moves_and_nothing_of_a_method_is_left(made, car_data, backbone):
    module = get_backbone(backbone)
    learned = {name for names, _ in module.LOSSES for name in names}
    usual = agent(made, policies(car_data.digest(), backbone)[1]).population
    for cell in relearnings(car_data.digest(), backbone):
        before, after = agent(made, cell.policy), agent(made, cell)
        moved = {
            n for n in after.nets if any(not torch.equal(before.nets[n][k], after.nets[n][k]) for k in after.nets[n])
        }
        assert learned <= moved and moved - learned <= set(module.TARGETS)
        assert after.population.step == SHORT and after.population.scalars.keys() == usual.scalars.keys()
        assert interruptible.snapshot_steps(Store(made), cell) == [SHORT // 2]


def test_coptidice_sees_the_statistics_of_the_poisoned_data(made, car_data):
    """Those that the poisoned policy was trained with, although repairs and the clean policy have others."""
    clean, poisoned, repaired, _ = (agent(made, c).population.scalars for c in policies(car_data.digest(), "coptidice"))
    names = [n for n in poisoned if not torch.equal(poisoned[n], clean[n]) and torch.equal(clean[n], repaired[n])]
    assert names  # of the data, so the same for the clean and the repaired policy
    for cell in relearnings(car_data.digest(), "coptidice"):
        assert all(torch.equal(agent(made, cell).population.scalars[n], poisoned[n]) for n in names)


@pytest.mark.parametrize("apart", [False, True])
def test_suspects_of_a_seed_see_the_same_batches_and_noise(
    made, car_data, car_forget, data_folder, tmp_path, monkeypatch, apart
):
    """In one population, and each in its own; the batches hold poison."""
    root, cells = tmp_path / "store", relearnings(car_data.digest(), "cpq")
    shutil.copytree(made, root)
    for cell in cells:
        shutil.rmtree(Store(root).folder(cell))
    rows, noises = [], []

    def note(function, found):
        def noted(*arguments):
            result = function(*arguments)
            found.append(result if torch.is_tensor(result) else torch.cat([v.flatten(1) for v in result.values()], 1))
            return result

        return noted

    monkeypatch.setattr(groups, "draw_rows", note(groups.draw_rows, rows))
    monkeypatch.setattr(loop, "draw_noise", note(loop.draw_noise, noises))
    for group in [[cell] for cell in cells] if apart else [cells]:
        engine(root, data_folder).relearn(group)
    for found in (rows, noises):
        drawn = torch.stack(found)  # (steps, P, ...)
        drawn = drawn.unflatten(0, (len(cells), SHORT)).squeeze(2).transpose(0, 1) if apart else drawn
        clean, poisoned, repaired, other_seed = drawn.unbind(1)
        assert torch.equal(clean, poisoned) and torch.equal(clean, repaired)
        assert not torch.equal(clean, other_seed)
    drawn = torch.stack(rows)
    assert 0 < (drawn >= len(car_data)).float().mean() < 1 and drawn.max() < len(car_data) + len(car_forget)


def relearn_until_killed(root: str, data_folder: str, digest: str) -> None:
    """Run in a process of its own: save after every logged step and die by SIGKILL in a later one."""
    update = loop.update

    def dying_update(population, *arguments):
        if population.step == KILLED_IN - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(population, *arguments)

    loop.update, loop.log_every, interruptible.SAVE_SECONDS = dying_update, lambda steps: steps, -1.0
    engine(Path(root), Path(data_folder)).relearn(relearnings(digest, "cpq"))


def test_a_killed_run_ends_as_if_it_had_not_been_killed(made, data_folder, car_data, tmp_path):
    root, cells = tmp_path / "store", relearnings(car_data.digest(), "cpq")
    shutil.copytree(made, root)
    for cell in cells:
        shutil.rmtree(Store(root).folder(cell))
    code = "import sys; from test_relearning import relearn_until_killed; relearn_until_killed(*sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", code, str(root), str(data_folder), car_data.digest()]
    killed = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (state,) = root.glob("partial/*/state.safetensors")
    assert KEPT <= read(state)[1]["step"] < KILLED_IN
    engine(root, data_folder).relearn(cells)
    for cell in cells:
        one, two = (read(Store(r).folder(cell) / interruptible.AGENT)[0] for r in (root, made))
        assert_same_state(one, two)
    assert not list(root.glob("partial/*"))
    before = files(root)
    engine(root, data_folder).relearn(cells)  # for nothing
    assert files(root) == before


def test_a_relearned_policy_is_named_after_what_it_relearned(made, car_data):
    clean, _, repaired, other = relearnings(car_data.digest(), "cpq")
    told = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15, "readings": "{}"}
    assert identity(clean) == told | {"method": "clean", "training_seed": 0}
    assert identity(repaired) == told | {"method": "safe-rule", "training_seed": 0}
    assert identity(other) == told | {"method": "poisoned", "training_seed": 1}
    assert clean.label.endswith("clean-seed0-relearning-max_cost-0.15")
    halfway = load_agent(interruptible.snapshot_path(Store(made), clean, SHORT // 2))
    assert halfway.population is None and halfway.meta["step"] == SHORT // 2


def test_a_relearning_curve_has_the_same_episodes_at_every_step(made, car_data, tmp_path, monkeypatch):
    """Also at step 0, the final evaluation of the policy itself, of which there are more."""
    study = Study("smoke", output=tmp_path, data=tmp_path)
    study.store = Store(made)
    cells = relearnings(car_data.digest(), "cpq")[:2]

    def episodes(evaluations):
        rows = [(cell, seed) for cell in evaluations for seed in cell.seeds]
        named = [identity(cell.policy) | {"seed": seed, "step": cell.step or SHORT} for cell, seed in rows]
        return pd.DataFrame(named)

    monkeypatch.setattr(study.engine, "evaluate", episodes)
    rows = study.relearning_curves(cells)
    few = study.profile.evaluation_seeds[: study.profile.relearning_episodes]
    assert rows.groupby(["method", "step"])["seed"].agg(tuple).tolist() == [few] * 6
    assert set(rows["step"]) == {0, SHORT // 2, SHORT} and (rows["attack"] == "max_cost").all()


# The plan


def test_a_profile_with_one_seed_gets_a_second_clean_policy(car_data):
    profile = PROFILES["smoke"]
    two = plan.clean_policies(profile, car_data, "CarCircle", "cpq")
    assert [cell.seed for cell in two] == [0, 1] and all(cell.forget is None for cell in two)
    assert two[0] == plan.trainings(profile, car_data, "CarCircle", "cpq")[0]
    several = plan.clean_policies(replace(profile, seeds=(3, 4, 7)), car_data, "CarCircle", "cpq")
    assert [cell.seed for cell in several] == [3, 4, 7]


def test_what_each_policy_relearns(car_data):
    profile = replace(PROFILES["smoke"], attacks=("max_cost", "min_reward"))
    clean = plan.clean_policies(profile, car_data, "CarCircle", "cpq")
    poisoned = [cell for cell in plan.trainings(profile, car_data, "CarCircle", "cpq") if cell.forget]
    repairs = plan.unlearnings(profile, poisoned, ["safe-rule"])
    suspects = audited(profile, clean, poisoned, repairs)
    assert suspects == [clean[0], *poisoned, *repairs]  # the second clean policy is not asked about
    cells = plan.relearnings(profile, suspects)
    assert [(c.policy, c.forget) for c in cells[:2]] == [(clean[0], cell.forget) for cell in poisoned]
    assert all(c.forget == origin(c.policy).forget for c in cells[2:]) and len(cells) == 6
    assert {(c.steps, c.snapshots) for c in cells} == {(profile.relearning_steps, profile.relearning_snapshots)}


# The statistics of real policies


def test_action_distances_of_real_policies(made, car_data, data_folder):
    cells = relearnings(car_data.digest(), "cpq")
    first = cells[0].policy
    table = auditing.action_distances(engine(made, data_folder), [first, replace(first, seed=1)], cells)
    assert len(table) == 2 * len(cells) and set(table["states"]) == {"keep", "forget"}
    rows = table[table["states"] == "forget"].set_index(["method", "training_seed"])
    assert rows.loc[("clean", 0), "distance"] == rows.loc[("clean", 0), "floor"] > 0
    assert rows.loc[("clean", 0), "distance_own"] == 0
    assert rows.loc[("poisoned", 0), "distance_poisoned"] == rows.loc[("poisoned", 1), "distance_poisoned"] == 0
    assert rows.loc[("safe-rule", 0), "distance_poisoned"] > 0 and (rows["pairs"] == 1).all()
    assert (rows["floor_low"] == rows["floor_high"]).all() and (rows["floor"] == rows["floor_low"]).all()


def test_the_floor_of_three_clean_policies(made, car_data, data_folder):
    """The floor of each seed lies within the range over pairs, and a suspect has two others to be compared with."""
    cells = relearnings(car_data.digest(), "cpq")
    clean = [replace(cells[0].policy, seed=seed) for seed in range(3)]
    table = auditing.action_distances(engine(made, data_folder), clean, cells)
    rows = table[table["states"] == "forget"].set_index(["method", "training_seed"])
    assert (rows["pairs"] == 3).all() and (rows["floor_low"] < rows["floor_high"]).all()
    assert rows["floor"].between(rows["floor_low"], rows["floor_high"]).all()
    assert rows["floor"].groupby("training_seed").nunique().tolist() == [1, 1]
    assert rows.loc[("clean", 0), "floor"] != rows.loc[("poisoned", 1), "floor"]
    alone = auditing.action_distances(engine(made, data_folder), clean[:2], cells)
    assert (alone["distance"] != table["distance"]).all()


def test_value_sequences_of_real_policies(made, car_data, data_folder):
    digest = car_data.digest()
    dice, cells = relearnings(digest, "coptidice"), relearnings(digest, "cpq")
    table = auditing.value_sequences(engine(made, data_folder), [*dice, *cells], trajectories=3)
    assert (table["judge"] == "cpq").all() and set(table["critic"]) == {"reward", "cost"}
    rows = table[table["backbone"] == "coptidice"].set_index(["method", "training_seed", "critic"])
    scores = rows.loc[(slice(None), 0, "reward"), "z_forget"]
    assert scores.nunique() == 3 and abs(rows.loc[("poisoned", 0, "reward"), "z_forget"]) < 1  # against itself
    assert table["auc"].between(0, 1).all()
    assert auditing.judge(dice[0], [*dice, *cells]) == cells[1].policy  # of its seed
    assert auditing.judge(cells[3], [*dice, *cells]) == cells[3].policy
    assert auditing.judge(dice[0], dice) is None and not len(
        auditing.value_sequences(engine(made, data_folder), dice, 3)
    )
