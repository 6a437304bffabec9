"""Reading the command line's lists and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from saferule.errors import SettingsError


def listed(text: str) -> list[str]:
    """The parts of a text with commas, without spaces and empty parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def number(kind: type, text: str, option: str) -> float | int:
    """The text as a number; SettingsError that names the option for anything else."""
    try:
        return kind(text)
    except ValueError:
        raise SettingsError(
            f"{option}: {text!r} is no {kind.__name__}, expected numbers with commas: give 0,1"
        ) from None


def named_values(texts: Sequence[str], option: str) -> dict[str, str]:
    """{name: value} from ``name=value`` texts; SettingsError that names the option for one without "="."""
    wrong = next((text for text in texts if "=" not in text), None)
    if wrong is not None:
        raise SettingsError(f"{option}: {wrong!r}, expected NAME=OPTION: give for example kappa=per_step")
    return dict(text.split("=", 1) for text in texts)


def different_numbers(kind: type, text: str, option: str, *, or_none: bool = False) -> list[float | int | None]:
    """One or more different finite numbers of 0 or more; with or_none, the word none stands for None.

    SettingsError that names the option for anything else.
    """
    values = [None if or_none and part == "none" else number(kind, part, option) for part in listed(text)]
    given = [value for value in values if value is not None]
    if not values or len(set(values)) < len(values) or not all(math.isfinite(v) and v >= 0 for v in given):
        raise SettingsError(f"{option}: {text!r}, expected one or more different finite numbers of 0 or more: give 0,1")
    return values
