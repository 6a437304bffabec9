"""Films of policies: real episodes, read back by Pillow; a machine that cannot draw gets a sentence."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from saferule.attack.poison import attack_reward
from saferule.errors import CheckpointError
from saferule.runs.execute import process_pool
from saferule.sim import film as films
from saferule.sim import get_task
from saferule.sim.film import Film, Job
from saferule.sim.ppo import OnlinePolicy
from saferule.sim.rollout import roll_out

CAR = get_task("CarCircle")
HERE = ThreadPoolExecutor(1)


@pytest.fixture(scope="module")
def policy():
    """A tiny random actor."""
    generator = torch.Generator().manual_seed(0)
    sizes = (CAR.observation_dim, 4, CAR.action_dim)
    weights = {"log_std": torch.full((CAR.action_dim,), -1.0)}
    for layer in range(2):
        weights[f"{layer}.weight"] = torch.randn(sizes[layer + 1], sizes[layer], generator=generator)
        weights[f"{layer}.bias"] = torch.randn(sizes[layer + 1], generator=generator)
    return OnlinePolicy(CAR, weights, np.zeros(CAR.observation_dim), np.ones(CAR.observation_dim), {"hidden": [4]})


@pytest.fixture(scope="module")
def made(policy):
    return films.film(CAR, lambda states, _: policy.act(states), 3, "CarCircle, random", frames=20, size=120)


@pytest.fixture
def job(policy, tmp_path):
    policy.save(tmp_path / "policy")
    path = tmp_path / "videos" / "car.gif"
    draw = partial(films.film_adversary, tmp_path / "policy", partial(attack_reward, "min_reward"))
    return Job(path, "CarCircle, Min Reward", draw)


def frames_of(gif):
    with Image.open(io.BytesIO(gif)) as image:
        assert image.format == "GIF"
        for index in range(image.n_frames):
            image.seek(index)
            yield np.asarray(image.convert("RGB")), image.info["duration"]


def test_a_film_has_the_asked_frames_and_size(policy, made):
    pictures, durations = zip(*frames_of(made.gif), strict=True)
    assert len(pictures) == 20
    assert {picture.shape for picture in pictures} == {(120 + films.STRIP, 120, 3)}
    assert durations == (films.FRAME_TIME,) * 19 + (films.LAST_FRAME_TIME,)
    moved = [np.abs(a[:120].astype(int) - b[:120]).max() for a, b in zip(pictures, pictures[1:], strict=False)]
    assert max(moved) > 30  # the world, not only the text
    assert pictures[0][:120].std() > 10
    assert len({picture[120:].tobytes() for picture in pictures}) == 20  # the running text
    colours = {tuple(colour) for picture in pictures for colour in np.unique(picture.reshape(-1, 3), axis=0)}
    assert len(colours) <= films.COLOURS
    again = films.film(CAR, lambda states, _: policy.act(states), 3, "CarCircle, random", frames=20, size=120)
    assert again == made
    (row,) = roll_out(CAR, lambda states, _: policy.act(states), [3]).rows
    assert made.told == f"CarCircle, random: cost {row['cost']:.0f}, return {row['return']:.1f} in 300 steps (seed 3)"


def test_an_adversary_is_shown_in_its_best_episode_and_kept(policy, job, monkeypatch):
    monkeypatch.setattr(films, "EPISODES", 3)
    chosen = []
    monkeypatch.setattr(films, "film", lambda task, act, seed, title: chosen.append(seed) or Film(b"GIF", title))
    assert job.draw(job.title).gif == b"GIF" and not job.file.exists()
    assert films.film_all([job], HERE)[0].gif == job.file.read_bytes() == b"GIF"

    def total(seed):
        return roll_out(CAR, policy.sampler(np.random.default_rng(seed)), [seed]).rows[0]["return"]

    assert chosen == [min(range(3), key=total)] * 2


def test_a_kept_film_is_read_and_not_made_again(job, made):
    job.file.parent.mkdir()
    job.file.write_bytes(made.gif)
    assert films.film_all([job], executor=None) == [made] == [films.read(job.file)]  # nothing is submitted
    job.file.write_bytes(b"GIF89a, cut off")
    assert films.read(job.file) is None


def test_what_fails_gives_a_sentence(job, policy, tmp_path, monkeypatch):
    (film,) = films.film_all([job._replace(draw=partial(films.film_adversary, tmp_path / "missing", max))], HERE)
    assert film.gif is None and film.told.startswith("CarCircle, Min Reward: no film. ")
    assert "holds no complete policy" in film.told and not job.file.exists()

    def ended(title):
        raise BrokenProcessPool

    (film,) = films.film_all([job._replace(draw=ended)], HERE)
    assert film == Film(None, "CarCircle, Min Reward: no film, as the process that draws ended without a word.")

    def broken(*args, **kwargs):
        raise OSError("no memory for a frame")

    monkeypatch.setattr(films, "_pictures", broken)
    film = films.film(CAR, lambda states, _: policy.act(states), 0, "CarCircle, random")
    assert film == Film(None, "CarCircle, random: no film, as drawing failed here (OSError: no memory for a frame).")


def test_films_are_drawn_in_other_processes(job):
    """A job is understood there."""
    with process_pool(1) as pool:
        (film,) = films.film_all([job], pool)
    assert film.gif == job.file.read_bytes() and len(list(frames_of(film.gif))) == films.FRAMES


def test_without_opengl_there_is_a_sentence_and_no_crash():
    """In a process of its own, as MuJoCo reads the variable when it is imported."""
    program = """
import numpy as np
from saferule.errors import SettingsError
from saferule.sim import get_task, make
from saferule.sim.film import film
make("PointGoal").reset(0)  # only drawing fails
make("CarCircle", render=True)  # drawn in software, whatever OpenGL there is
try:
    make("PointGoal", render=True)
except SettingsError as error:
    assert "MUJOCO_GL=nonsense" in str(error)
else:
    raise AssertionError("no error")
made = film(get_task("PointGoal"), lambda states, _: np.zeros((1, 2)), 0, "PointGoal, Max Cost")
assert made.gif is None
print(made.told)
"""
    environment = os.environ | {"MUJOCO_GL": "nonsense", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PointGoal, Max Cost: no film. Cannot draw this task: MUJOCO_GL=nonsense gives no")


def test_films_are_embedded_and_missing_ones_told_once():
    page = films.as_html([Film(b"GIF", 'a "film"'), Film(None, "No <GL>."), Film(None, "No <GL>.")])
    assert page.count("<img ") == 1 and 'src="data:image/gif;base64,R0lG"' in page
    assert 'alt="a &quot;film&quot;"' in page
    assert page.count("<p>No &lt;GL&gt;.</p>") == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": {"actor.weight": torch.zeros(2)}}, "'actor.weight' has shape .2,., expected None"),
        ({"weights": {"log_std": torch.zeros(3)}}, "'log_std' has shape .3,., expected .2,."),
        ({"weights": {"0.bias": torch.zeros(5)}}, "'0.bias' has shape .5,., expected .4,."),
        ({"weights": {"1.weight": torch.zeros(2, 3)}}, "'1.weight' has shape .2, 3., expected .2, 4."),
        ({"mean": np.zeros(7)}, "'observation_mean' has shape .7,., expected .8,."),
        ({"variance": np.ones((8, 1))}, "'observation_variance' has shape .8, 1., expected .8,."),
    ],
)
def test_arrays_that_do_not_fit_are_named(policy, tmp_path, change, sentence):
    replace(policy, **change | {"weights": policy.weights | change.get("weights", {})}).save(tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        OnlinePolicy.load(tmp_path)
