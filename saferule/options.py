"""Reading the command line's lists and numbers."""

from __future__ import annotations

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
