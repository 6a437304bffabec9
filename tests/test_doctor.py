"""`saferule doctor`: one line a check, exit 1 when one fails, --json, and each check where it can go wrong."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from saferule import doctor
from saferule.agents import BACKBONES
from saferule.cli import app
from saferule.doctor import FAILED, NOTE, OK, Result
from saferule.errors import RunError, SettingsError
from saferule.runs.places import project_root

RUNNER = CliRunner()


def broken():
    raise ValueError("no such\nthing")


def refused():
    raise RunError("no kernel: install one")


FINE = {"one": lambda: Result("one", OK, "works"), "two": lambda: Result("two", NOTE, "slow", "do without")}


def test_every_check_is_one_line_and_a_note_is_no_failure(monkeypatch):
    monkeypatch.setattr(doctor, "checks", lambda: FINE)
    result = RUNNER.invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert result.stdout == "ok     one                   works\nnote   two                   slow: do without\n"


def test_a_failing_check_gives_its_line_the_others_and_exit_code_1(monkeypatch):
    monkeypatch.setattr(doctor, "checks", lambda: {"broken": broken, "refused": refused} | FINE)
    result = RUNNER.invoke(app, ["doctor"])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert len(lines) == 4 and lines[2].startswith("ok ")
    assert lines[0].split() == f"FAILED broken ValueError: no such thing: {doctor.REPORT}".split()
    assert lines[1].endswith("RunError: no kernel: install one")


@pytest.mark.parametrize("failing", [False, True])
def test_json_has_every_check(monkeypatch, failing):
    monkeypatch.setattr(doctor, "checks", lambda: FINE | ({"broken": broken} if failing else {}))
    result = RUNNER.invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert report["ok"] is not failing and result.exit_code == int(failing)
    assert report["checks"][1] == {"name": "two", "state": NOTE, "found": "slow", "advice": "do without"}
    assert len(report["checks"]) == 2 + failing


def test_the_checks_of_the_machine_and_of_what_comes_with_the_project():
    names = list(doctor.checks())
    assert names[0] == "device"
    for name in ("cores", "memory", "shared memory", "disk", "datasets", "notebook kernel", "system packages"):
        (result,) = doctor.examine({name: doctor.checks()[name]})
        assert result.name == name and result.state != FAILED and "\n" not in result.line(), result
    assert set(names) >= {*BACKBONES, "PointGoal", "PointPush", "AntVelocity", "CarCircle", "rendering"}


def test_the_device_says_why_there_is_no_gpu(monkeypatch):
    def init():
        raise RuntimeError("Found no NVIDIA driver on your system.\nMore words.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor.device().state == NOTE and "built without CUDA" in doctor.device().found
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    result = doctor.device()
    assert result.state == NOTE and "no NVIDIA driver on your system)" in result.found and "--gpus all" in result.advice


def test_the_gpu_is_named(monkeypatch):
    class Properties:
        name, total_memory = "Tesla", 16_000_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    result = doctor.device()
    assert result.state == OK and result.found.startswith("cuda, Tesla with 16.0 GB, the first of 2 GPUs")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_steps_alike_together_and_alone(name):
    assert doctor.backbone_step(name).state == OK


@pytest.mark.parametrize("name", BACKBONES)
def test_a_device_that_computes_something_else_is_found(monkeypatch, name):
    """As on a GPU, with the CPU in its place: first right, then with a wrong or a missing number."""
    real, change = doctor._stepped, {"by": 0.0}

    def stepped(backbone, agents, on):
        return real(backbone, agents, "cpu") + (0 if on == "cpu" else change["by"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "_stepped", stepped)
    assert doctor.backbone_step(name).state == OK
    for change["by"] in (1e-3, float("nan")):
        result = doctor.backbone_step(name)
        assert (
            result.state == FAILED
            and "on cuda and on the CPU" in result.found
            and "expected less than" in result.advice
        )


def test_a_simulator_steps():
    assert doctor.simulator_steps("CarCircle") == Result("CarCircle", OK, "ten steps, observations of 8 numbers")


def test_drawing_that_does_not_work_is_a_note(monkeypatch):
    class Blind:
        def reset(self, seed): ...
        def close(self): ...
        def render(self):
            return np.zeros((480, 480, 3), np.uint8)

    def unable(task, render):
        raise SettingsError("Cannot draw this task.")

    monkeypatch.setattr(doctor, "make", unable)
    assert doctor.rendering().state == NOTE and "Cannot draw this task." in doctor.rendering().found
    monkeypatch.setattr(doctor, "make", lambda task, render: Blind())
    assert doctor.rendering().state == NOTE and "an empty frame" in doctor.rendering().found


def test_changed_and_missing_datasets_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "project_root", lambda: tmp_path)
    folder = tmp_path / "artifacts" / "data"
    folder.mkdir(parents=True)
    assert doctor.datasets().state == FAILED and "SHA256SUMS" in doctor.datasets().found
    (folder / "a.hdf5").write_bytes(b"a")
    digest = hashlib.sha256(b"a").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  a.hdf5\n")
    assert doctor.datasets() == Result("datasets", OK, "1 files as in SHA256SUMS")
    (folder / "SHA256SUMS").write_text(f"{digest}  a.hdf5\n{digest}  b.hdf5\n")
    (folder / "a.hdf5").write_bytes(b"b")
    assert doctor.datasets().found.startswith("a.hdf5, b.hdf5 in ")


def test_every_committed_dataset_has_its_digest():
    """After `saferule data collect` for a committed file: (cd artifacts/data && sha256sum *.hdf5 >SHA256SUMS)."""
    folder = project_root() / "artifacts" / "data"
    listed = [line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert listed == sorted(path.name for path in folder.glob("*.hdf5"))


def test_the_packages_of_the_image_are_printed(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "APT_PACKAGES", tmp_path / "none")
    assert "not in the container image" in doctor.system_packages().found
    (tmp_path / "some").write_text("libegl1:amd64\t1.6.0-1\nmake\t4.3-4.1\n")
    monkeypatch.setattr(doctor, "APT_PACKAGES", tmp_path / "some")
    assert doctor.system_packages().found == "2 added to the base image: libegl1:amd64 1.6.0-1, make 4.3-4.1"


def test_a_run_says_first_which_device_it_uses(monkeypatch):
    monkeypatch.setattr("saferule.runs.notebooks.run_all", lambda *arguments: print("running"))
    result = RUNNER.invoke(app, ["run", "--notebooks", "attack"])
    device, running, *_ = result.stdout.splitlines()
    assert device == f"profile smoke on {doctor.device().found}" and running == "running"


def test_a_torch_that_cannot_be_imported_is_a_line_too(monkeypatch):
    monkeypatch.delattr("saferule.doctor")
    monkeypatch.setitem(sys.modules, "saferule.doctor", None)
    result = RUNNER.invoke(app, ["doctor"])
    assert result.exit_code == 1 and result.stdout.startswith("FAILED packages: ") and "./install.sh" in result.stdout
