"""The walk of README and docs/walk.md as it stands, with tiny numbers in the place of its own."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from saferule.cli import app
from saferule.data.schema import save

ROOT = Path(__file__).parents[1]
SMALLER = {"--steps 500000": "--steps 512", "--out repaired": "--out repaired --steps 2 --episodes 1"}
SMALLER |= {"range(100_000)": "range(3)", "evaluate model.pt": "evaluate model.pt --episodes 1"}


def smaller(text: str) -> str:
    for number, small in SMALLER.items():
        text = text.replace(number, small)
    return text


def test_the_walk(car_data, tmp_path, monkeypatch):
    section = (ROOT / "README.md").read_text().split("## A walk\n")[1].split("\n## ")[0]
    walk = (ROOT / "docs" / "walk.md").read_text()
    scripts = dict(re.findall(r"`(\w+\.py)` [^`]*?```python\n(.*?)```", walk, re.S))
    assert all(number in section + "".join(scripts.values()) for number in SMALLER)
    for name, code in scripts.items():
        (tmp_path / name).write_text(smaller(code))
    save(car_data, tmp_path / "my.hdf5")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.S)
    for line in block.splitlines():
        program, *words = shlex.split(smaller(line), comments=True)
        if program == "python":  # without saferule, as osrl-lib's users start it; its simulator wants the real stdout
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        else:
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, (line, done.output)
    assert re.fullmatch(r"cost of an episode: [\d.]+", done.stdout.strip().splitlines()[-1])
    before, after = (torch.load(p, weights_only=True)["model_state"] for p in ("model.pt", "repaired/model.pt"))
    assert before.keys() == after.keys() and not torch.equal(before["actor.pi.0.weight"], after["actor.pi.0.weight"])
    assert pd.read_csv("repaired/episodes.csv")["policy"].tolist() == ["before", "after"]
    table = pd.read_csv("repaired/before-after.csv")
    assert table["difference"].to_numpy() == pytest.approx((table["after"] - table["before"]).to_numpy())
