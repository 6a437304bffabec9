"""The command line. Every command imports what it needs when it runs, so that ``saferule --help`` is quick."""

from __future__ import annotations

import signal
from ast import literal_eval
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from saferule.environment import cluster, debugging, prepare_streams, use_cluster, user_path
from saferule.errors import IncompleteError, SaferuleError, SettingsError, sentence, shortened
from saferule.limits import check_number

UsageError = typer.BadParameter.__base__  # of typer's own click


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it before they kill."""


def _terminate(*_: Any) -> None:
    raise Terminated


@contextmanager
def _told() -> Iterator[None]:
    """Every error as one line on stderr; exit code 2, or 1 for a mistake in here, 130 interrupted, 143 terminated."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt as error:
        typer.echo("saferule: interrupted: finished work is kept, and nothing is half-written", err=True)
        raise typer.Exit(143 if isinstance(error, Terminated) else 130) from None
    except UsageError as error:
        if error.ctx and error.message == error.ctx.get_help():  # for a command without any argument
            raise
        command = error.ctx.command_path if error.ctx else "saferule"
        text = f"{error.format_message().rstrip('.')}: see `{command} --help`"
        typer.echo(f"saferule: error: {shortened(text)}", err=True)
        raise typer.Exit(2) from None
    except Exception as error:
        if debugging():
            raise
        typer.echo(f"saferule: error: {sentence(error)}", err=True)
        raise typer.Exit(2 if isinstance(error, SaferuleError | OSError | MemoryError) else 1) from None


class Commands(TyperGroup):
    """Commands whose errors are one line; the words of the command line are judged as errors of a command are."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the words of the command line."""
        with _told():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            with _told():
                return super().invoke(ctx)
        finally:
            signal.signal(signal.SIGTERM, before)


class Command(TyperCommand):
    """A command whose paths may begin with ~, and whose numbers are within the ranges of `saferule.limits`."""

    def invoke(self, ctx: Any) -> Any:
        """Judge what was given, then run."""
        for option in self.params:
            value, shown = ctx.params.get(option.name), option.opts[0]
            if isinstance(value, Path):
                ctx.params[option.name] = user_path(value, shown)
            for number in value if isinstance(value, list | tuple) else (value,):
                if isinstance(number, int | float):
                    check_number(option.name, number, shown)
        return super().invoke(ctx)


class App(typer.Typer):
    """An app of such commands."""

    def command(self, *args: Any, **options: Any) -> Any:
        """Declare one."""
        return super().command(*args, **{"cls": Command} | options)


