"""DSRL files: what is read back, what is rejected and how, what survives a failed write."""

import errno
import fcntl
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
from dsrl_peer import dsrl_reads

from saferule.data.schema import KEYS, Dataset, check, concatenate, from_episodes, load, load_columns, save
from saferule.errors import DataError, SettingsError
from saferule.sim.rollout import Episode
from saferule.sim.tasks import get_task

CAR = get_task("CarCircle")  # 8 observations, 2 actions, 300 steps
TASK = replace(CAR, horizon=4)


def arrays(rows=6, ends=(2, 5)):
    """Trajectories of CarCircle's widths, timed out at the rows `ends`; plain float64 arrays."""
    generator = np.random.default_rng(0)
    return {
        "observations": generator.normal(size=(rows, 8)),
        "next_observations": generator.normal(size=(rows, 8)),
        "actions": generator.uniform(-1, 1, size=(rows, 2)),
        "rewards": np.arange(rows, dtype=float),
        "costs": np.arange(rows) % 2.0,
        "terminals": np.zeros(rows, dtype=bool),
        "timeouts": np.isin(np.arange(rows), ends),
    }


def toy(rows=6, ends=(2, 5), **attributes):
    return Dataset(**arrays(rows, ends), attributes=attributes)


def write(path, content, **options):
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file.create_dataset(key, data=value, **options)
    return path


def message(path, task=TASK):
    with pytest.raises(DataError) as caught:
        load(path, task)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and text.endswith(".")
    return text


def same(left, right):
    pairs = [(getattr(left, key), getattr(right, key)) for key in KEYS]
    return all(np.array_equal(one, other) and one.dtype == other.dtype for one, other in pairs)


def test_round_trip_keeps_values_types_and_attributes(tmp_path):
    dataset = toy(command="collect", seed=3, limit=0.5)
    save(dataset, tmp_path / "new" / "d.hdf5")
    back = load(tmp_path / "new" / "d.hdf5", TASK)
    assert same(dataset, back)
    assert back.attributes == {"command": "collect", "seed": 3, "limit": 0.5}
    assert back.observations.dtype == np.float32 and back.timeouts.dtype == np.bool_
    with h5py.File(tmp_path / "new" / "d.hdf5") as file:
        stored = file["observations"]
        assert (stored.dtype, stored.compression, stored.shuffle) == (np.float32, "gzip", True)


def test_trajectories_returns_and_costs():
    dataset = toy(rows=6, ends=(2, 4))  # rows 0-2, 3-4 and the unfinished row 5
    assert dataset.episodes() == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert dataset.episode_returns().tolist() == [0 + 1 + 2, 3 + 4, 5]
    assert dataset.episode_costs().tolist() == [1, 1, 1]
    assert dataset.done.tolist() == [False, False, True, False, True, False]
    assert len(dataset) == 6
    terminal = replace(dataset, terminals=np.arange(6) == 0)
    assert terminal.episodes() == [slice(0, 1), slice(1, 3), slice(3, 5), slice(5, 6)]


def test_columns_of_shape_n_1_and_extra_keys_are_accepted(tmp_path):
    content = arrays()
    for key in ("rewards", "costs", "terminals", "timeouts"):
        content[key] = content[key][:, None].astype(float)
    path = write(tmp_path / "d.hdf5", content | {"note": np.zeros(3)})
    assert same(load(path, TASK), toy())
    path = write(tmp_path / "unfinished.hdf5", arrays(rows=5, ends=(2,)))
    assert load(path, TASK).episodes() == [slice(0, 3), slice(3, 5)]


def test_actions_beyond_the_box_by_rounding_are_kept(tmp_path):
    content = arrays()
    content["actions"][1, 0] = 1 + 5e-7
    assert load(write(tmp_path / "d.hdf5", content), TASK).actions[1, 0] == np.float32(1 + 5e-7)


def test_further_columns(tmp_path):
    path = tmp_path / "d.hdf5"
    save(toy(), path, columns={"true_costs": np.arange(6.0)})
    assert load_columns(path, ["true_costs"], 6)["true_costs"].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="lacks 'true_rewards'"):
        load_columns(path, ["true_rewards"], 6)
    with pytest.raises(DataError, match="'true_costs' has 6 rows .* 7"):
        load_columns(path, ["true_costs"], 7)


def test_dsrl_reads_what_save_writes(tmp_path, capfd):
    dataset, path = toy(rows=302, ends=(299, 301)), tmp_path / "d.hdf5"
    save(dataset, path, columns={"true_costs": np.ones(302)})
    read = dsrl_reads(path, CAR, capfd)
    for key in KEYS:
        assert np.array_equal(read[key], getattr(dataset, key)), key
    assert same(load(path, CAR), dataset)


