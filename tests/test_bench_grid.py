"""The bench of the grid: its rows, from real training and the real engine. No times are asserted."""

from types import SimpleNamespace

from benchmarks import grid


def test_rows_of_trivial_runs_and_of_training(monkeypatch):
    monkeypatch.setattr(grid, "Workers", lambda slots: grid.InProcess())
    monkeypatch.setattr(grid, "POPULATIONS", (1, 2))
    rows = grid.overhead(2)
    assert [row["case"] for row in rows] == ["trivial runs", "the same asked for again"] * 2
    assert all(row["ms_per_cell"] > 0 and row["runs"] == 2 for row in rows)
    assert rows[0]["ms_per_cell"] > rows[1]["ms_per_cell"]  # made, and only found
    rows = grid.throughput(["coptidice"], 0.01, lambda line: None)
    assert [(row["population"], row["workers"]) for row in rows] == [(p, w) for w in (1, 2) for p in (1, 2)]
    assert all(0 < row["floor_fraction"] < 2 and row["agent_steps_per_s"] > 0 for row in rows)


def test_a_rate_is_calls_over_the_time_until_the_last_has_ended(monkeypatch):
    ticks, calls = iter(range(9)), []  # begun at 0, three looks at the clock in the loop, the end at 4
    monkeypatch.setattr(grid, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert grid.per_second(lambda: calls.append(0), 3) == 2 / 4 and len(calls) == 2