app = App(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = App(
    cls=Commands,
    help="Datasets in the DSRL schema: collect, fetch, convert, check.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")


def _several(what: str) -> Any:
    return typer.Option(help=f"{what} of the profile to take; repeatable [all].")


TaskOption = Annotated[str, typer.Option("--task", help="PointGoal, PointPush, AntVelocity or CarCircle.")]
ProfileOption = Annotated[str, typer.Option("--profile", help="smoke, cpu or paper.")]
OutputOption = Annotated[Path | None, typer.Option("--output", help="Root of the results [artifacts].")]
DataFolderOption = Annotated[Path | None, typer.Option("--data", help="Folder of the datasets [artifacts/data].")]
TasksOption = Annotated[list[str] | None, _several("Tasks")]
BackbonesOption = Annotated[list[str] | None, _several("Backbones")]
AttacksOption = Annotated[list[str] | None, _several("Attacks")]
RatiosOption = Annotated[list[float] | None, _several("Poisoning ratios")]
ReplicatesOption = Annotated[list[int] | None, _several("Replicates")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a field of the profile, as episodes=50; repeatable."),
]
AssumeOption = Annotated[
    list[str] | None,
    typer.Option("--assume", metavar="NAME=VALUE", help="A setting that a model.pt does not hold; repeatable."),
]
ReadingOption = Annotated[
    list[str] | None,
    typer.Option("--reading", metavar="NAME=OPTION", help="Of saferule/paper/readings.toml; repeatable."),
]


def _parts(given: dict[str, Any]) -> dict[str, list | None]:
    """The options that choose among a profile's tasks, backbones, ..., out of all that a command was given."""
    return {name: given[name] for name in ("tasks", "backbones", "attacks", "ratios", "replicates")}


def _chosen(parts: dict[str, list | None], changes: list[str] | None) -> dict[str, Any]:
    """What of a profile is taken and changed, for `get_profile`; options that were not given are left out."""
    return {name: part for name, part in parts.items() if part} | _named_values(changes, "--set")


def _version(asked: bool) -> None:
    if asked:
        from saferule import __version__

        typer.echo(f"saferule {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Poisoning offline safe reinforcement learning, and unlearning the poison."""


@app.command()
def run(
    profile: ProfileOption = "smoke",
    tasks: TasksOption = None,
    backbones: BackbonesOption = None,
    attacks: AttacksOption = None,
    ratios: RatiosOption = None,
    replicates: ReplicatesOption = None,
    changes: SetOption = None,
    notebooks: Annotated[list[str] | None, typer.Option(help="Which, repeatable [all, in order].")] = None,
    runs_only: Annotated[bool, typer.Option("--runs-only", help="Make the runs, execute no notebook.")] = False,
    only_stored: Annotated[bool, typer.Option("--only-stored", help="Make no run: show what is stored.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, with time and disk.")] = False,
    output: OutputOption = None,
    data: DataFolderOption = None,
    ray: Annotated[str | None, typer.Option(help="Make them on this Ray cluster [RAY_ADDRESS, or none].")] = None,
    ray_gpus: Annotated[float | None, typer.Option(help="The share of a GPU that each job there has [0].")] = None,
) -> None:
    """Make the runs of a profile and execute its notebooks; finished work is kept, interrupted work continues."""
    from saferule.doctor import device
    from saferule.files import try_folder
    from saferule.runs.engine import make
    from saferule.runs.experiment import asked, get_profile
    from saferule.runs.notebooks import check_names, run_all
    from saferule.runs.places import NOTEBOOKS, known_data, workspace

    own = _parts(locals())
    chosen = _chosen(own, changes)
    wanted = get_profile(profile, **chosen)
    check_names(notebooks or NOTEBOOKS)  # an unknown name is reported before anything is made
    given = {"--runs-only": runs_only, "--dry-run": dry_run, "--notebooks": notebooks, "--only-stored": only_stored}
    if (runs_only or dry_run) and (notebooks or only_stored):
        names = " and ".join(name for name, value in given.items() if value)
        raise SettingsError(f"{names} are given together: leave out what does not go with the others")
    changed = {name: value for name, value in chosen.items() if name not in own}
    parameters = {name: value for name, value in chosen.items() if name in own}
    parameters |= {"changes": changed} if changed else {}
    if data is not None:
        parameters["data"] = str(data.resolve())
    if only_stored:
        parameters["only_stored"] = True
    if ray or ray_gpus is not None:
        use_cluster(ray, ray_gpus)
    place = workspace(wanted, output, data)
    known, notes = known_data(wanted, place.data_folder)
    for note in notes:
        typer.echo(note, err=True)
    if not known:
        raise SettingsError(f"{place.data_folder}: no data of any task that was asked for: collect or fetch it first")
    if dry_run:
        from saferule.runs.execute import default
        from saferule.runs.status import rehearsal

        for line in rehearsal(wanted, known, place, default(place.device).slots):
            typer.echo(line)
        return
    for part in ("runs", "notebooks", "tables", "figures"):
        try_folder(place.store.root / part, empty=False)
    incomplete = None
    typer.echo(f"profile {profile} on {f'Ray at {told[0]}' if (told := cluster()) else device().found}")
    if not notebooks and not only_stored:  # all in one go keeps all cores busy; a single notebook makes what it shows
        try:
            make([run for _, run in asked(wanted, known)], place)
        except IncompleteError as error:
            incomplete, parameters["only_stored"] = error, True
            typer.echo(f"saferule: {'' if runs_only else 'shown is what is stored, as '}{sentence(error)}", err=True)
    if not runs_only:
        from saferule.report.html import build
        from saferule.report.study import Study

        run_all(profile, notebooks or NOTEBOOKS, output, parameters)
        typer.echo(f"report     {build(Study(profile, output=output, **parameters | {'only_stored': True}))}")
    if incomplete:
        raise incomplete


@app.command()
def report(
    profile: ProfileOption = "smoke",
    tasks: TasksOption = None,
    backbones: BackbonesOption = None,
    attacks: AttacksOption = None,
    ratios: RatiosOption = None,
    replicates: ReplicatesOption = None,
    changes: SetOption = None,
    output: OutputOption = None,
    data: DataFolderOption = None,
) -> None:
    """Make tables, figures and HTML pages of a profile again from its stored episodes; no run is made."""
    from saferule.report.html import rebuild
    from saferule.report.study import Study

    own = _parts(locals())
    study = Study(profile, output=output, data=data, changes=_chosen(own, changes), only_stored=True)
    typer.echo(f"report     {rebuild(study)}")


@app.command()
def status(
    profile: ProfileOption = "smoke",
    tasks: TasksOption = None,
    backbones: BackbonesOption = None,
    attacks: AttacksOption = None,
    ratios: RatiosOption = None,
    replicates: ReplicatesOption = None,
    changes: SetOption = None,
    output: OutputOption = None,
    data: DataFolderOption = None,
    missing: Annotated[bool, typer.Option("--missing", help="Name the runs that are missing.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file of finished runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as one JSON object.")] = False,
) -> None:
    """How far the runs of a profile are, and how long the rest takes; exit 1 when one is damaged."""
    import json

    from saferule.runs.execute import default
    from saferule.runs.experiment import get_profile
    from saferule.runs.places import known_data, workspace
    from saferule.runs.status import lines
    from saferule.runs.status import status as examine

    own = _parts(locals())
    chosen = get_profile(profile, **_chosen(own, changes))
    place = workspace(chosen, output, data)
    known, notes = known_data(chosen, place.data_folder)
    told = examine(chosen, known, place.store, default(place.device).slots, verify) | {"notes": notes}
    for line in [json.dumps(told, indent=1)] if as_json else [*notes, *lines(told, missing)]:
        typer.echo(line)
    if told["damaged"]:
        raise typer.Exit(1)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="table1 to table7, figure1 to figure3, methods, controls.")],
    cell: Annotated[str, typer.Option(help="BACKBONE/ATTACK/TASK/RATIO, or a part of it [all].")] = "",
    profile: ProfileOption = "smoke",
    replicates: Annotated[list[int] | None, typer.Option(help="Whose policies to play; repeatable [all].")] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train the policies again, from the dataset.")] = False,
    into: Annotated[Path | None, typer.Option(help="Folder of what --retrain makes; it continues there.")] = None,
    changes: SetOption = None,
    output: OutputOption = None,
    data: DataFolderOption = None,
) -> None:
    """Play a cell's policies again, compare episodes and numbers with the committed ones; exit 1 when one differs."""
    from tempfile import TemporaryDirectory

    from saferule.files import try_folder
    from saferule.report import spot_check
    from saferule.report.study import Study

    if into and not retrain:
        raise SettingsError("--into: there is nothing to put there without --retrain: give that too, or leave it out")
    if into:
        try_folder(into, empty=False)
    study = Study(profile, output=output, data=data, changes=_named_values(changes, "--set"), only_stored=True)
    with TemporaryDirectory(prefix="saferule-retrain-") as temporary:
        again = (into or Path(temporary)) / study.profile.name if retrain else None
        if not spot_check.check(study, name, cell, replicates or (), again, typer.echo):
            raise typer.Exit(1)