def test_episodes_of_a_simulator_become_trajectories():
    ones = Episode(np.arange(16.0).reshape(2, 8), np.ones((1, 2)), np.ones(1), np.zeros(1), terminated=True)
    twos = Episode(np.zeros((3, 8)), np.zeros((2, 2)), np.full(2, 2.0), np.ones(2), terminated=False)
    dataset = from_episodes([ones, twos], {"task": "CarCircle"})
    assert dataset.episodes() == [slice(0, 1), slice(1, 3)] and dataset.attributes == {"task": "CarCircle"}
    assert dataset.observations[0].tolist() == list(range(8))
    assert dataset.next_observations[0].tolist() == list(range(8, 16))
    assert dataset.terminals.tolist() == [True, False, False] and dataset.timeouts.tolist() == [False, False, True]
    assert dataset.rewards.tolist() == [1, 2, 2] and dataset.costs.tolist() == [0, 1, 1]


# Rejections: file, key and row are named


def test_rejects_what_is_no_hdf5_file(tmp_path):
    assert "does not exist" in message(tmp_path / "none.hdf5")
    assert "is a folder" in message(tmp_path)
    for content in (b"", b"<html>404 Not Found</html>"):
        (tmp_path / "d.hdf5").write_bytes(content)
        assert "no HDF5 file" in message(tmp_path / "d.hdf5")


def test_rejects_a_truncated_file_and_a_damaged_block(tmp_path):
    path = tmp_path / "d.hdf5"
    save(toy(), path)
    content = path.read_bytes()
    with h5py.File(path) as file:
        block = file["costs"].id.get_chunk_info(0)
    for kept in (0.3, 0.9):
        path.write_bytes(content[: int(kept * len(content))])
        assert "truncated" in message(path)
    path.write_bytes(content[: block.byte_offset] + b"\xff" * block.size + content[block.byte_offset + block.size :])
    text = message(path)
    assert "'costs'" in text and "damaged" in text


def test_rejects_missing_keys(tmp_path):
    for key in KEYS:
        content = {name: array for name, array in arrays().items() if name != key}
        assert f"lacks '{key}'" in message(write(tmp_path / "d.hdf5", content))
    text = message(write(tmp_path / "d.hdf5", {"obs": np.zeros(3)}))
    assert "'costs'" in text and "has 'obs'" in text


@pytest.mark.parametrize("key", KEYS)
def test_rejects_a_wrong_length(tmp_path, key):
    content = arrays()
    content[key] = content[key][:-1]
    text = message(write(tmp_path / "d.hdf5", content))
    assert "5" in text and "6" in text and "row 5" in text
    if key != "observations":  # the key against which the others are measured
        assert f"'{key}' has 5 rows" in text


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("observations", np.zeros(6), "has shape (6,), expected"),
        ("actions", np.zeros((6, 2, 1)), "has shape (6, 2, 1), expected"),
        ("rewards", np.zeros((6, 2)), "has shape (6, 2), expected"),
        ("timeouts", np.zeros((1, 6)), "has shape (1, 6), expected"),
        ("costs", 0.0, "has shape (), expected"),
        ("observations", np.zeros((6, 27)), "has 27 columns, expected 8 for CarCircle"),
        ("next_observations", np.zeros((6, 27)), "has 27 columns, expected 8 for CarCircle"),
        ("actions", np.zeros((6, 27)), "has 27 columns, expected 2 for CarCircle"),
        ("rewards", [b"one"] * 6, "is no array of numbers"),
    ],
)
def test_rejects_an_array_of_another_form(tmp_path, key, value, told):
    assert f"'{key}' {told}" in message(write(tmp_path / "d.hdf5", arrays() | {key: value}))


def test_rejects_a_group_in_place_of_an_array(tmp_path):
    path = write(tmp_path / "d.hdf5", {"costs/of": np.zeros(6)} | {k: v for k, v in arrays().items() if k != "costs"})
    assert "'costs' is no array of numbers" in message(path)


@pytest.mark.parametrize(
    ("keys", "values", "place", "expected"),
    [
        (("observations", "next_observations", "actions"), (np.nan, np.inf, -np.inf, 1e300), (4, 1), "finite"),
        (("rewards", "costs"), (np.nan, np.inf, -np.inf, 1e300), (4,), "finite"),
        (("actions",), (1.00001, -3.0), (3, 1), "in row 3, column 1, expected actions in [-1, 1]"),
        (("costs",), (-1.0,), ([2, 4],), "is -1.0 in row 2 (and in 1 more rows), expected costs of 0 or more"),
        (("terminals", "timeouts"), (2.0, -1.0, 0.5, np.nan), (5,), "in row 5, expected 0 or 1"),
    ],
)
def test_rejects_impossible_values(tmp_path, keys, values, place, expected):
    for key, value in product(keys, values):
        content = arrays()
        content[key] = content[key].astype(float)
        content[key][place] = value
        text = message(write(tmp_path / "d.hdf5", content))
        assert f"'{key}' is" in text and expected in text and "row" in text


