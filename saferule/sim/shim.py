"""Importing the simulators on Python 3.11.

safety-gymnasium 1.0.0 has dataclass fields with arrays as defaults; Python 3.11 refuses unhashable defaults.
Bullet-Safety-Gym redirects the C streams behind sys.stdout and sys.stderr and fails where these are replaced, as
in notebooks.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import ModuleType
from typing import Any

import numpy as np

from saferule.environment import without_graphics

_import_lock = threading.Lock()


def load_mujoco() -> None:
    """Import mujoco, if it can be, whatever MUJOCO_GL says: nothing is drawn yet, and a Bullet task needs none."""
    with _import_lock, without_graphics(), suppress(ImportError, OSError):
        importlib.import_module("mujoco")


def load_safety_gymnasium() -> ModuleType:
    """Import safety_gymnasium (all of it that builds environments), turning array defaults into factories."""
    with _import_lock:
        if "safety_gymnasium.builder" not in sys.modules:
            with _array_defaults_allowed(), without_graphics():
                importlib.import_module("safety_gymnasium")
                importlib.import_module("safety_gymnasium.builder")
        return sys.modules["safety_gymnasium"]


def load_bullet_safety_gym() -> ModuleType:
    """Import bullet_safety_gym, which registers SafetyCarCircle-v0 with gymnasium, and its engine."""
    with standard_streams():
        importlib.import_module("bullet_safety_gym.envs.builder")
    return sys.modules["bullet_safety_gym"]


@contextmanager
def standard_streams() -> Iterator[None]:
    """While active, sys.stdout and sys.stderr are the interpreter's own, which can be redirected."""
    with redirect_stdout(sys.__stdout__), redirect_stderr(sys.__stderr__):
        yield


@contextmanager
def _array_defaults_allowed() -> Iterator[None]:
    """While active, `dataclasses.dataclass` copies an array default for every instance."""
    original = dataclasses.dataclass

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        def decorate(cls: type) -> type:
            for name in cls.__dict__.get("__annotations__", {}):
                default = cls.__dict__.get(name)
                if isinstance(default, np.ndarray):
                    setattr(cls, name, dataclasses.field(default_factory=default.copy))
            return original(cls, **options)

        return decorate if cls is None else decorate(cls)

    dataclasses.dataclass = dataclass
    try:
        yield
    finally:
        dataclasses.dataclass = original
