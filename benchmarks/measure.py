"""What the scripts share: rates of two functions measured in turn, and rows for people and in a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from saferule.files import write_bytes
from saferule.runs.timing import block_times

Row = dict[str, Any]


def rates(
    functions: Sequence[Callable[[], Any]],
    rounds: int,
    block_seconds: float = 1.0,
    synchronise: Callable = lambda: None,
) -> list[float]:
    """Median rate in calls per second of each function, run in turn (A B A B ...) in blocks of about equal time."""
    return [1.0 / median(times) for times in block_times(functions, rounds, block_seconds, synchronise)]


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write rows and machine to this file")
    parser.add_argument("--rounds", type=int, default=7, help="blocks per side; the median counts")
    return parser


def show(rows: Sequence[Row], machine: Row, file: Path | None = None) -> None:
    """Print rows as a Markdown table, floats with three digits, and the machine; write both to the file."""
    names = list(rows[0])

    def text(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)

    print("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(text(row[name]) for name in names) + " |")
    print("\n" + ", ".join(f"{name}: {value}" for name, value in machine.items()))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, (json.dumps({"machine": machine, "rows": list(rows)}, indent=1) + "\n").encode())
