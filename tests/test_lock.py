"""The lock: exact, complete, and what this environment was made from."""

import ast
import re
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK, CUDA_LOCK = "requirements.lock", "requirements-cuda.lock"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]

# Declared by a package of the lock, needed by nothing that saferule runs.
LEFT_OUT = {
    "gym": "dsrl: only its MetaDrive tasks",
    "easy-runner": "osrl-lib: a launcher of its example scripts",
    "swig": "osrl-lib: to build packages that come as wheels here",
    "oapackage": "osrl-lib: CDT's data augmentation, not used",
}
NOT_LOCKED = {"pip", "saferule"}  # the installer itself, and the project


def lines(name: str) -> list[str]:
    """Of one lock file, without comments."""
    return [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]


def pins(*names: str) -> dict[str, str]:
    """Canonical package name -> version, of lock files; fails on an inexact or repeated line."""
    found: dict[str, str] = {}
    for line in (line for name in names for line in lines(name)):
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][A-Za-z0-9.]*)", line)
        assert match, f"not an exact pin: {line!r}"
        package = canonicalize_name(match[1])
        assert package not in found, f"{package} is pinned twice"
        found[package] = match[2]
    return found


def installed() -> dict[str, metadata.Distribution]:
    """What lies in the environment itself: an imported ray adds packages of its own to the search path."""
    found = metadata.distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return {canonicalize_name(d.metadata["Name"]): d for d in found}


def required(requirements: list[str] | None, extras: Iterable[str] = ("",)) -> list[tuple[str, Requirement]]:
    """(canonical package name, requirement) for those that apply on this platform, and under one of these extras."""
    return [
        (canonicalize_name(r.name), r)
        for r in map(Requirement, requirements or [])
        if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def test_every_line_is_one_exact_pin_and_the_two_locks_share_no_package():
    assert len(pins(LOCK, CUDA_LOCK)) == len(lines(LOCK)) + len(lines(CUDA_LOCK))


def test_python_is_the_one_the_project_declares():
    assert PROJECT["requires-python"] == ">=3.11,<3.12"
    assert sys.version_info[:2] == (3, 11)


def test_direct_dependencies_are_locked():
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"] + PYPROJECT["build-system"]["requires"]
    locked = pins(LOCK)
    for name, requirement in required(wanted):
        assert name in locked and requirement.specifier.contains(locked[name]), name


def test_what_is_installed_is_what_is_locked():
    locked, here = pins(LOCK, CUDA_LOCK), installed()
    assert here.keys() - locked.keys() - NOT_LOCKED == set()
    assert pins(LOCK).keys() - here.keys() == set()
    # "2.13.0+cpu" is the CPU build of the pinned 2.13.0
    wrong = {n: d.version for n, d in here.items() if n in locked and Version(d.version).public != locked[n]}
    assert wrong == {}


def test_nothing_that_a_locked_package_requires_is_missing():
    known, here, missing = pins(LOCK, CUDA_LOCK).keys() | LEFT_OUT.keys(), installed(), {}
    for name, distribution in here.items():
        for target, requirement in required(distribution.requires):
            needs = {target}
            if requirement.extras and target in here:
                needs |= {each for each, _ in required(here[target].requires, requirement.extras)}
            for absent in needs - known:
                missing.setdefault(absent, []).append(name)
    assert missing == {}


def test_a_cuda_torch_finds_its_packages_in_the_cuda_lock():
    """On a CPU wheel there is nothing to ask for: then none of the CUDA lock may be installed."""
    asked = required(metadata.requires("torch"))
    cuda = [(name, r) for name, r in asked if name.startswith(("nvidia-", "cuda-", "triton"))]
    locked, here = pins(CUDA_LOCK), installed()
    for name, requirement in cuda:
        assert name in locked and requirement.specifier.contains(locked[name]), str(requirement)
    assert {n: here[n].version for n in locked if n in here} == (locked if cuda else {})


def test_what_is_declared_is_what_the_package_imports():
    """Beside what it starts or loads by name."""
    by_name = {"bullet-safety-gym", "ipykernel", "jupyterlab", "rich", "tqdm"}
    nodes = [node for path in (ROOT / "saferule").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    modules = {name.split(".")[0] for name in names} - {"saferule", *sys.stdlib_module_names}
    owners = metadata.packages_distributions()
    imported = {canonicalize_name(owner) for module in modules for owner in owners[module]}
    assert {name for name, _ in required(PROJECT["dependencies"])} == imported | by_name
