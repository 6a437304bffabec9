"""What osrl-lib's training scripts leave in a folder: a state in ``checkpoint/model.pt``, settings in ``config.yaml``.

Nothing but tensors and plain numbers is ever unpickled, and no YAML tag makes an object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from saferule.errors import CheckpointError

State = dict[str, Tensor]
WRAPPERS = ("module", "_orig_mod")  # parts of names that DataParallel and torch.compile put in
NUMBERS = [np.dtype, *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}]
# A numpy scalar beside the tensors, such as the best cost so far, as numpy 1 and 2 pickle it.
NUMBERS += [(np.core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


class _Loader(yaml.SafeLoader):
    """Reads what fsrl's loggers write of a dataclass: plain values and tuples."""


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node)))


def read_state(path: str | Path) -> State:
    """The tensors of an osrl-lib checkpoint, ``{"model_state": ...}`` or a bare state, on the CPU.

    Names lose the parts that DataParallel and torch.compile add; plain numbers beside the tensors are left out.
    CheckpointError for anything but a whole file of finite tensors. Only tensors and numbers are unpickled.
    """
    try:
        with torch.serialization.safe_globals(NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected an osrl-lib model.pt: check the path") from error
    except Exception as error:  # torch raises many kinds for a broken or foreign file, with misleading advice
        if found := re.search(r"(?:GLOBAL|class|global) `?([\w]+\.[\w.]+)", str(error)):
            raise CheckpointError(
                f"{path}: holds a {found[1][:80]}, which is not unpickled (nothing but plain tensors and numbers is): "
                "save model.state_dict() with torch.save"
            ) from error
        raise CheckpointError(
            f"{path}: not a whole osrl-lib model.pt of plain tensors (nothing else is unpickled): it is truncated "
            "or of another kind, get it again"
        ) from error
    state = content
    if isinstance(content, Mapping):
        plain = (int, float, str, np.generic, type(None))
        beside = {key: value for key, value in content.items() if not isinstance(value, plain)}
        state = content.get("model_state", beside)
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: no tensors by name in it, expected an osrl-lib model.pt: give another file")
    tensors: State = {}
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise CheckpointError(f"{path}: key {key!r} is not a tensor, expected an osrl-lib state: give another file")
        if not value.isfinite().all():
            raise CheckpointError(f"{path}: key {key!r} has values that are not finite: give an earlier checkpoint")
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in tensors:
            raise CheckpointError(f"{path}: {name!r} is in it twice, once as {key!r}: save one model's state alone")
        tensors[name] = value
    return tensors


def config_file(path: Path) -> Path | None:
    """The ``config.yaml`` that belongs to a model: beside it, or where osrl-lib puts it, above ``checkpoint/``."""
    above = [path.parent.parent] if path.absolute().parent.name == "checkpoint" else []
    return next((f / "config.yaml" for f in (path.parent, *above) if (f / "config.yaml").is_file()), None)


def read_config(path: Path) -> dict[str, Any]:
    """The entries of a ``config.yaml``; also as wandb writes them, with each value under "value"."""
    try:
        content = yaml.load(path.read_bytes(), Loader=_Loader)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())[:100]
        raise CheckpointError(
            f"{path}: not osrl-lib's config.yaml ({cause}), expected plain YAML: correct it or move it away"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not osrl-lib's config.yaml, expected NAME: VALUE lines: move it away")
    return {
        name: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
        for name, entry in content.items()
    }
