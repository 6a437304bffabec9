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
    from saferule.agents import BACKBONES, get_backbone
    from saferule.bench import table, write_json
    from saferule.bench.agents import measure, time_by_operation

    names = listed(backbones) or list(BACKBONES)
    for name in names:
        get_backbone(name)
    _check_device(device)
    if profile:
        typer.echo(table(time_by_operation(names)))
        return
    rows, machine = measure(names, device, rounds, typer.echo, captured)
    typer.echo("\n" + table(rows))
    typer.echo("\n" + ", ".join(f"{name}: {value}" for name, value in machine.items()))
    if json is not None:
        write_json(json, rows, machine)


@bench_app.command("unlearning")
def bench_unlearning(
    json: JsonOption = None,
    profile: Annotated[str, typer.Option(help="Settings and numbers of steps: smoke, cpu or paper.")] = "smoke",
    task: Annotated[str, typer.Option(help="With commas [those of the profile].")] = "",
    backbones: Annotated[str, typer.Option(help="With commas [all four].")] = "",
    rounds: RoundsOption = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of torch; a run gives each of its processes one.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    data: Annotated[Path | None, typer.Option(help="Folder of the datasets [artifacts/data].")] = None,
) -> None:
    """Time of retraining, Safe-RULE and the baselines (Table 3); run it on an idle machine."""
    from saferule.bench import write_json
    from saferule.bench.unlearning import measure
    from saferule.data.schema import clean_data
    from saferule.profiles import get_profile
    from saferule.report.timing import conclusions, markdown
    from saferule.runs.places import project_root

    chosen = get_profile(profile, tasks=listed(task) or None, backbones=listed(backbones) or None)
    _check_device(device)
    folder = data or project_root() / "artifacts" / "data"  # of any profile: times do not depend on the values
    datasets = {name: clean_data(folder, name) for name in chosen.tasks}
    rows, machine = measure(datasets, chosen, rounds, threads=threads, device=device, say=typer.echo)
    typer.echo("\n" + markdown(rows))
    typer.echo("\n" + "\n".join(conclusions(rows)))
    typer.echo("\n" + ", ".join(f"{name}: {value}" for name, value in machine.items()))
    if json is not None:
        write_json(json, rows, machine)


def _check_device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise SettingsError(f"--device: {device!r} is not here, expected cpu, or cuda on a machine with a GPU")


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
