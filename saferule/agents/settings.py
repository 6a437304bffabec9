"""Settings that come from files and users, as a backbone's Config: names, types and finite values are checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from saferule.errors import SettingsError


def configured(config: type, values: Mapping[str, Any]) -> Any:
    """``config(**values)``, lists as tuples and whole numbers as floats where the field asks for them.

    SettingsError for a name that it does not have, and for a value of another kind or that is not finite.
    """
    hints = get_type_hints(config)
    own = [name for name in config.__dataclass_fields__]
    unknown = next((name for name in values if name not in own), None)
    if unknown is not None:
        raise SettingsError(f"no setting {unknown!r} here, expected one of {', '.join(own)}: leave it out")
    return config(**{name: _as(hints[name], name, value) for name, value in values.items()})


def _as(kind: Any, name: str, value: Any) -> Any:
    if items := get_args(kind):  # tuple[int, ...] or tuple[float, float, float]
        kinds = [items[0]] * len(value) if isinstance(value, list | tuple) and items[-1] is ... else items
        if isinstance(value, list | tuple) and len(kinds) == len(value):
            return tuple(_as(k, name, v) for k, v in zip(kinds, value, strict=True))
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    elif kind is not float and type(value) is kind:
        return value
    wanted = f"{len(items)} finite numbers" if items and items[-1] is not ... else getattr(kind, "__name__", kind)
    raise SettingsError(f"{name} = {value!r}, expected {wanted}{' and finite' if kind is float else ''}: correct it")
