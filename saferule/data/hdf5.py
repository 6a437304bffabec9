"""HDF5 files read with errors that name the file and the key, and written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from saferule.errors import DataError

SIGNATURE = b"\x89HDF\r\n\x1a\n"  # the first eight bytes of an HDF5 file


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading; `DataError` where it is missing, a folder, no HDF5 or truncated."""
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected an HDF5 file: name a file in it.")
    if not path.exists():
        raise DataError(f"{path} does not exist, expected an HDF5 file in the DSRL schema: check the path.")
    try:
        file = h5py.File(path, "r")
    except PermissionError as error:
        raise DataError(f"{path} cannot be read, expected an HDF5 file: check its permissions.") from error
    except OSError as error:
        with open(path, "rb") as raw:
            begins_as_hdf5 = raw.read(len(SIGNATURE)) == SIGNATURE
        if begins_as_hdf5:
            raise DataError(f"{path} is a truncated or damaged HDF5 file ({error}): fetch or copy it again.") from error
        raise DataError(f"{path} is no HDF5 file: give a file in the DSRL schema.") from error
    with file:
        yield file


def read_array(file: h5py.File, path: Path, key: str) -> np.ndarray:
    """All of one key; `DataError` where it is no array of numbers or cannot be decompressed."""
    try:
        item = file[key]
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf":
            return np.asarray(item[()])
    except (OSError, KeyError, RuntimeError) as error:  # what h5py raises where a block is damaged
        raise DataError(f"{path}: key '{key}' is damaged ({error}): fetch or copy the file again.") from error
    raise DataError(f"{path}: key '{key}' is no array of numbers, expected one row per transition: write it as one.")


def read_attributes(file: h5py.File) -> dict[str, str | int | float]:
    """The file's scalar attributes as plain Python values."""
    attributes = {}
    for name, value in file.attrs.items():
        value = value.item() if isinstance(value, np.generic) else value
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        if isinstance(value, (str, int, float)):
            attributes[name] = value
    return attributes


def write_file(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, str | int | float]) -> None:
    """Write arrays (shuffled, gzip level 4) and attributes to a new file, then rename it to `path`.

    The temporary name lies in the same folder, so `path` holds the old file or the whole new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with h5py.File(partial, "x") as file:
            for key, array in arrays.items():
                file.create_dataset(key, data=array, compression="gzip", compression_opts=4, shuffle=True)
            file.attrs.update(attributes)
        with open(partial, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
