"""Speed, measured side by side in one process: ours and the reference in turn, medians and ratios; never in tests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from saferule.files import write_bytes


def seconds_per_call(function: Callable[[], Any], calls: int) -> float:
    """Mean seconds of one call over a block of calls."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def side_by_side(
    functions: Sequence[Callable[[], Any]],
    rounds: int,
    block_seconds: float = 1.0,
    synchronise: Callable = lambda: None,
) -> list[float]:
    """Median rate in calls per second of each function, run in turn (A B A B ...) in blocks of about equal time."""
    return [1.0 / median(t) for t in block_times(functions, rounds, block_seconds, synchronise)]


def block_times(
    functions: Sequence[Callable[[], Any]],
    rounds: int,
    block_seconds: float = 1.0,
    synchronise: Callable = lambda: None,
) -> list[list[float]]:
    """Seconds per call of each function in each round, run in turn (A B A B ...) in blocks of about equal time."""

    def synchronised(function: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            function()
            synchronise()

        return call

    timed = [synchronised(f) for f in functions]
    for call in timed:
        call()  # first calls allocate and compile
    calls = [max(1, round(block_seconds / seconds_per_call(call, 2))) for call in timed]
    times: list[list[float]] = [[] for _ in timed]
    for _ in range(rounds):
        for i, call in enumerate(timed):
            times[i].append(seconds_per_call(call, calls[i]))
    return times


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table; floats with three digits."""
    names = list(rows[0])

    def text(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)

    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(text(row[name]) for name in names) + " |" for row in rows])


def write_json(path: str | Path, rows: Sequence[dict[str, Any]], machine: dict[str, Any]) -> None:
    """Rows and the machine they were measured on."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps({"machine": machine, "rows": list(rows)}, indent=1) + "\n").encode())


def processor() -> str:
    """The processor's name as the kernel gives it, and the number of cores this process may use."""
    import os

    name = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
