"""Execute the notebooks in order through papermill; executed copies appear whole, under their names, or not at all.

A notebook asks the engine for runs, so one that is executed again finds them finished. No notebook is skipped: what is
shown is always what the store holds now.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saferule.environment import settle_jupyter
from saferule.errors import NotebookError, RunError, SettingsError
from saferule.files import write_bytes
from saferule.runs.places import NOTEBOOKS, project_root

KERNEL = "python3"  # jupyter_client starts this interpreter for it, if the environment's own kernelspec is taken
ERROR_LINES = 12


def run_all(
    profile: str,
    names: Sequence[str] = NOTEBOOKS,
    output: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Path:
    """Execute the named notebooks in their order and print one line for each; returns the profile's folder.

    output      root of the results (default: the checkout's ``artifacts``); they go to ``<output>/<profile>``
    parameters  further papermill parameters: tasks, backbones, attacks, ratios, replicates, data, changes
    NotebookError when one fails.
    """
    root = project_root()
    kernel()
    output = (output or root / "artifacts").resolve()
    folder = output / profile
    elsewhere = {} if output == root / "artifacts" else {"output": str(output)}
    given = {"profile": profile, **(parameters or {}), **elsewhere}
    for name in NOTEBOOKS:
        if name in names:
            took = execute(root / "notebooks" / f"{name}.ipynb", folder / "notebooks", given, root)
            print(f"{name}.ipynb: done in {took:.0f} s", flush=True)
    print(f"notebooks  {folder / 'notebooks'}\ntables     {folder / 'tables'}\nfigures    {folder / 'figures'}")
    return folder


def check_names(names: Sequence[str]) -> None:
    """SettingsError for a notebook that does not exist."""
    unknown = [name for name in names if name not in NOTEBOOKS]
    if unknown:
        raise SettingsError(f"unknown notebook {unknown[0]!r}: choose among {', '.join(NOTEBOOKS)}")


def kernel() -> str:
    """The program that the notebooks' kernel starts; RunError when it is not this very interpreter."""
    settle_jupyter()
    from jupyter_client import KernelManager

    program = KernelManager(kernel_name=KERNEL).format_kernel_cmd()[0]  # for a bare "python" the interpreter here
    if Path(program).parent.resolve() != Path(sys.executable).parent.resolve():
        raise RunError(
            f"the notebook kernel {KERNEL!r} starts {program}, expected {sys.executable}: install anew with "
            f"./install.sh, or run `{sys.executable} -m ipykernel install --sys-prefix`"
        )
    return program


def execute(notebook: Path, folder: Path, parameters: Mapping[str, Any], directory: Path) -> float:
    """Execute one notebook in ``directory`` and put the executed copy into ``folder``; returns the seconds it took.

    NotebookError names the notebook, the cell and the last lines of its error; what was executed until then is kept as
    ``<name>.failed.ipynb``.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    folder.mkdir(parents=True, exist_ok=True)
    final, failed = folder / notebook.name, folder / f"{notebook.stem}.failed.ipynb"
    draft = folder / f".tmp-{notebook.name}"
    started = time.monotonic()
    print(f"{notebook.name}: running", flush=True)
    try:
        papermill.execute_notebook(
            _as_it_is(notebook),
            _as_it_is(draft),
            parameters=dict(parameters),
            kernel_name=KERNEL,
            cwd=str(directory),
            progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # what goes wrong in a cell is reported below
            stdout_file=_Indented(sys.stdout),
            stderr_file=_Indented(sys.stderr),
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        _keep(draft, failed, notebook)
        raise NotebookError(f"{notebook.name} failed{_reason(error)}\nExecuted until there: {failed}") from None
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # or it prints the cell's traceback at exit
        raise
    else:
        _keep(draft, final, notebook)
        failed.unlink(missing_ok=True)
    finally:
        draft.unlink(missing_ok=True)
    return time.monotonic() - started


def _as_it_is(path: Path) -> str:
    """A path for papermill, which else fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _reason(error: Exception) -> str:
    """Which cell, and the end of what it said."""
    if not hasattr(error, "cell_index"):
        return ": its kernel died (out of memory, or killed); run again, finished work is kept"
    lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
    where = f" in cell {error.cell_index + 1}: {error.ename}: {error.evalue}"
    return "\n".join([where, *(f"    {line}" for line in lines[-ERROR_LINES:])])


def _keep(draft: Path, final: Path, notebook: Path) -> None:
    """Give the executed copy its name, without the paths of this machine in its metadata."""
    import nbformat

    executed = nbformat.read(draft, as_version=4)
    record = executed.metadata.get("papermill", {})
    record |= {"input_path": f"notebooks/{notebook.name}", "output_path": f"notebooks/{final.name}"}
    write_bytes(final, nbformat.writes(executed).encode())


class _Indented:
    """A text stream that puts what a notebook prints under its line."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.fresh = stream, True

    def write(self, text: str) -> None:
        for line in text.splitlines(keepends=True):
            self.stream.write(("    " if self.fresh else "") + line)
            self.fresh = line.endswith("\n")

    def flush(self) -> None:
        self.stream.flush()
