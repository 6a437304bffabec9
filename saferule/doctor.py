"""``saferule doctor``: what works on this machine, what does not, and what to do. One line for each check."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from saferule.agents import BACKBONES, get_backbone
from saferule.agents.population import Population, create, draw_noise, training, update
from saferule.data.batches import Batch
from saferule.environment import graphics
from saferule.errors import SaferuleError
from saferule.files import sha256
from saferule.runs.notebooks import kernel
from saferule.runs.places import project_root
from saferule.sim import TASKS, make

OK, NOTE, FAILED = "ok", "note", "FAILED"
APT_PACKAGES = Path("/usr/local/share/saferule/apt-packages.tsv")  # written when the container image is built
SUMS = "SHA256SUMS"
REPORT = "install anew with ./install.sh; report it if that does not help"
FREE_DISK, MEMORY, SHARED_MEMORY = 3e9, 4e9, 1e9  # bytes below which a check has something to say
TOLERANCE = 0.05  # of an update's length; a device that computes something else is off by about 1


@dataclass(frozen=True)
class Result:
    """What a check found: ok; a note, which stops nothing; or FAILED, with what to do."""

    name: str
    state: str
    found: str
    advice: str = ""

    def line(self) -> str:
        """The one line that is printed."""
        return f"{self.state:7}{self.name:22}{self.found}" + (f": {self.advice}" if self.advice else "")


Check = Callable[[], Result]


def checks() -> dict[str, Check]:
    """Every check by its name, in the order in which they are made."""
    return {
        "device": device,
        "cores": lambda: Result("cores", OK, f"{len(os.sched_getaffinity(0))}"),
        "memory": memory,
        "shared memory": shared_memory,
        "disk": disk,
        **{name: partial(backbone_step, name) for name in BACKBONES},
        **{name: partial(simulator_steps, name) for name in TASKS},
        "rendering": rendering,
        "datasets": datasets,
        "notebook kernel": lambda: Result("notebook kernel", OK, kernel()),
        "system packages": system_packages,
    }


def examine(chosen: dict[str, Check] | None = None) -> Iterator[Result]:
    """Make the checks one by one; one that raises has failed."""
    for name, check in (chosen or checks()).items():
        try:
            yield check()
        except Exception as error:  # a broken installation can raise anything, and the other checks go on
            advice = "" if isinstance(error, SaferuleError) else REPORT
            yield Result(name, FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:400], advice)


def as_json(results: list[Result]) -> dict[str, object]:
    """What ``--json`` prints."""
    return {"ok": all(r.state != FAILED for r in results), "checks": [asdict(r) for r in results]}


def device() -> Result:
    """The GPU and its memory, or why it is the CPU."""
    build = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        more = f", the first of {torch.cuda.device_count()} GPUs" if torch.cuda.device_count() > 1 else ""
        return Result("device", OK, f"cuda, {about.name} with {_size(about.total_memory)}{more} ({build})")
    if torch.version.cuda is None:
        return Result("device", NOTE, f"cpu ({build}, built without CUDA)", "smoke and cpu need no GPU, paper does")
    try:
        torch.cuda.init()
        reason = "no GPU is visible"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    advice = "smoke and cpu need no GPU; for paper give docker --gpus all and the host the NVIDIA container toolkit"
    return Result("device", NOTE, f"cpu ({build}; {reason.rstrip('.')})", advice)


def memory() -> Result:
    """Main memory, or the container's share of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        told = Path(limit).read_text("utf-8").strip() if Path(limit).is_file() else "max"
        total = min(total, int(told)) if told.isdigit() else total
    return _enough("memory", total, MEMORY, "less than smoke needs: give the container or machine more")


def shared_memory() -> Result:
    """/dev/shm, of which docker gives a container 64 MB."""
    size = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
    advice = "enough for the process pool; with Ray, which keeps its objects there, give docker --shm-size=2g"
    return _enough("shared memory", size, SHARED_MEMORY, advice)


def disk() -> Result:
    """Free space where results go."""
    folder = project_root() / "artifacts"
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    return _enough("disk", free, FREE_DISK, "smoke writes 0.1 GB, cpu and paper more: make room", "free")