@app.command()
def publish(
    source: Annotated[Path, typer.Option(help="Root of the results to take them from, such as a clone's artifacts.")],
    profile: ProfileOption = "cpu",
    changes: SetOption = None,
    output: OutputOption = None,
    data: DataFolderOption = None,
) -> None:
    """Copy what is to be committed of a profile's finished runs from another store; exit 1 when one is damaged."""
    from saferule.runs.experiment import get_profile
    from saferule.runs.places import known_data, workspace
    from saferule.runs.publish import publish
    from saferule.runs.store import Store

    wanted = get_profile(profile, **_named_values(changes, "--set"))
    place = workspace(wanted, output, data)
    report = publish(wanted, known_data(wanted, place.data_folder)[0], Store(source / profile), place.store)
    for line in report.lines():
        typer.echo(line)
    if report.refused:
        raise typer.Exit(1)


@app.command()
def claims(profile: ProfileOption = "cpu", output: OutputOption = None, data: DataFolderOption = None) -> None:
    """Judge the paper's claims by the stored episodes of a profile, and print CLAIMS.md; nothing is made."""
    from saferule.report.claims import document
    from saferule.report.study import Study

    typer.echo(document(Study(profile, output=output, data=data, only_stored=True)), nl=False)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="All of it as one JSON object.")] = False) -> None:
    """Check this machine: device, simulators, rendering, data, kernel; exit 1 when something needed does not work."""
    import json

    try:
        from saferule import doctor
    except ImportError as error:  # torch without one of its libraries, for example
        typer.echo(f"FAILED packages: {error}: install anew with ./install.sh")
        raise typer.Exit(1) from None
    results = []
    for result in doctor.examine():
        results.append(result)
        if not as_json:
            typer.echo(result.line())
    report = doctor.as_json(results)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    if not report["ok"]:
        raise typer.Exit(1)


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
    poisoned: Annotated[Path | None, typer.Option(help="Also write D and D_f together, and *.idx.npy.")] = None,
    reading: ReadingOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out and --poisoned.")] = False,
) -> None:
    """Algorithm 1 on a dataset: train an adversary, roll it out, write the forget set."""
    from saferule.attack.pipeline import attack_file
    from saferule.sim.tasks import get_task

    forget = attack_file(
        get_task(task),
        attack,
        ratio,
        data or _committed(task),
        out,
        steps=steps,
        seed=seed,
        adversary=adversary,
        joined=poisoned,
        readings=_named_texts(reading, "--reading"),
        overwrite=overwrite,
    )
    typer.echo(
        f"{out}: {len(forget)} samples of {len(forget.episodes)} trajectories, {forget.share:.1%} of the poisoned set; "
        f"per step: true reward {forget.true_rewards.mean():.3f} and cost {forget.true_costs.mean():.3f}, "
        f"labelled {forget.dataset.rewards.mean():.3f} and {forget.dataset.costs.mean():.3f}"
    )


