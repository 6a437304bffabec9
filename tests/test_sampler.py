"""Batches are the rows they should be, scaled and flagged, drawn from the given rows only."""

import numpy as np
import pytest
import torch
from helpers import random_dataset

from saferule.data.batches import TransitionPool, draw_rows, first_steps
from saferule.data.schema import Dataset

# Two episodes: three steps to the time limit, two to a terminal state, then one step unfinished.
FLAGS = {"terminals": [0, 0, 0, 0, 1, 0], "timeouts": [0, 0, 1, 0, 0, 0]}


def counted(start: int) -> Dataset:
    """Six transitions whose values are their row numbers: observation (n, -n), reward 10 n, cost n + 0.5."""
    n = np.arange(start, start + 6.0)
    states = np.stack((n, -n), axis=1)
    return Dataset(states, states + 1, n[:, None] / 100, 10 * n, n + 0.5, **{k: np.array(v) for k, v in FLAGS.items()})


def test_first_steps():
    assert first_steps(counted(0)).tolist() == [True, False, False, True, False, True]


def test_gather_by_hand():
    pool = TransitionPool([counted(0), counted(50)], reward_scale=0.1)
    batch = pool.gather(torch.tensor([[0, 4], [8, 2]]))
    assert batch.observations.tolist() == [[[0, 0], [4, -4]], [[52, -52], [2, -2]]]
    assert batch.next_observations.tolist() == [[[1, 1], [5, -3]], [[53, -51], [3, -1]]]
    torch.testing.assert_close(batch.actions, torch.tensor([[[0.0], [0.04]], [[0.52], [0.02]]]))
    torch.testing.assert_close(batch.rewards, torch.tensor([[0.0, 4.0], [52.0, 2.0]]))  # 10 n, scaled by 0.1
    assert batch.costs.tolist() == [[0.5, 4.5], [52.5, 2.5]]
    assert batch.done.tolist() == [[0, 1], [1, 1]]
    assert batch.is_init.tolist() == [[1, 0], [0, 0]]
    assert all(part.dtype == torch.float32 for part in batch)


def test_rows_of_one_and_of_several_data_sets():
    pool = TransitionPool([counted(0), counted(50)], reward_scale=1.0)
    assert pool.rows_of(0).tolist() == list(range(6)) and pool.rows_of(1).tolist() == list(range(6, 12))
    assert pool.rows_of(1, 0).tolist() == [*range(6, 12), *range(6)]
    keep, forget = (pool.gather(pool.rows_of(k)[None]).observations[0, :, 0] for k in (0, 1))
    assert keep.tolist() == list(range(6)) and forget.tolist() == list(range(50, 56))


def test_values_survive_the_packing_exactly():
    data = random_dataset(5, 3)
    batch = TransitionPool([data], reward_scale=1.0).gather(torch.arange(len(data))[None])
    for name in ("observations", "next_observations", "actions", "rewards", "costs"):
        np.testing.assert_array_equal(getattr(batch, name)[0].numpy(), getattr(data, name))
    np.testing.assert_array_equal(batch.done[0].numpy(), data.done)


def test_draws_are_uniform_over_the_given_rows_only():
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    rows = [torch.arange(10, 20), torch.tensor([3, 5])]
    drawn = draw_rows(generators, rows, 20_000)
    assert drawn.shape == (2, 20_000)
    for p, candidates in enumerate(rows):
        found, counts = drawn[p].unique(return_counts=True)
        assert found.tolist() == candidates.tolist()
        expected = 20_000 / len(candidates)
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert chi_square < 30  # 9 and 1 degrees of freedom: exceeded with probability below 0.0005


def test_draws_of_an_agent_depend_on_its_generator_alone():
    rows = torch.arange(100)
    pair = draw_rows([torch.Generator().manual_seed(s) for s in (7, 8)], [rows[:50], rows], 30)
    single = draw_rows([torch.Generator().manual_seed(8)], [rows], 30)
    assert torch.equal(pair[1], single[0]) and not torch.equal(pair[0], pair[1])
    with pytest.raises(ValueError):
        draw_rows([torch.Generator()], [rows, rows], 3)
