"""The command line. Every command imports what it needs when it runs, so that ``saferule --help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from saferule.errors import SaferuleError
from saferule.options import different_numbers, listed, named_values


class Commands(TyperGroup):
    """Turns an error on purpose into one line and exit code 2, an interrupt into 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except SaferuleError as error:
            typer.echo(f"saferule: error: {error}", err=True)
            raise typer.Exit(2) from None
        except OSError as error:  # a full disk, a folder that cannot be written; other errors keep their traceback
            if error.filename is None:
                raise
            typer.echo(f"saferule: error: {error}: choose another place or make room", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("saferule: interrupted: finished work is kept; an adversary in training begins again", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    help="Poisoning offline safe reinforcement learning, and unlearning the poison.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(
    help="Datasets in the DSRL schema: collect, fetch, check.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")

TaskOption = Annotated[str, typer.Option("--task", help="PointGoal, PointPush, AntVelocity or CarCircle.")]
ProfileOption = Annotated[str, typer.Option("--profile", help="smoke, cpu or paper.")]
OutputOption = Annotated[Path | None, typer.Option("--output", help="Root of the results [artifacts].")]
DataFolderOption = Annotated[Path | None, typer.Option("--data", help="Folder of the datasets [artifacts/data].")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="Change a field of the profile, such as seeds=0,1; repeatable."),
]
ReadingOption = Annotated[
    list[str],
    typer.Option("--reading", metavar="NAME=OPTION", help="Of saferule/paper/readings.py; repeatable."),
]
PAPER_PARAMETERS = ("tasks", "backbones", "attacks", "ratios", "seeds")  # those of the notebooks' parameters cells


@app.command()
def run(
    profile: ProfileOption = "smoke",
    notebooks: Annotated[str, typer.Option(help="Which, with commas [all, in order].")] = "",
    output: OutputOption = None,
    data: DataFolderOption = None,
    changes: SetOption = [],  # noqa: B006  typer wants a list
) -> None:
    """Execute the notebooks of a profile; finished work is kept, interrupted work continues."""
    from saferule.profiles import get_profile
    from saferule.runs.notebooks import run_all
    from saferule.runs.overrides import parse
    from saferule.runs.places import NOTEBOOKS

    changed = parse(changes)
    get_profile(profile, **changed)  # an unknown name is reported before a kernel starts
    parameters = {name: changed.pop(name) for name in PAPER_PARAMETERS if name in changed}
    if changed:
        parameters["changes"] = changed
    if data is not None:
        parameters["data"] = str(data.resolve())
    run_all(profile, listed(notebooks) or NOTEBOOKS, output, parameters)


@app.command()
def cells(
    profile: ProfileOption = "smoke",
    output: OutputOption = None,
    data: DataFolderOption = None,
    changes: SetOption = [],  # noqa: B006
    missing: Annotated[bool, typer.Option("--missing", help="List only what is missing.")] = False,
) -> None:
    """List the runs of a profile: what is done and what is missing."""
    from saferule.profiles import get_profile
    from saferule.runs.inventory import inventory
    from saferule.runs.overrides import parse
    from saferule.runs.places import default_data_folder, project_root

    chosen = get_profile(profile, **parse(changes))
    folder = (output or project_root() / "artifacts") / profile
    data = data or default_data_folder(chosen)
    found = inventory(chosen, folder, data)
    for state, kind, name in found.rows:
        if state == "missing" or not missing:
            typer.echo(f"{state:8} {kind:11} {name}")
    for sentence in found.notes:
        typer.echo(sentence)
    done = sum(state == "done" for state, _, _ in found.rows)
    typer.echo(f"{done} of {len(found.rows)} runs of profile {profile} are done in {folder}")


@app.command()
def attack(
    task: TaskOption,
    attack: Annotated[str, typer.Option(help="max_cost, max_reward or min_reward.")],
    ratio: Annotated[float, typer.Option(help="rho, such as 0.05.")],
    out: Annotated[Path, typer.Option(help="File of the forget set D_f.")],
    data: Annotated[Path | None, typer.Option(help="D, a file in the DSRL schema [artifacts/data/TASK.hdf5].")] = None,
    steps: Annotated[int | None, typer.Option(help="Simulator steps of the adversary [the paper's 10^6].")] = None,
    seed: Annotated[int, typer.Option(help="Of the adversary.")] = 0,
    adversary: Annotated[Path | None, typer.Option(help="Folder of a trained adversary: use it, train none.")] = None,
    poisoned: Annotated[Path | None, typer.Option(help="Also write D and D_f together to this file.")] = None,
    reading: ReadingOption = [],  # noqa: B006
) -> None:
    """Algorithm 1 on a dataset: train an adversary, roll it out, write the forget set."""
    from saferule.attack.pipeline import attack_file
    from saferule.runs.places import project_root
    from saferule.sim.tasks import get_task

    chosen = get_task(task)
    data = data or project_root() / "artifacts" / "data" / f"{task}.hdf5"
    forget = attack_file(
        chosen,
        attack,
        ratio,
        data,
        out,
        steps=steps,
        seed=seed,
        adversary=adversary,
        joined=poisoned,
        readings=named_values(reading, "--reading"),
    )
    typer.echo(
        f"{out}: {len(forget)} samples of {len(forget.episodes)} trajectories, {forget.share:.1%} of the poisoned set; "
        f"per step: true reward {forget.true_rewards.mean():.3f} and cost {forget.true_costs.mean():.3f}, "
        f"labelled {forget.dataset.rewards.mean():.3f} and {forget.dataset.costs.mean():.3f}"
    )


