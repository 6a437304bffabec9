"""Short films of policies in the simulator: GIFs with the step, the running cost and return under the picture.

What cannot be drawn on a machine comes back as a sentence, never as an error.
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from saferule.errors import SaferuleError
from saferule.files import write_bytes
from saferule.sim.rollout import Act, roll_out
from saferule.sim.simulator import make
from saferule.sim.tasks import Task

FRAMES = 60
EPISODES = 5  # of which an adversary's best is shown
SIZE = 240  # pixels, width and height of the picture
STRIP = 34  # pixels under the picture, for two lines of text
COLOURS = 32  # of the whole film: the ant's, in which every pixel moves, then has 280 KiB
FRAME_TIME, LAST_FRAME_TIME = 100, 2000  # milliseconds


class Film(NamedTuple):
    """gif is None when there is none; told says what it shows, or why there is none."""

    gif: bytes | None
    told: str


class Job(NamedTuple):
    """A film to be kept."""

    file: Path  # where
    title: str
    draw: Callable[[str], Film]  # with the title; it can be sent to another process


def film(task: Task, act: Act, seed: int, title: str, *, frames: int = FRAMES, size: int = SIZE) -> Film:
    """One episode from `seed` in at most `frames` frames, evenly spaced from the first state to the last.

    The same policy and seed give the same film. No film, but the reason, when this machine cannot draw the task.
    """
    (episode,) = roll_out(task, act, [seed], record=True).trajectories  # in the world without textures: the same
    returns, costs = (np.append(0.0, np.cumsum(values)) for values in (episode.rewards, episode.costs))
    steps = len(episode.actions)
    shown = np.unique(np.linspace(0, steps, min(frames, steps + 1)).round().astype(int)).tolist()
    try:
        pictures = list(_pictures(task, seed, episode.actions, shown, size))
    except SaferuleError as error:
        return Film(None, f"{title}: no film. {error}")
    except Exception as error:  # the graphics libraries raise errors of many kinds
        return Film(None, f"{title}: no film, as drawing failed here ({type(error).__name__}: {error}).")
    lines = [f"step {t}   cost {costs[t]:.0f}   return {returns[t]:.1f}" for t in shown]
    told = f"{title}: cost {costs[-1]:.0f}, return {returns[-1]:.1f} in {steps} steps (seed {seed})"
    return Film(_gif([_labelled(*each, title) for each in zip(pictures, lines, strict=True)], told), told)


def film_adversary(folder: Path, score: Callable[[float, float], float], title: str) -> Film:
    """Film the best of a few episodes, as Algorithm 1 selects the best rollouts; nothing is written.

    folder  of the adversary, as `saferule.sim.ppo` saves it, which acts as it was rolled out, drawing from its Gaussian
    score   of an episode's return and cost: the best one is shown
    """
    from saferule.sim.ppo import OnlinePolicy

    policy = OnlinePolicy.load(folder)

    def act(seed: int) -> Act:
        return policy.sampler(np.random.default_rng(seed))

    def scored(seed: int) -> float:
        (row,) = roll_out(policy.task, act(seed), [seed]).rows
        return score(row["return"], row["cost"])

    best = max(range(EPISODES), key=scored)
    return film(policy.task, act(best), best, title)


def film_all(jobs: Sequence[Job], executor: Executor) -> list[Film]:
    """The films of all jobs; those that are kept are read, new ones are drawn by the executor and kept.

    Draw in other processes: a graphics library may end the one that calls it.
    """
    films = {job: read(job.file) for job in jobs}
    running = {job: executor.submit(job.draw, job.title) for job, kept in films.items() if kept is None}
    for job, future in running.items():
        try:
            films[job] = future.result()
        except SaferuleError as error:
            films[job] = Film(None, f"{job.title}: no film. {error}")
        except BrokenExecutor:
            films[job] = Film(None, f"{job.title}: no film, as the process that draws ended without a word.")
        if films[job].gif is not None:
            write_bytes(job.file, films[job].gif)
    return list(films.values())


def read(path: Path) -> Film | None:
    """A film that is kept; None where there is none or it is not a GIF that was made here."""
    try:
        with Image.open(path) as image:
            return Film(path.read_bytes(), image.info["comment"].decode())
    except (OSError, KeyError):
        return None


def as_html(films: Sequence[Film]) -> str:
    """The films side by side, embedded; under them, each once, the sentences for those that are missing."""
    shown = [
        f'<img src="data:image/gif;base64,{b64encode(film.gif).decode()}" alt="{html.escape(film.told)}" '
        'style="display: inline-block; margin: 0 12px 12px 0">'
        for film in films
        if film.gif is not None
    ]
    missing = dict.fromkeys(film.told for film in films if film.gif is None)
    return "\n".join([f"<div>{''.join(shown)}</div>", *(f"<p>{html.escape(told)}</p>" for told in missing)])


def _pictures(task: Task, seed: int, actions: np.ndarray, shown: list[int], size: int) -> Iterator[Image.Image]:
    """The states after the numbers of steps in `shown`, drawn while the actions are played again."""
    with closing(make(task.name, render=True)) as simulator:
        simulator.reset(seed)
        for t in range(len(actions) + 1):
            if t > 0:
                simulator.step(actions[t - 1])
            if t in shown:
                yield Image.fromarray(simulator.render()).resize((size, size), Image.Resampling.BOX)


def _labelled(picture: Image.Image, line: str, title: str) -> Image.Image:
    """The picture with the title and the line on a strip under it."""
    width, height = picture.size
    labelled = Image.new("RGB", (width, height + STRIP), "white")
    labelled.paste(picture)
    draw, font = ImageDraw.Draw(labelled), ImageFont.load_default(12)
    for row, text in enumerate((title, line)):
        draw.text((4, height + 2 + 15 * row), text, fill="black", font=font)
    return labelled


def _gif(frames: Sequence[Image.Image], comment: str) -> bytes:
    """The frames with one palette for all, endlessly repeated, the last one held."""
    some = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames[:: max(1, len(frames) // 8)]]))
    # An octree keeps the few pixels of the agent in their own colour; a median cut gives them the ground's.
    palette = some.quantize(COLOURS, method=Image.Quantize.FASTOCTREE)
    few = [frame.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB") for frame in frames]
    times = [FRAME_TIME] * (len(frames) - 1) + [LAST_FRAME_TIME]
    options = {"duration": times, "loop": 0, "optimize": True, "comment": comment.encode()}
    return iio.imwrite("<bytes>", np.stack(few), extension=".gif", plugin="pillow", **options)