def backbone_step(name: str) -> Result:
    """One population step on this machine's device against the same step on the CPU; there two against two alone."""
    both = slice(0, 2)
    if torch.cuda.is_available():
        what = "one step of two agents on cuda and on the CPU"
        expected, moved = _stepped(name, both, "cpu"), _stepped(name, both, "cuda")
    else:
        what = "CPU only: one step of two agents together and of each alone"
        alone = [_stepped(name, slice(p, p + 1), "cpu") for p in (0, 1)]
        expected, moved = torch.cat(alone), _stepped(name, both, "cpu")
    difference = ((moved - expected).norm() / expected.norm()).item()
    found = f"{what}: relative difference {difference:.0e}"
    if difference < TOLERANCE:
        return Result(name, OK, found)
    advice = f"expected less than {TOLERANCE:g}: try another driver, or CUDA_VISIBLE_DEVICES= for the CPU"
    return Result(name, FAILED, found, advice)


def _stepped(name: str, agents: slice, on: str) -> Tensor:
    """(P, N) on the CPU: by how much each parameter of these of two agents moves in one training step."""
    backbone = get_backbone(name)
    cfg = backbone.Config(observation_dim=12, action_dim=3, episode_len=300)
    population = create(backbone, cfg, (3, 8)[agents], on)
    generator = torch.Generator().manual_seed(0)
    shapes = {"observations": (12,), "next_observations": (12,), "actions": (3,)}
    batch = Batch(
        *(  # in the unit box: costs, done and is_init in between do as well
            torch.rand((2, cfg.batch_size, *shapes.get(field, ())), generator=generator)[agents].to(on)
            for field in Batch._fields
        )
    )
    before = _parameters(population)
    algorithm = training(backbone, cfg)
    update(population, algorithm, batch, draw_noise(population, algorithm.noise_shapes, torch.float32))
    return _parameters(population) - before


def _parameters(population: Population) -> Tensor:
    leaves = [leaf.detach().cpu().double() for net in population.nets.values() for leaf in net.values()]
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in leaves], dim=1)


def simulator_steps(task: str) -> Result:
    """Ten steps in a task's real simulator."""
    with closing(make(task)) as simulator:
        simulator.reset(0)
        for _ in range(10):
            observation = simulator.step(simulator.action_space.low * 0.5).observation
    return Result(task, OK, f"ten steps, observations of {len(observation)} numbers")


def rendering() -> Result:
    """One frame of a MuJoCo task through EGL or OSMesa; films are left out where that fails."""
    try:
        with closing(make("PointGoal", render=True)) as simulator:
            simulator.reset(0)
            frame = simulator.render()
    except SaferuleError as error:
        return Result("rendering", NOTE, str(error), "only the films of three tasks are left out")
    if frame.std() == 0:
        return Result("rendering", NOTE, "an empty frame", "set MUJOCO_GL=osmesa, or do without the films")
    return Result("rendering", OK, f"a frame of {frame.shape[1]}x{frame.shape[0]} through {graphics()}")


def datasets() -> Result:
    """The committed dataset files against their digests."""
    folder = project_root() / "artifacts" / "data"
    if not (folder / SUMS).is_file():
        advice = "copy artifacts/data from the repository, or start the container with a folder that has no data"
        return Result("datasets", FAILED, f"no {folder / SUMS}", advice)
    lines = [line.split() for line in (folder / SUMS).read_text("utf-8").splitlines()]
    bad = [name for digest, name in lines if not (folder / name).is_file() or sha256(folder / name) != digest]
    if bad:
        advice = "get them anew from the repository (git lfs or a broken download?)"
        return Result("datasets", FAILED, f"{', '.join(bad)} in {folder}: missing or of another SHA-256", advice)
    return Result("datasets", OK, f"{len(lines)} files as in {SUMS}")


def system_packages() -> Result:
    """What the container image got from its distribution."""
    if not APT_PACKAGES.is_file():
        return Result("system packages", OK, "not in the container image: nothing was recorded")
    found = [" ".join(line.split()) for line in APT_PACKAGES.read_text("utf-8").splitlines()]
    return Result("system packages", OK, f"{len(found)} added to the base image: {', '.join(found)}")


def _enough(name: str, bytes_: float, wanted: float, advice: str, word: str = "") -> Result:
    found = f"{_size(bytes_)} {word}".rstrip()
    return Result(name, OK, found) if bytes_ >= wanted else Result(name, NOTE, found, advice)


def _size(bytes_: float) -> str:
    return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.0f} MB"