@app.command()
def repair(
    checkpoint: Annotated[Path, typer.Option(help="An osrl-lib model.pt, or an agent.safetensors of saferule.")],
    backbone: Annotated[str, typer.Option(help="bcq-lag, bear-lag, cpq or coptidice.")],
    data: Annotated[Path, typer.Option(help="What it was trained on, a file in the DSRL schema.")],
    forget: Annotated[Path, typer.Option(help="idx.npy: indices of the poisoned trajectories, or a boolean mask.")],
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    method: Annotated[str, typer.Option(help="safe-rule, fine-tuning, trajdeleter, ...")] = "safe-rule",
    steps: Annotated[int | None, typer.Option(help="Gradient steps [the paper's 5000].")] = None,
    reading: ReadingOption = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Of batches and noise.")] = 0,
    cost_limit: Annotated[float | None, typer.Option(help="That a model.pt was trained with [10].")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda [cuda where there is one].")] = None,
) -> None:
    """Unlearn poisoned trajectories from a policy of your own; writes it for saferule and for osrl-lib."""
    from saferule.paper.settings import TABLE7
    from saferule.runs.repair import repair_files

    steps = TABLE7.unlearning_steps if steps is None else steps
    repair_files(
        checkpoint,
        data,
        forget,
        task,
        out,
        backbone=backbone,
        method=method,
        steps=steps,
        readings=named_values(reading, "--reading"),
        seed=seed,
        cost_limit=cost_limit,
        device=device,
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(f"{out}: {backbone} after {steps} steps of {method}: agent.safetensors, model.pt, log.csv, repair.json")


@data_app.command("collect")
def data_collect(
    task: TaskOption,
    out: Annotated[Path | None, typer.Option(help="The file [artifacts/data/TASK.hdf5].")] = None,
    steps: Annotated[int, typer.Option(help="Simulator steps per behaviour policy.")] = 500_000,
    cost_limits: Annotated[str, typer.Option(help="One policy for each; none is without a limit.")] = "5,10,20,50,none",
    seeds: Annotated[str, typer.Option(help="With commas; one policy per seed and cost limit.")] = "0",
    episodes: Annotated[int, typer.Option(help="How many to select.")] = 450,
    processes: Annotated[int | None, typer.Option(help="Policies trained at the same time [one per core].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file and its card.")] = False,
) -> None:
    """Train behaviour policies in the simulator, select episodes from all they did while they learned, write a card."""
    from saferule.sim.tasks import get_task

    get_task(task)
    limits = different_numbers(float, cost_limits, "--cost-limits", or_none=True)
    numbers = different_numbers(int, seeds, "--seeds")
    if out is None:
        from saferule.runs.places import project_root

        out = project_root() / "artifacts" / "data" / f"{task}.hdf5"
    from saferule.data.card import write_card
    from saferule.data.collect import collect

    command = f"saferule data collect --task {task} --steps {steps} --cost-limits {cost_limits} --seeds {seeds}"
    dataset = collect(
        task,
        out,
        steps=steps,
        cost_limits=limits,
        seeds=numbers,
        episodes=episodes,
        processes=processes,
        command=f"{command} --episodes {episodes}",
        overwrite=overwrite,
    )
    write_card(dataset, out.with_suffix(".md"))
    typer.echo(f"{out}: {len(dataset)} steps of {len(dataset.episodes())} episodes")


@data_app.command("fetch")
def data_fetch(
    task: TaskOption,
    folder: Annotated[
        Path | None, typer.Option(help="Where it is kept [DSRL_DATASET_DIR, or ~/.dsrl/datasets].")
    ] = None,
) -> None:
    """Download DSRL's dataset of a task; an interrupted download continues, a finished one is checked by its hash."""
    from saferule.data.download import fetch

    typer.echo(fetch(task, folder, say=lambda line: typer.echo(line, err=True)))


@data_app.command("check")
def data_check(file: Annotated[Path, typer.Argument(help="A file in the DSRL schema.")], task: TaskOption) -> None:
    """Read a file as training does, and describe it; exit 2 with the reason when it does not follow the schema."""
    from saferule.data.describe import describe
    from saferule.data.schema import load
    from saferule.sim.tasks import get_task

    chosen = get_task(task)
    for line in describe(load(file, chosen)):
        typer.echo(line)


def main() -> None:
    """The console script: exit code 0, or 2 with one line on stderr for an error on purpose, 130 when interrupted."""
    app(prog_name="saferule")


if __name__ == "__main__":
    main()
