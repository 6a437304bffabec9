"""The measurements of build_and_run.sh: an image, a run's results, and all of them as JSON and Markdown."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

TABLE1 = "tables/table1.csv"


def image(work: Path) -> dict[str, Any]:
    """Bytes of an image from `docker image inspect` on stdin, of its layers, and of what is large in it."""
    layers = []
    for line in (work / "history.tsv").read_text().splitlines():
        size, made_by = line.split("\t", 1)
        if int(size) >= 1_000_000:
            layers.append({"bytes": int(size), "made_by": " ".join(made_by.split())[:100]})
    large, compiled = (work / "large.txt").read_text().strip().split("\n\n")
    packages = [line.split("\t") for line in large.splitlines()]
    return {
        "bytes": json.load(sys.stdin)[0]["Size"],
        "layers": layers[::-1],
        "large_packages": {Path(path).name: int(size) for size, path in packages},
        "compiled_python_bytes": int(compiled),
    }


def smoke(folder: Path, log: Path) -> dict[str, Any]:
    """Table 1 and the owners of everything under a mounted artifacts folder; the first line of the run."""
    paths = [Path(parent) / name for parent, folders, files in os.walk(folder) for name in folders + files]
    results = folder / "smoke"
    return {
        "first_line": next(line for line in log.read_text().splitlines() if not line.startswith("saferule: copying")),
        "owners": dict(Counter(f"{p.lstat().st_uid}:{p.lstat().st_gid}" for p in paths)),
        "notebooks": sorted(p.name for p in (results / "notebooks").glob("*.ipynb")),
        "table1": list(csv.DictReader((results / TABLE1).open())),
    }


def write(facts: Path, target: Path) -> None:
    """Put the facts (one JSON object a line, later ones win) into `target`, and a summary beside it."""
    found: dict[str, Any] = {}
    for line in facts.read_text().splitlines():
        found |= json.loads(line)
    target.write_text(json.dumps(found, indent=1) + "\n")
    target.with_suffix(".md").write_text(summary(found))


def summary(found: dict[str, Any]) -> str:
    """What a reader wants to know, in Markdown."""
    lines = [
        "# The container, built and run",
        "",
        "By `tests/container/build_and_run.sh`; all of it: `container.json`.",
    ]
    lines += ["", "| step | seconds |", "|---|---|"]
    lines += [f"| {k.removesuffix('_seconds')} | {v} |" for k, v in found.items() if k.endswith("_seconds")]
    for name, label in (("cpu_image", "torch without CUDA"), ("cuda_image", "torch with CUDA")):
        if name in found:
            about = found[name]
            lines += ["", f"## Image, {label}: {about['bytes'] / 1e9:.2f} GB", "", "| layer | MB |", "|---|---|"]
            lines += [f"| `{row['made_by'].replace('|', '')}` | {row['bytes'] / 1e6:.0f} |" for row in about["layers"]]
            large = ", ".join(f"{k} {v / 1e6:.0f}" for k, v in about["large_packages"].items())
            lines += ["", f"Large in it (MB): {large}; compiled Python {about['compiled_python_bytes'] / 1e6:.0f}."]
    lines += ["", "## Refused, in one sentence", "", "| case | exit code | what it says |", "|---|---|---|"]
    lines += [f"| {k[8:]} | {v[0]} | {v[1]} |" for k, v in found.items() if k.startswith("refused_")]
    for run in ("smoke", "smoke_again", "user", "root"):
        if run in found:
            owners = ", ".join(f"{who} ({n} files)" for who, n in found[run]["owners"].items())
            lines += ["", f"## Smoke inside: {run}", "", f"First line: `{found[run]['first_line']}`. Owners: {owners}."]
    if "smoke" in found:
        rows = found["smoke"]["table1"]
        lines += ["", "Table 1 of the smoke run:", "", "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
        lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    done = {"image": image, "smoke": smoke, "write": write}[sys.argv[1]](*map(Path, sys.argv[2:]))
    if done is not None:
        print(json.dumps(done))