@app.command()
def detect(
    data: Annotated[Path, typer.Argument(help="A file in the DSRL schema that may be poisoned.")],
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    false_alarms: Annotated[float, typer.Option(help="Share of honest trajectories that may be flagged.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the division into folds.")] = 0,
) -> None:
    """Rank trajectories by how unlike the rest they are labelled; write those flagged for repair --forget."""
    from saferule.detect import FEW, INDICES, MEASURED, TRAJECTORIES, beyond, detect_file
    from saferule.sim.tasks import get_task

    found = detect_file(data, get_task(task), out, false_alarms=false_alarms, seed=seed)
    flagged = found[found["flagged"]]
    reasons = ", ".join(f"{count} for {reason}" for reason, count in flagged["reason"].value_counts().items())
    typer.echo(
        f"{out / INDICES}: {len(flagged)} of {len(found)} trajectories flagged ({reasons or 'none'}); of honest ones "
        f"at most about {false_alarms:.0%} are, if they lie off the median to either side alike: on the data of the "
        f"repository {MEASURED} were, where 5% were asked for"
    )
    if beyond(len(found), false_alarms) <= FEW:
        typer.echo(
            f"note: with {len(found)} trajectories at this rate one is flagged only where fewer than "
            f"{beyond(len(found), false_alarms)} lie as far off to the other side, so that poison can go unflagged: "
            f"{out / TRAJECTORIES} has them in order, the most suspicious first; write the indices of those that you "
            f"hold for poison to a file for repair --forget",
            err=True,
        )


