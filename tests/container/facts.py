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
LAYERS = {  # words of what made a layer -> what is in it
    "apt-get": "system packages",
    "--lock-only": "Python packages of the lock",
    "./install.sh": "the project installed",
    "COPY dir": "files of the project",
}
RUNS = ("smoke", "smoke_again", "user", "root")


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
    for run in RUNS[1:]:
        if run in found and found[run]["table1"] == found["smoke"]["table1"]:
            found[run]["table1"] = "the same as smoke's"
    target.write_text(json.dumps(found, indent=1) + "\n")
    target.with_suffix(".md").write_text(summary(found))


def summary(found: dict[str, Any]) -> str:
    """What a reader wants to know, in Markdown."""
    lines = [
        "# The container, built and run",
        "",
        "By `tests/container/build_and_run.sh`; more in `container.json`.",
    ]
    lines += ["", f"Machine: {', '.join(found['machine'])}."]
    lines += ["", "| step | seconds |", "|---|---|"]
    lines += [f"| {k.removesuffix('_seconds')} | {v} |" for k, v in found.items() if k.endswith("_seconds")]
    for name, label in (("cpu_image", "torch without CUDA"), ("cuda_image", "torch with CUDA")):
        if name in found:
            about = found[name]
            lines += ["", f"## Image, {label}: {about['bytes'] / 1e9:.2f} GB", "", "| layer | MB |", "|---|---|"]
            lines += [f"| {_layer(row['made_by'])} | {row['bytes'] / 1e6:.0f} |" for row in about["layers"]]
            large = ", ".join(f"{k} {v / 1e6:.0f}" for k, v in about["large_packages"].items())
            lines += ["", f"Large in it (MB): {large}; compiled Python {about['compiled_python_bytes'] / 1e6:.0f}."]
    lines += ["", "## Refused, in one sentence", "", "| case | exit code | what it says |", "|---|---|---|"]
    lines += [f"| {k[8:]} | {v[0]} | {v[1]} |" for k, v in found.items() if k.startswith("refused_")]
    lines += ["", "## Smoke inside", "", "| run | owners (files) | first line | Table 1 |", "|---|---|---|---|"]
    for run in RUNS:
        if run in found:
            owners = ", ".join(f"{who} ({n})" for who, n in found[run]["owners"].items())
            table = found[run]["table1"] if isinstance(found[run]["table1"], str) else "below"
            lines.append(f"| {run} | {owners} | {found[run]['first_line']} | {table} |")
    if "tests" in found:
        lines += ["", f"Tests inside, as root: {found['tests'][0]}."]
    if "cuda_torch" in found:
        lines += ["", f"torch and CUDA of the second image: {', '.join(found['cuda_torch'])}."]
    if "smoke" in found:
        rows = found["smoke"]["table1"]
        names = [name for name in rows[0] if any(row[name] for row in rows)]
        lines += ["", "Table 1 of the smoke run (no result of the paper):", ""]
        lines += ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
        lines += ["| " + " | ".join(_short(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _layer(made_by: str) -> str:
    return next((what for words, what in LAYERS.items() if words in made_by), "base")


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.4g}" if "." in cell else cell
    except ValueError:
        return cell


if __name__ == "__main__":
    done = {"image": image, "smoke": smoke, "write": write}[sys.argv[1]](*map(Path, sys.argv[2:]))
    if done is not None:
        print(json.dumps(done))
