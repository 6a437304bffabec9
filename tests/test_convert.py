"""Minari and D4RL files as DSRL files, by hand; what is possible in data but hardly meant is said."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from test_schema import CAR, arrays, toy, write

from saferule.data.convert import convert
from saferule.data.describe import doubts
from saferule.data.schema import load
from saferule.errors import DataError, SettingsError

TASK = replace(CAR, horizon=4)
EMPTY = {"observations": np.zeros((0, 8)), "actions": np.zeros((0, 2))} | {
    key: np.zeros(0) for key in ("rewards", "terminals", "timeouts", "costs")
}


def minari(path: Path, costs: str | None = "infos/cost", **changes) -> Path:
    """Two episodes of 3 and 2 steps, the second terminated; observation t of an episode is full of t."""
    with h5py.File(path, "w") as file:
        for number, steps in enumerate((3, 2)):
            content = {
                "observations": np.repeat(np.arange(steps + 1.0), 8).reshape(-1, 8),
                "actions": np.zeros((steps, 2)),
                "rewards": np.arange(steps) + 10.0 * number,
                "terminations": np.arange(steps) == (steps - 1 if number else -1),
                "truncations": np.arange(steps) == (-1 if number else steps - 1),
            } | changes
            if costs:  # with an entry of the reset in front, as Minari keeps infos
                content[costs] = np.append(99.0, np.arange(steps) % 2)
            for key, value in content.items():
                file[f"episode_{number}/{key}"] = value
    return path


def d4rl(path: Path, *without: str, **changes) -> Path:
    """Rows 0-2 until a time limit, 3-5 until a terminal, 6-7 unfinished."""
    rows = np.arange(8)
    content = {
        "observations": np.repeat(rows * 1.0, 8).reshape(-1, 8),
        "actions": np.zeros((8, 2)),
        "rewards": rows * 1.0,
        "terminals": rows == 5,
        "timeouts": rows == 2,
        "costs": rows % 2,
    } | changes
    return write(path, {key: value for key, value in content.items() if key not in without})


def linked(path: Path, name: str, target: str, soft: bool = False) -> Path:
    """Something of a file lies in another one; that the other is not there is not noticed, as it is not looked for."""
    link = h5py.ExternalLink("nowhere.hdf5", target)
    with h5py.File(d4rl(path, "costs"), "r+") as file:
        if soft:
            file["elsewhere"], link = link, h5py.SoftLink("/elsewhere")
        file[name] = link
    return path


def unwritten(path: Path) -> Path:
    """Forty episodes of which each could be held by the file, but not all of them."""
    with h5py.File(path, "w") as file:
        for number in range(40):
            group = file.create_group(f"episode_{number}")
            group.create_dataset("observations", (300_001, 8), "f4")
            group.create_dataset("actions", (300_000, 2), "f4")
            for name in ("rewards", "terminations", "truncations", "costs"):
                group.create_dataset(name, (300_000,), "f4")
    assert 300_000 * 56 < 2_000 * path.stat().st_size < 40 * 300_000 * 56
    return path


def test_a_minari_file_becomes_trajectories(tmp_path):
    out = tmp_path / "out.hdf5"
    dataset, said = convert(minari(tmp_path / "m.hdf5"), TASK, out)
    assert load(out, TASK).digest() == dataset.digest() and "'infos/cost'" in said[1]
    assert dataset.observations[:, 0].tolist() == [0, 1, 2, 0, 1]
    assert dataset.next_observations[:, 0].tolist() == [1, 2, 3, 1, 2]
    assert dataset.rewards.tolist() == [0, 1, 2, 10, 11] and dataset.costs.tolist() == [0, 1, 0, 0, 1]
    assert dataset.terminals.tolist() == [False] * 4 + [True]
    assert dataset.timeouts.tolist() == [False, False, True, False, False]
    assert dataset.attributes["layout"] == "Minari" and dataset.attributes["converted_from"] == "m.hdf5"


def test_a_d4rl_file_gets_its_next_observations(tmp_path):
    dataset, said = convert(d4rl(tmp_path / "d.hdf5"), TASK, tmp_path / "out.hdf5")
    assert dataset.observations[:, 0].tolist() == [0, 1, 3, 4, 6]  # 2, 5 and 7 are last steps
    assert dataset.next_observations[:, 0].tolist() == [1, 2, 4, 5, 7]
    assert dataset.costs.tolist() == [0, 1, 1, 0, 0] and not dataset.terminals.any()
    assert dataset.timeouts.tolist() == [False, True, False, True, True]
    assert "3 last steps without one are left out" in said[-1]
    others = {"episode_lengths": np.array([3, 3, 2]), "episode_0": np.arange(3)}  # which are no episodes of Minari's
    lengths = d4rl(tmp_path / "lengths.hdf5", **others)
    assert convert(lengths, TASK, tmp_path / "lengths-out.hdf5")[0].digest() == dataset.digest()
    own = np.zeros((8, 8))
    dataset, _ = convert(d4rl(tmp_path / "own.hdf5", next_observations=own), TASK, tmp_path / "own-out.hdf5")
    assert len(dataset) == 8 and not dataset.next_observations.any() and dataset.terminals[5]
    dataset, said = convert(d4rl(tmp_path / "t.hdf5", "timeouts", next_observations=own), TASK, tmp_path / "t-out.hdf5")
    assert dataset.timeouts.tolist() == [False] * 3 + [True] + [False] * 4  # after four steps; row 5 is a terminal
    assert "after 4 steps" in said[-1]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: minari(p, None), "has no costs: none of 'costs', 'cost'"),
        (lambda p: d4rl(p, "costs"), "has no costs"),
        (lambda p: minari(p, rewards=np.zeros(5)), "episode_0 has 5 rewards and 4 observations"),
        (lambda p: minari(p, terminations=np.ones(3, bool)), "episode_0 goes on after its end"),
        (lambda p: minari(p, **{"observations/position": np.zeros(4), "observations": None}), "observations"),
        (lambda p: d4rl(p, "actions"), "lacks 'actions'"),
        (lambda p: d4rl(p, rewards=np.zeros(5)), "has 8 rows and 'rewards' 5"),
        (lambda p: d4rl(p, observations=np.zeros((8, 27))), "has 27 columns, expected 8"),
        (lambda p: write(p, {"x": np.zeros(2)}), "expected the layout of Minari or of D4RL"),
        (lambda p: d4rl(p, **EMPTY), "is empty"),
        (lambda p: d4rl(p, terminals=np.arange(8) / 2), "'terminals' is 0.5 in row 1 (and in 5 more rows), expected 0"),
        (lambda p: d4rl(p, timeouts=np.full(8, np.nan)), "'timeouts' is nan in row 0"),
        (lambda p: minari(p, truncations=np.full(3, -1)), "'episode_0/truncations' is -1 in row 0"),
        (unwritten, "declares 0.672 GB of numbers and has"),
        (lambda p: linked(p, "costs", "/cost"), "'costs' is a link to another file"),
        (lambda p: linked(p, "infos", "/infos"), "'infos' is a link to another file"),
        (lambda p: linked(p, "episode_0", "/episode_0"), "'episode_0' is a link to another file"),
        (lambda p: linked(p, "infos/cost", "/cost", soft=True), "'elsewhere' is a link to another file"),
    ],
)
def test_what_cannot_be_converted_is_named(tmp_path, make, told):
    try:
        path = make(tmp_path / "m.hdf5")
    except TypeError:  # h5py writes no None: a group of observations by name
        with h5py.File(tmp_path / "m.hdf5", "w") as file:
            file["episode_0/observations/position"] = np.zeros(4)
            for name in ("actions", "rewards", "terminations", "truncations", "cost"):
                file[f"episode_0/{name}"] = np.zeros(3)
        path = tmp_path / "m.hdf5"
    with pytest.raises(DataError) as caught:
        convert(path, TASK, tmp_path / "out.hdf5")
    assert told in str(caught.value) and len(str(caught.value)) <= 300
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.hdf5"]


def test_nothing_is_replaced_by_a_conversion(tmp_path):
    source = minari(tmp_path / "m.hdf5")
    with pytest.raises(SettingsError, match="the file and --out are both"):
        convert(source, TASK, source)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SettingsError, match="mine exists .* --overwrite"):
        convert(source, TASK, tmp_path / "mine")
    convert(source, TASK, tmp_path / "mine", overwrite=True)
    assert len(load(tmp_path / "mine", TASK)) == 5


def test_doubts_are_said_and_none_of_good_data():
    good = replace(toy(), next_observations=np.roll(arrays()["observations"], -1, axis=0))
    assert doubts(good, TASK) == []
    box = SimpleNamespace(low=np.full(8, -9.0), high=np.full(8, 9.0))
    shifted = good.next_observations.copy()
    shifted[1] += 1
    for changes, told in (
        ({"next_observations": shifted}, "in 25.0% of the steps within trajectories (first row 1)"),  # 1 of 4
        ({"timeouts": np.ones(6)}, "every trajectory has one step"),
        ({"costs": np.zeros(6)}, "all costs are 0"),
        ({"costs": np.arange(6.0)}, "a step costs up to 5"),
        ({"rewards": np.full(6, 1e4)}, "returns from 3e+04 to 3e+04"),
        (
            {"observations": good.observations * 100, "next_observations": good.next_observations * 100},
            "beyond the sim",
        ),
    ):
        (sentence,) = doubts(replace(good, **changes), TASK, box)
        assert told in sentence