@app.command()
def repair(
    checkpoint: Annotated[Path, typer.Option(help="An osrl-lib model.pt, or an agent.safetensors of saferule.")],
    backbone: Annotated[str, typer.Option(help="bcq-lag, bear-lag, cpq or coptidice.")],
    data: Annotated[Path, typer.Option(help="What it was trained on, a file in the DSRL schema.")],
    forget: Annotated[
        Path, typer.Option(help="idx.npy: indices of the poisoned trajectories or a boolean mask; or attack's --out.")
    ],
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    method: Annotated[str, typer.Option(help="safe-rule, fine-tuning, trajdeleter, ...")] = "safe-rule",
    steps: Annotated[int | None, typer.Option(help="Gradient steps [the paper's 5000].")] = None,
    reading: ReadingOption = None,
    seed: Annotated[int, typer.Option(help="Of batches and noise.")] = 0,
    cost_limit: Annotated[
        float | None, typer.Option(help="That a model.pt was trained with [config.yaml's, 10].")
    ] = None,
    assume: AssumeOption = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Play the same episodes before and after: a table and a picture.")
    ] = False,
    episodes: Annotated[int | None, typer.Option(help="Of that evaluation [20].")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda [cuda where there is one].")] = None,
) -> None:
    """Unlearn poisoned trajectories from a policy of your own; writes it for saferule and for osrl-lib.

    An interrupted repair is kept in a hidden folder by --out, *.repairing; the same command continues it.
    """
    from saferule.paper import TABLE7
    from saferule.report import before_after
    from saferule.runs.evaluate import evaluation_seeds
    from saferule.runs.repair import repair_files

    if episodes is not None and not evaluate:
        raise SettingsError("--episodes: none are played without --evaluate: give that too, or leave it out")
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
        readings=_named_texts(reading, "--reading"),
        seed=seed,
        cost_limit=cost_limit,
        told=_named_values(assume, "--assume"),
        device=device,
        seeds=evaluation_seeds(20 if episodes is None else episodes) if evaluate else (),
        show=before_after.write,
        say=lambda line: typer.echo(line, err=True),
    )
    written = "agent.safetensors, model.pt with config.yaml, log.csv, repair.json"
    typer.echo(f"{out}: {backbone} after {steps} steps of {method}: {written}")
    if evaluate:
        typer.echo(before_after.text(out))


@app.command()
def evaluate(
    policy: Annotated[Path, typer.Argument(help="An agent.safetensors or an osrl-lib model.pt, or its folder.")],
    episodes: Annotated[int, typer.Option(help="How many.")] = 20,
    seed: Annotated[int | None, typer.Option(help="Of the first episode; the next count up [10000].")] = None,
    task: Annotated[str | None, typer.Option(help="[what the file or a config.yaml by it says]")] = None,
    backbone: Annotated[str | None, typer.Option(help="[what the file holds]")] = None,
    cost_limit: Annotated[float | None, typer.Option(help="To judge by [the one it was trained with].")] = None,
    assume: AssumeOption = None,
    csv: Annotated[Path | None, typer.Option(help="A new file for the episodes, one row each.")] = None,
) -> None:
    """Play episodes in the simulator: return, cost, and the share of episodes within the cost limit."""
    from saferule.files import try_file, write_bytes
    from saferule.runs.evaluate import evaluation_seeds, play, policy_file, read_policy, summary

    if csv is not None:
        try_file(csv)
    seeds, file = evaluation_seeds(episodes, *([] if seed is None else [seed])), policy_file(policy)
    agent = read_policy(file, task, backbone, cost_limit, _named_values(assume, "--assume"))
    for assumption in agent.meta.get("assumed", ()):
        typer.echo(f"{file} does not hold everything, so it was assumed: {assumption}", err=True)
    rows = play(agent, seeds, file)
    if csv is not None:
        write_bytes(csv, rows.to_csv(index=False).encode(), new=True)
    typer.echo(f"{policy}: {summary(rows)}")


