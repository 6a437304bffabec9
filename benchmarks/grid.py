"""What a grid costs: training steps at the cpu profile's sizes, and what the engine adds to a run. On an idle machine:

    python -m benchmarks.grid [--json FILE] [--backbones cpq coptidice] [--seconds 10] [--runs 1000]

agent-steps/s: gradient steps times agents, end to end, of 1 or 2 processes with one thread each that train populations
of 1, 7 or 21 agents at the same time, beside the floor: the time that the multiply-adds alone take at the rate at which
as many processes multiply matrices at the same time.

ms_per_cell: of so many real runs that hardly compute anything (one step of the smallest networks on the committed
CarCircle data, in populations as the engine divides them), made by the engine in this process and by two workers; and
asked for again when they are there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from benchmarks.agents import Ours
from benchmarks.measure import Row, arguments, show
from saferule.agents import BACKBONES
from saferule.agents.loop import keep_freed_memory
from saferule.data.batches import TransitionPool
from saferule.data.schema import clean_data
from saferule.runs.engine import make
from saferule.runs.execute import InProcess, JobExecutor, Workers
from saferule.runs.experiment import PROFILES
from saferule.runs.places import project_root
from saferule.runs.spec import PolicyRun, config, frozen
from saferule.runs.store import Store, processor
from saferule.runs.work import Workspace

TASK, POPULATIONS, WORKERS, MATRIX = "CarCircle", (1, 7, 21), (1, 2), 1024
DATA = project_root() / "artifacts" / "data"


@cache
def trained(backbone: str, size: int) -> Ours:
    """A population of the cpu profile on its data, kept in this process."""
    keep_freed_memory()
    data, profile = clean_data(DATA, TASK), PROFILES["cpu"]
    run = PolicyRun(TASK, backbone, data.digest(), None, "clean", 1, 0, config=profile.config)
    return Ours(backbone, TransitionPool([data], config(run).reward_scale), "cpu", size, config(run))


def per_second(function: Callable[[], object], seconds: float) -> float:
    """How often a function can be called in a second, measured for so many."""
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        function()
        calls += 1
    return calls / (time.perf_counter() - began)


def steps_per_second(backbone: str, size: int, seconds: float) -> float:
    """Of one population, in the process that this is called in."""
    ours = trained(backbone, size)
    ours.end_to_end()
    return per_second(ours.end_to_end, seconds)


def operations_per_second(seconds: float) -> float:
    """Floating-point operations of a matrix product with one thread."""
    a = torch.randn(MATRIX, MATRIX)
    return 2 * MATRIX**3 * per_second(lambda: a @ a, seconds)


def together(pool: Workers, function: Callable[..., float], *given: object) -> float:
    """The sum of what the function returns in all processes at the same time; each has done it once before."""
    for seconds in (0.0, given[-1]):
        jobs = [pool.submit(function, *given[:-1], seconds) for _ in range(pool.slots)]
        total = sum(job.result() for job in jobs)
    return total


def throughput(backbones: Sequence[str], seconds: float, say: Callable[[str], None] = print) -> list[Row]:
    """One row per backbone, population and number of processes."""
    rows = []
    for workers in WORKERS:
        pool = Workers(workers)
        rate = together(pool, operations_per_second, seconds)
        for backbone in backbones:
            operations = trained(backbone, 1).operations()
            for size in POPULATIONS:
                ours = size * together(pool, steps_per_second, backbone, size, seconds)
                row = {"case": "training", "backbone": backbone, "population": size, "workers": workers}
                rows.append(row | {"agent_steps_per_s": ours, "floor_fraction": ours * operations / rate})
                say(f"{backbone}, population {size}, {workers} workers: {ours:.1f} agent-steps/s")
        pool.stop()
    return rows


def overhead(runs: int) -> list[Row]:
    """One row per way of making so many trivial runs."""
    digest = clean_data(DATA, TASK).digest()
    tiny = frozen(hidden=(8, 8), vae_hidden=8, batch_size=8, samples=2)
    wanted = [PolicyRun(TASK, "cpq", digest, None, "clean", 1, replicate, config=tiny) for replicate in range(runs)]
    rows = []

    def measure(case: str, workspace: Workspace, executor: JobExecutor) -> None:
        began = time.perf_counter()
        make(wanted, workspace, executor, lambda line: None)
        took = 1000 * (time.perf_counter() - began) / runs
        rows.append({"case": case, "runs": runs, "workers": executor.slots, "ms_per_cell": took})

    for executor in (InProcess(), Workers(2)):
        for job in [executor.submit(steps_per_second, "cpq", 1, 0.0) for _ in range(executor.slots)]:
            job.result()  # the process has imported everything and read the data
        with tempfile.TemporaryDirectory() as folder:
            workspace = Workspace(Store(Path(folder) / "store"), DATA, "cpu")
            measure("trivial runs", workspace, executor)
            measure("the same asked for again", workspace, executor)
        executor.stop()
    return rows


if __name__ == "__main__":
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--backbones", nargs="*", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--seconds", type=float, default=10.0, help="for which each rate is measured")
    parser.add_argument("--runs", type=int, default=1000, help="trivial ones")
    given = parser.parse_args()
    rows = overhead(given.runs) + throughput(given.backbones, given.seconds)
    names = list(dict.fromkeys(name for row in rows for name in row))
    machine = {
        "device": processor(),
        "torch": torch.__version__,
        "settings": f"{TASK}, cpu profile's widths and batches",
    }
    show([{name: row.get(name) for name in names} for row in rows], machine, given.json)
