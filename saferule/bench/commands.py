"""``saferule bench ...``: the commands. Each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saferule.errors import SettingsError
from saferule.options import listed, number

bench_app = typer.Typer(
    help="Speed beside the reference libraries; whether bfloat16 is good enough.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@bench_app.command("envs")
def bench_envs(
    file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file too.")] = None,
) -> None:
    """The stock simulators beside ours, over full episodes with their resets, in steps/s."""
    from saferule.bench import table, write_json
    from saferule.bench.envs import measure

    rows, machine = measure(say=lambda line: typer.echo(line, err=True))
    typer.echo(table(rows))
    if file is not None:
        write_json(file, rows, machine)


JsonOption = Annotated[Path | None, typer.Option("--json", help="Write rows and machine to this file.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Blocks per side; the median counts.")]


@bench_app.command("agents")
def bench_agents(
    json: JsonOption = None,
    backbones: Annotated[str, typer.Option(help="With commas [all four].")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: RoundsOption = 7,
    captured: Annotated[bool, typer.Option("--captured", help="Replay our steps as CUDA graphs.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Where the time goes instead of how fast.")] = False,
) -> None:
    """Training steps beside osrl-lib's, at its settings; run it on an idle machine."""
    import torch

    from saferule.agents import BACKBONES, get_backbone
    from saferule.bench import table, write_json
    from saferule.bench.agents import measure, time_by_operation

    names = listed(backbones) or list(BACKBONES)
    for name in names:
        get_backbone(name)
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise SettingsError(f"--device: {device!r} is not here, expected cpu, or cuda on a machine with a GPU")
    if profile:
        typer.echo(table(time_by_operation(names)))
        return
    rows, machine = measure(names, device, rounds, typer.echo, captured)
    typer.echo("\n" + table(rows))
    typer.echo("\n" + ", ".join(f"{name}: {value}" for name, value in machine.items()))
    if json is not None:
        write_json(json, rows, machine)


@bench_app.command("precision")
def bench_precision(
    out: Annotated[Path, typer.Option(help="Folder of the figure and the tables.")],
    steps: Annotated[int, typer.Option(help="Gradient steps.")] = 4000,
    seeds: Annotated[str, typer.Option(help="With commas.")] = "0,1,2",
) -> None:
    """Train with target passes in either precision on CarCircle and compare."""
    from saferule.bench.precision import study
    from saferule.runs.engine import Engine
    from saferule.runs.places import project_root
    from saferule.runs.store import Store

    engine = Engine(Store(out), project_root() / "artifacts" / "data", say=typer.echo)
    numbers = [number(int, part, "--seeds") for part in listed(seeds)]
    for backbone, found in study(engine, out, numbers, steps).items():
        for quantity, value in found.items():
            typer.echo(
                f"{backbone}: final {quantity}, bfloat16 - float32 = {value['difference']:.1f} "
                f"(standard error {value['standard_error']:.1f}, {len(numbers)} seeds)"
            )