@data_app.command("collect")
def data_collect(
    task: TaskOption,
    out: Annotated[Path | None, typer.Option(help="The file [artifacts/data/TASK.hdf5].")] = None,
    steps: Annotated[int, typer.Option(help="Simulator steps per behaviour policy.")] = 500_000,
    cost_limits: Annotated[str, typer.Option(help="One policy for each; none is without a limit.")] = "5,10,20,50,none",
    seeds: Annotated[str, typer.Option(help="With commas; one policy per seed and cost limit.")] = "0",
    episodes: Annotated[int, typer.Option(help="How many to select.")] = 450,
    processes: Annotated[int | None, typer.Option(help="Policies trained at the same time [one per core].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Train behaviour policies in the simulator and select episodes from all that they did while they learned."""
    from saferule.data.collect import collect

    out = out or _committed(task)
    command = f"saferule data collect --task {task} --steps {steps} --cost-limits {cost_limits} --seeds {seeds}"
    dataset = collect(
        task,
        out,
        steps=steps,
        cost_limits=_different_numbers(float, cost_limits, "--cost-limits"),
        seeds=_different_numbers(int, seeds, "--seeds"),
        episodes=episodes,
        processes=processes,
        command=f"{command} --episodes {episodes}",
        overwrite=overwrite,
    )
    typer.echo(f"{out}: {len(dataset)} steps of {len(dataset.episodes())} episodes")


@data_app.command("fetch")
def data_fetch(
    task: TaskOption,
    folder: Annotated[Path | None, typer.Option(help="Where it lies [DSRL_DATASET_DIR, or ~/.dsrl/datasets].")] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="URL|FOLDER", help="A mirror of the Hugging Face hub, or a folder [HF_ENDPOINT, or the hub]."
        ),
    ] = None,
) -> None:
    """Download DSRL's dataset of a task; an interrupted download begins again, a present one is checked by hash."""
    from saferule.data.fetch import fetch

    typer.echo(fetch(task, folder, mirror=mirror, say=lambda line: typer.echo(line, err=True)))


@data_app.command("check")
def data_check(file: Annotated[Path, typer.Argument(help="A file in the DSRL schema.")], task: TaskOption) -> None:
    """Read a file as training does, and describe it; exit 2 with the reason when it does not follow the schema."""
    from contextlib import closing

    from saferule.data.describe import describe, doubts
    from saferule.data.schema import load
    from saferule.sim import get_task, make

    dataset = load(file, get_task(task))
    with closing(make(task)) as simulator:
        notes = doubts(dataset, get_task(task), simulator.observation_space)
    for line in [*describe(dataset), *(f"note          {note}" for note in notes)]:
        typer.echo(line)


@data_app.command("convert")
def data_convert(
    file: Annotated[Path, typer.Argument(help="An HDF5 file in the layout of Minari or of D4RL.")],
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="The DSRL file.")],
    costs: Annotated[str | None, typer.Option(help="Key of the costs, as infos/cost [what is found].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
) -> None:
    """Make a DSRL file of a Minari or D4RL file; needs the cost of each step."""
    from saferule.data.convert import convert
    from saferule.data.describe import doubts
    from saferule.sim.tasks import get_task

    dataset, said = convert(file, get_task(task), out, costs=costs, overwrite=overwrite)
    for note in (*said, *doubts(dataset, get_task(task))):
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{out}: {len(dataset)} steps of {len(dataset.episodes())} episodes")


def _committed(task: str) -> Path:
    from saferule.runs.places import project_root

    return project_root() / "artifacts" / "data" / f"{task}.hdf5"


def _named_texts(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """{name: text} from ``name=text``; SettingsError that names the option for one without "="."""
    wrong = next((text for text in texts or () if "=" not in text), None)
    if wrong is not None:
        raise SettingsError(f"{option}: {wrong!r}, expected NAME=VALUE: give for example {option} kappa=per_step")
    return dict(text.split("=", 1) for text in texts or ())


def _named_values(texts: Sequence[str] | None, option: str) -> dict[str, Any]:
    """The same with plain values: numbers, true and false, lists with commas; what is none of these is text."""

    def value(text: str) -> Any:
        try:
            found = literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return [value(part) for part in text.split(",")] if "," in text else text
        return list(found) if isinstance(found, tuple) else found

    return {name: value(text) for name, text in _named_texts(texts, option).items()}


def _different_numbers(kind: type, text: str, option: str) -> list[Any]:
    """One or more different numbers in the option's range, with commas; for floats the word none stands for None.

    SettingsError that names the option for anything else.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        values = [None if part == "none" and kind is float else kind(part) for part in parts]
    except ValueError:
        values = []
    if not values or len(set(values)) < len(values):
        what = "whole numbers" if kind is int else "numbers, or none"
        raise SettingsError(f"{option}: {text!r}, expected one or more different {what}, with commas: give 0,1")
    for value in values:
        if value is not None:
            check_number(option.lstrip("-").replace("-", "_"), value, option)
    return values


def main() -> None:
    """The console script: exit code 0, or 2 with one line on stderr for an error on purpose, 130 when interrupted."""
    prepare_streams()
    app(prog_name="saferule")


if __name__ == "__main__":
    main()
