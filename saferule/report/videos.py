"""Short films of policies in the simulator: GIFs with the step, the running cost and return under the picture.

What cannot be drawn on a machine comes back as a sentence, never as an error.
"""

from __future__ import annotations

import html
import io
from base64 import b64encode
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from saferule.attack.poison import attack_reward
from saferule.errors import SaferuleError
from saferule.files import write_bytes
from saferule.runs.execute import worker_pool
from saferule.sim import Task, make
from saferule.sim.graphics import drawing_problem
from saferule.sim.rollout import Act

FRAMES = 60
EPISODES = 5  # of which an adversary's best is shown
SIZE = 240  # pixels, width and height of the picture
STRIP = 34  # pixels under the picture, for two lines of text
LARGEST = 300_000  # bytes of a film
# Colours of the whole film, and of how many frames one is kept: the first pair that LARGEST allows, else the last.
QUALITIES = ((128, 1), (64, 1), (32, 1), (16, 1), (32, 2), (16, 3))
FRAME_TIME, LAST_FRAME_TIME = 100, 2000  # milliseconds


class Film(NamedTuple):
    """gif is None when there is none; told says what it shows, or why there is none."""

    gif: bytes | None
    told: str


class Job(NamedTuple):
    """An adversary saved by `saferule.sim.ppo`, and where its film is kept."""

    policy: Path
    film: Path
    attack: str
    title: str


class _Episode(NamedTuple):
    actions: np.ndarray  # (T, A)
    returns: np.ndarray  # (T + 1,), the sum of the rewards before each step and at the end
    costs: np.ndarray  # (T + 1,)


def film(task: Task, act: Act, seed: int, title: str, *, frames: int = FRAMES, size: int = SIZE) -> Film:
    """One episode from `seed` in at most `frames` frames, evenly spaced from the first state to the last.

    The same policy and seed give the same film. No film, but the reason, when this machine cannot draw the task.
    """
    if problem := drawing_problem(task):
        return Film(None, f"{title}: no film. {problem}")
    episode = _play(task, act, seed)
    steps = len(episode.actions)
    shown = np.unique(np.linspace(0, steps, min(frames, steps + 1)).round().astype(int))
    try:
        pictures = list(_pictures(task, seed, episode.actions, set(shown.tolist()), size))
    except Exception as error:  # the graphics libraries raise errors of many kinds
        return Film(None, f"{title}: no film, as drawing failed here ({type(error).__name__}: {error}).")
    lines = [f"step {t}   cost {episode.costs[t]:.0f}   return {episode.returns[t]:.1f}" for t in shown]
    told = f"{title}: cost {episode.costs[-1]:.0f}, return {episode.returns[-1]:.1f} in {steps} steps (seed {seed})"
    return Film(_gif([_labelled(*each, title) for each in zip(pictures, lines, strict=True)], told), told)


def film_adversary(job: Job) -> Film:
    """Film the best of a few episodes by the sum of R_z, as Algorithm 1 selects the best rollouts.

    The adversary acts as it was rolled out, drawing from its Gaussian. The GIF appears whole or not at all.
    """
    from saferule.sim.ppo import OnlinePolicy

    policy = OnlinePolicy.load(job.policy)

    def act(seed: int) -> Act:
        generator = np.random.default_rng(seed)
        return lambda states, _: policy.act(states, False, generator)

    def score(seed: int) -> float:
        episode = _play(policy.task, act(seed), seed)
        return float(attack_reward(job.attack, episode.returns[-1], episode.costs[-1]))

    best = max(range(EPISODES), key=score)
    made = film(policy.task, act(best), best, job.title)
    if made.gif is not None:
        job.film.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(job.film, made.gif)
    return made


def film_adversaries(jobs: Sequence[Job], processes: int) -> list[Film]:
    """The films of all jobs; one that is kept is read. New ones are drawn in processes of their own, which a graphics
    library may end without ending this one.
    """
    films = {job: kept for job in jobs if (kept := read(job.film))}
    todo = [job for job in jobs if job not in films]
    if todo:
        with worker_pool(min(processes, len(todo))) as pool:
            running = {job: pool.submit(film_adversary, job) for job in todo}
            for job, future in running.items():
                try:
                    films[job] = future.result()
                except SaferuleError as error:
                    films[job] = Film(None, f"{job.title}: no film. {error}")
                except BrokenProcessPool:
                    films[job] = Film(None, f"{job.title}: no film, as the process that draws ended without a word.")
    return [films[job] for job in jobs]


def read(path: Path) -> Film | None:
    """A film that is kept; None where there is none or it is not a GIF that was made here."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            return Film(content, image.info["comment"].decode())
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


def _play(task: Task, act: Act, seed: int) -> _Episode:
    """One episode in the world without textures, which gives the same trajectory."""
    actions, sums, over = [], [(0.0, 0.0)], False
    simulator = make(task.name)
    try:
        observation = simulator.reset(seed)
        while not over:
            actions.append(act(observation[None], len(actions))[0])
            step = simulator.step(actions[-1])
            observation, over = step.observation, step.terminated or step.truncated
            sums.append((sums[-1][0] + step.reward, sums[-1][1] + step.cost))
    finally:
        simulator.close()
    return _Episode(np.asarray(actions), *np.transpose(sums))


def _pictures(task: Task, seed: int, actions: np.ndarray, shown: set[int], size: int) -> Iterator[Image.Image]:
    """The states after the numbers of steps in `shown`, drawn while the actions are played again."""
    simulator = make(task.name, render=True)
    try:
        simulator.reset(seed)
        for t in range(len(actions) + 1):
            if t > 0:
                simulator.step(actions[t - 1])
            if t in shown:
                yield Image.fromarray(simulator.render()).resize((size, size), Image.Resampling.BOX)
    finally:
        simulator.close()


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
    some = frames[:: max(1, len(frames) // 8)]
    together = Image.fromarray(np.concatenate([np.asarray(frame) for frame in some]))
    for colours, stride in QUALITIES:
        # An octree keeps the few pixels of the agent in their own colour; a median cut gives them the ground's.
        palette = together.quantize(colours, method=Image.Quantize.FASTOCTREE)
        kept = frames[::-stride][::-1]  # with the last one
        first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in kept]
        durations = [stride * FRAME_TIME] * len(rest) + [LAST_FRAME_TIME]
        options = {"duration": durations, "loop": 0, "optimize": True, "comment": comment.encode()}
        written = io.BytesIO()
        first.save(written, format="gif", save_all=True, append_images=rest, **options)
        if written.tell() <= LARGEST:
            break
    return written.getvalue()
