"""The shell scripts: options, exit codes, and the errors of an installation that cannot begin."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = "bash basename cat cut dirname grep ls mkdir mv realpath rm sha256sum tail".split()  # of install.sh


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """The files an installation reads, in a folder with a space in its name, where nothing may be installed."""
    folder = tmp_path / "a copy"
    folder.mkdir()
    for name in ("install.sh", "run_all.sh", "pyproject.toml", "requirements.lock", "requirements-cuda.lock"):
        shutil.copy2(ROOT / name, folder / name)
    yield folder
    assert not (folder / ".venv").exists()


@pytest.fixture
def without_python(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has the tools of install.sh and no Python at all."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    return {"PATH": str(folder), "HOME": str(tmp_path)}


def test_help_names_the_profiles_and_installs_nothing(copy):
    done = run(copy / "run_all.sh", "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "--profile smoke|cpu|paper" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--fast"], "unknown option: --fast"),
        (["smoke"], "unknown option: smoke"),
        (["--profile"], "--profile needs a value"),
        (["--profile", "huge"], "unknown profile: huge"),
        (["--profile=huge"], "unknown profile: huge"),
    ],
)
def test_bad_options_print_the_usage_and_exit_2(copy, arguments, complaint):
    done = run(copy / "run_all.sh", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert complaint in done.stderr and "Usage: ./run_all.sh" in done.stderr


@pytest.mark.parametrize("script", ["install.sh", "run_all.sh"])
def test_missing_python_is_one_clear_error(copy, without_python, script):
    done = run("bash", copy / script, env=without_python)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "Python 3.11" in done.stderr and "python3.11-venv" in done.stderr


def test_install_refuses_an_option_it_does_not_know(copy):
    done = run(copy / "install.sh", "--lock")
    assert done.returncode == 1 and done.stderr == "install: unknown option: --lock, expected --lock-only or nothing.\n"


def test_another_python_is_not_taken_for_3_11(copy, without_python):
    stand_in = Path(without_python["PATH"]) / "python3"
    stand_in.write_text("#!/bin/sh\nexit 1\n")  # what any Python but 3.11 answers to the script's question
    stand_in.chmod(0o755)
    done = run("bash", copy / "install.sh", env=without_python)
    assert done.returncode == 1 and "Python 3.11" in done.stderr


def test_a_folder_that_is_no_environment_is_left_alone(copy, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    done = run(copy / "install.sh", env={**os.environ, "SAFERULE_VENV": str(precious)})
    assert done.returncode == 1 and str(precious) in done.stderr
    assert [p.name for p in precious.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("script", ["install.sh", "run_all.sh"])
@pytest.mark.parametrize("place", ["~", "~/x", "~somebody/x"])
def test_a_home_that_no_shell_expanded_makes_no_folder_of_that_name(copy, script, place):
    done = run("bash", copy / script, env={**os.environ, "SAFERULE_VENV": place}, cwd=copy)
    assert (done.returncode, done.stdout) == (1, "") and f"SAFERULE_VENV={place}: " in done.stderr
    assert not [path for path in copy.iterdir() if path.name.startswith("~")]


def test_a_broken_pip_conf_is_told_before_anything_is_installed(copy, tmp_path):
    """Left out silently, packages would come from another index than the one that it names."""
    place, settings = tmp_path / "venv", tmp_path / "pip.conf"
    (place / "bin").mkdir(parents=True)
    (place / "pyvenv.cfg").touch()
    (place / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (place / "bin" / "python").chmod(0o755)
    settings.write_text("index-url = mine\n")
    environ = {**os.environ, "SAFERULE_VENV": str(place), "PIP_CONFIG_FILE": str(settings)}
    done = run("bash", copy / "install.sh", "--lock-only", env=environ)
    assert done.returncode == 1 and str(settings) in done.stderr, done.stderr
    assert done.stderr.endswith("install: pip cannot read its settings, see the lines above: correct that file.\n")
    assert not (place / ".saferule-lock").exists()


@pytest.mark.parametrize("options", [(), ("--lock-only",)])
def test_an_installed_environment_needs_neither_network_nor_time(tmp_path, without_python, options):
    """From another folder, without a package index and without Python on PATH."""
    if not (Path(sys.prefix) / ".saferule-project").exists():
        pytest.skip("this environment was not made by install.sh")
    if f'"{ROOT.as_uri()}"' not in (metadata.distribution("saferule").read_text("direct_url.json") or ""):
        pytest.skip("this environment has the project of another checkout, which it would lose")
    env = {**without_python, "SAFERULE_VENV": sys.prefix, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    before = (Path(sys.prefix) / ".saferule-lock").stat().st_mtime_ns
    done = run("bash", ROOT / "install.sh", *options, env=env, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (Path(sys.prefix) / ".saferule-lock").stat().st_mtime_ns == before


def test_importing_saferule_loads_nothing_heavy():
    heavy = ["torch", "ray", "stable_baselines3", "osrl", "mujoco", "gymnasium", "pandas"]
    code = f"import saferule, sys; print([m for m in {heavy} if m in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout.strip() == "[]"
