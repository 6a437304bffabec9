"""Changes to a profile's fields, given as text: ``training_steps=100``, ``seeds=0,1``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from saferule.errors import SettingsError
from saferule.profiles import Profile

FIXED = ("name", "settings", "adversary_steps_by_task")  # what makes the profile the profile


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


READERS: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "bool": _yes_or_no}


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """{field: value} from ``name=value`` texts; lists are written with commas.

    SettingsError for a text without "=", an unknown field, a value of another type, and numbers that are impossible.
    """
    types = {f.name: str(f.type) for f in fields(Profile) if f.name not in FIXED}
    changes: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or name not in types:
            raise SettingsError(f"cannot set {text!r}, expected name=value: choose a name among {', '.join(types)}")
        element = types[name].removeprefix("tuple[").partition(",")[0]
        listed = types[name].startswith("tuple")
        try:
            values = [READERS[element](part.strip()) for part in (value.split(",") if listed else [value])]
        except ValueError:
            raise SettingsError(f"{name} = {value!r}, expected {element}: write {name}=<{element}>") from None
        _check(name, values)
        if len(set(values)) < len(values):
            raise SettingsError(f"{name} = {value!r} names a value twice, expected each once: drop the repetition")
        changes[name] = values if listed else values[0]
    return changes


def _check(name: str, values: Sequence[Any]) -> None:
    smallest = 0 if name in ("seeds", "snapshots") else 1
    for value in values:
        if type(value) is int and value < smallest:
            raise SettingsError(f"{name} = {value}, expected {smallest} or more: give a larger number")
        if isinstance(value, float) and not 0 < value < 1:
            raise SettingsError(f"{name} = {value}, expected a number between 0 and 1, such as 0.05")
        if value == "":
            raise SettingsError(f"{name} is empty, expected at least one value: write {name}=value")
