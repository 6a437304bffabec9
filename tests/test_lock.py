"""The lock: exact, complete, and what this environment was made from."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-cuda.lock")

# Declared by a package of the lock, needed by nothing that saferule runs.
LEFT_OUT = {
    "gym": "dsrl: only its MetaDrive tasks",
    "easy-runner": "osrl-lib: a launcher of its example scripts",
    "swig": "osrl-lib: to build packages that come as wheels here",
    "oapackage": "osrl-lib: CDT's data augmentation, not used",
}
NOT_LOCKED = {"pip", "saferule"}  # the installer itself, and the project


def pins(name: str) -> dict[str, str]:
    """Canonical package name -> version, of one lock file; fails on an inexact or repeated line."""
    found: dict[str, str] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][A-Za-z0-9.]*)", line)
        assert match, f"{name}: not an exact pin: {line!r}"
        package = canonicalize_name(match[1])
        assert package not in found, f"{name}: {package} is pinned twice"
        found[package] = match[2]
    return found


def installed() -> dict[str, metadata.Distribution]:
    return {canonicalize_name(d.metadata["Name"]): d for d in metadata.distributions()}


def required_names(requirements: list[str], extras: tuple[str, ...] = ("",)) -> set[str]:
    """Packages that apply on this platform, and under these extras."""
    parsed = map(Requirement, requirements)
    return {
        canonicalize_name(r.name)
        for r in parsed
        if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)
    }


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_one_exact_pin(name):
    assert len(pins(name)) == sum(not line.startswith("#") for line in (ROOT / name).read_text().splitlines())


def test_the_two_locks_share_no_package():
    assert not pins("requirements.lock").keys() & pins("requirements-cuda.lock").keys()


def test_python_is_the_one_the_project_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.12"
    assert sys.version_info[:2] == (3, 11)


def test_direct_dependencies_are_locked():
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"] + document["build-system"]["requires"]
    locked = pins("requirements.lock")
    assert {canonicalize_name(Requirement(w).name) for w in wanted} - locked.keys() == set()
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


def test_what_is_installed_is_what_is_locked():
    locked = pins("requirements.lock") | pins("requirements-cuda.lock")
    here = installed()
    assert here.keys() - locked.keys() - NOT_LOCKED == set()
    assert pins("requirements.lock").keys() - here.keys() == set()
    # "2.13.0+cpu" is the CPU build of the pinned 2.13.0
    wrong = {n: d.version for n, d in here.items() if n in locked and Version(d.version).public != locked[n]}
    assert wrong == {}


def test_nothing_that_a_locked_package_requires_is_missing():
    locked = pins("requirements.lock") | pins("requirements-cuda.lock")
    missing = {}
    for name, distribution in installed().items():
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            target = canonicalize_name(requirement.name)
            needs = {target}
            if requirement.extras and target in installed():
                needs |= required_names(installed()[target].requires or [], tuple(requirement.extras))
            for absent in needs - locked.keys() - LEFT_OUT.keys():
                missing.setdefault(absent, []).append(name)
    assert missing == {}


def test_a_cuda_torch_finds_its_packages_in_the_cuda_lock():
    """On a CPU wheel there is nothing to ask for: then none of the CUDA lock may be installed."""
    requirements = metadata.requires("torch") or []
    cuda = {n for n in required_names(requirements) if n.startswith(("nvidia-", "cuda-", "triton"))}
    locked = pins("requirements-cuda.lock")
    if not cuda:
        assert not locked.keys() & installed().keys()
        return
    assert cuda <= locked.keys()
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        if name in cuda:
            assert requirement.specifier.contains(locked[name]), str(requirement)
    assert {n: installed()[n].version for n in locked if n in installed()} == locked


def test_what_is_declared_is_what_the_package_imports():
    """Beside what it starts or loads by name."""
    by_name = {"bullet-safety-gym", "ipykernel", "jupyterlab", "rich", "tqdm"}
    modules = {
        name.split(".")[0]
        for path in (ROOT / "saferule").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    } - {"saferule", *sys.stdlib_module_names}
    owners = metadata.packages_distributions()
    imported = {canonicalize_name(owner) for module in modules for owner in owners[module]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {canonicalize_name(Requirement(text).name) for text in project["dependencies"]} == imported | by_name