@pytest.mark.parametrize("rows", [arrays(0, ()), {key: np.zeros(0) for key in KEYS}])
def test_rejects_an_empty_file(tmp_path, rows):
    assert "is empty: key 'observations' has 0 rows" in message(write(tmp_path / "d.hdf5", rows))


def test_rejects_a_trajectory_longer_than_the_horizon(tmp_path):
    text = message(write(tmp_path / "d.hdf5", arrays(rows=9, ends=(1, 6))))  # rows 2-6: five steps, four allowed
    assert "trajectory 1 starts at row 2 and has 5 rows" in text and "by row 5" in text and "'timeouts'" in text
    text = message(write(tmp_path / "d.hdf5", arrays(rows=9, ends=(3,))))  # the unfinished rest counts as well
    assert "trajectory 1 starts at row 4 and has 5 rows" in text


def test_data_without_a_file_are_checked_by_name():
    dataset = toy()
    assert check(dataset, TASK, "rollouts") is dataset
    with pytest.raises(DataError, match="rollouts: key 'actions' has 2 columns, expected 8 for AntVelocity"):
        check(replace(dataset, observations=np.zeros((6, 27)), next_observations=np.zeros((6, 27))),
              get_task("AntVelocity"), "rollouts")  # fmt: skip


def test_a_dataset_rejects_arrays_that_do_not_fit_together():
    with pytest.raises(DataError, match="'rewards' has 5 rows and 'observations' has 6"):
        replace(toy(), rewards=np.zeros(5))
    with pytest.raises(DataError, match="'rewards' has shape .6, 1., expected .6,."):
        replace(toy(), rewards=np.zeros((6, 1)))
    with pytest.raises(DataError, match="'next_observations' has 7 columns, expected 8 as in 'observations'"):
        replace(toy(), next_observations=np.zeros((6, 7)))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "d.hdf5"
    save(toy(), path)
    before = path.read_bytes()
    with pytest.raises(TypeError):  # h5py has no type for an object: fails after the seven keys are written
        save(toy(rows=4, ends=(3,)), path, columns={"bad": np.array([object()] * 4)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_empty_dataset_is_not_written(tmp_path):
    with pytest.raises(DataError, match="not written.* 0 rows"):
        save(toy(0, ()), tmp_path / "d.hdf5")
    assert not list(tmp_path.iterdir())


def test_digest_ignores_compression_and_attributes(tmp_path):
    dataset = toy(seed=1)
    plain = write(tmp_path / "plain.hdf5", arrays())
    packed = write(tmp_path / "packed.hdf5", arrays(), compression="gzip", compression_opts=9)
    assert load(plain, TASK).digest() == load(packed, TASK).digest() == dataset.digest()
    assert dataset.digest() == toy(seed=2).digest()


@pytest.mark.parametrize("key", KEYS)
def test_digest_changes_with_one_value(key):
    dataset = toy()
    changed = getattr(dataset, key).copy()
    last = changed.flat[-1]
    changed.flat[-1] = not last if changed.dtype == np.bool_ else np.nextafter(last, np.float32(9))
    assert replace(dataset, **{key: changed}).digest() != dataset.digest()


def test_digest_tells_shapes_apart():
    wide, tall = np.zeros((2, 4)), np.zeros((4, 2))
    one = Dataset(wide, wide, np.zeros((2, 1)), *np.zeros((4, 2)))
    two = Dataset(tall, tall, np.zeros((4, 1)), *np.zeros((4, 4)))
    assert one.digest() != two.digest()
    assert toy(0, ()).digest() != one.digest()


# Selecting and joining


def test_select_keeps_order_and_separates_the_unfinished_trajectory():
    dataset = toy(rows=6, ends=(2, 4))
    chosen = dataset.select([2, 0])  # the unfinished row 5 first
    assert chosen.rewards.tolist() == [5, 0, 1, 2]
    assert chosen.timeouts.tolist() == [True, False, False, True]
    assert dataset.select([1, 2]).timeouts.tolist() == [False, True, False]  # still the last: left open
    assert len(dataset.select([])) == 0
    for index in (3, -1):
        with pytest.raises(SettingsError, match=f"names trajectory {index}, .* from 0 to 2"):
            dataset.select([index])


def test_concatenate_keeps_rows_and_shared_attributes():
    first, second = toy(task="CarCircle", seed=1), toy(rows=4, ends=(3,), task="CarCircle", seed=2)
    joined = concatenate([first, second])
    assert same(joined.take(slice(0, 6)), first) and same(joined.take(slice(6, 10)), second)
    assert joined.attributes == {"task": "CarCircle"}


def test_concatenate_separates_an_unfinished_trajectory():
    first = toy(rows=5, ends=(2,))
    joined = concatenate([first, first])
    assert joined.episodes() == [slice(0, 3), slice(3, 5), slice(5, 8), slice(8, 10)]
    assert not joined.timeouts[-1] and not first.timeouts[-1]


def test_concatenate_rejects_other_widths_and_nothing():
    with pytest.raises(DataError, match="Dataset 1: key 'actions' has 3 columns, expected 2"):
        concatenate([toy(), replace(toy(), actions=np.zeros((6, 3)))])
    with pytest.raises(DataError, match="nothing to concatenate"):
        concatenate([])


# Causes that have a sentence of their own


def locked(path):
    write(path, arrays())
    handle = open(path)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as HDF5 does while it writes
    return handle


def linked(path, **other):
    write(path, {key: value for key, value in arrays().items() if key != "costs"})
    with h5py.File(path, "r+") as file:
        if other:
            file.create_dataset("costs", (6,), "f4", external=[(str(path) + ".raw", 0, 24)])
        else:
            file["costs"] = h5py.ExternalLink(write(path.with_name("other.hdf5"), arrays()), "costs")


def filtered(path, code=32_004):
    """As if it was compressed by LZ4, which HDF5 does not bring; without a block, as nothing here could make one."""
    write(path, {key: value for key, value in arrays().items() if key != "costs"})
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((6,))
    settings.set_filter(code, h5py.h5z.FLAG_OPTIONAL)
    with h5py.File(path, "r+") as file:
        h5py.h5d.create(file.id, b"costs", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((6,)), settings)


def declared(path, rows):
    with h5py.File(path, "w") as file:
        for key, value in arrays().items():
            file.create_dataset(key, (rows, *value.shape[1:]), "f4", chunks=True)


CAUSES = {
    "a page": (
        lambda p: p.write_bytes(b"\n<!DOCTYPE html><title>Sign in</title>"),
        "but a web page: download",
    ),
    "an answer of a bucket": (lambda p: p.write_bytes(b"<?xml version='1.0'?><Error/>"), "but a web page"),
    "git lfs": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1"), "git lfs pull"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08rest"), "compressed by gzip: unpack it"),
    "npz": (lambda p: p.write_bytes(b"PK\x03\x04rest"), "a zip or npz archive"),
    "pickle": (lambda p: p.write_bytes(b"\x80\x04\x95rest"), "a pickle, which is never opened"),
    "text": (lambda p: p.write_bytes(b"1,2,3\n"), "is no HDF5 file: give a file in the DSRL schema"),
    "a writer": (locked, "is open in another process that writes it"),
    "another file": (linked, "'costs' is a link to another file"),
    "raw numbers elsewhere": (lambda p: linked(p, raw=True), "'costs' has its numbers in another file"),
    "a filter": (filtered, "'costs' is compressed with filter 32004, which is not here"),
    "many rows": (lambda p: declared(p, 10**9), "declares 88 GB of numbers and has"),
    "more rows than there are bytes": (lambda p: declared(p, 10**17), "numbers and has"),
    "no rows but a shape": (lambda p: declared(p, 0), "is empty"),
    "complex": (lambda p: write(p, arrays() | {"rewards": np.ones(6, complex)}), "its type is complex128"),
    "fields": (lambda p: write(p, arrays() | {"rewards": np.ones(6, [("a", float)])}), "is no array of numbers"),
    "Minari": (
        lambda p: write(p, {f"episode_{e}/observations": np.zeros((4, 8)) for e in range(300)}),
        "has the layout of Minari ('episode_0' and 299 more)",
    ),
    "D4RL": (
        lambda p: write(p, {k: v for k, v in arrays().items() if k not in ("costs", "next_observations")}),
        "lacks 'next_observations', 'costs' and has 'actions'",
    ),
    "many keys": (lambda p: write(p, {f"{e:0>200}": 0 for e in range(50)}), "and 48 more, expected DSRL's keys"),
    "a pipe": (lambda p: os.mkfifo(p), "is no ordinary file"),
    "a long name": (lambda p: None, "does not exist"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_its_sentence(tmp_path, cause):
    make, told = CAUSES[cause]
    path = tmp_path / "d.hdf5"
    held = make(path)
    text = message(path)
    assert told in text and len(text) <= 300, text
    assert held is None or isinstance(held, int | Path) or held.close() is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_read_all_the_same(tmp_path, monkeypatch, number):
    path, opened = write(tmp_path / "d.hdf5", arrays()), h5py.File

    def without_locks(path, mode, locking=None):
        if locking is None:
            raise OSError(f"Unable to synchronously open file (unable to lock file, errno = {number})")
        return opened(path, mode, locking=locking)

    monkeypatch.setattr(h5py, "File", without_locks)
    assert len(load(path, TASK)) == 6
