"""Films of policies: real episodes, read back by Pillow; a machine that cannot draw gets a sentence."""

import io
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from saferule.errors import CheckpointError
from saferule.report import videos
from saferule.report.videos import Film, Job
from saferule.runs import plan
from saferule.runs.study import Study
from saferule.sim import get_task
from saferule.sim.graphics import drawing_problem
from saferule.sim.ppo import OnlinePolicy

CAR = get_task("CarCircle")


@pytest.fixture(scope="module")
def policy():
    """A tiny random actor."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    sizes = (CAR.observation_dim, 4, CAR.action_dim)
    weights = {"log_std": torch.full((CAR.action_dim,), -1.0)}
    for layer in range(2):
        weights[f"{layer}.weight"] = random(sizes[layer + 1], sizes[layer])
        weights[f"{layer}.bias"] = random(sizes[layer + 1])
    return OnlinePolicy(CAR, weights, np.zeros(CAR.observation_dim), np.ones(CAR.observation_dim), {})


@pytest.fixture(scope="module")
def made(policy):
    return videos.film(CAR, lambda states, _: policy.act(states), 3, "CarCircle, random", frames=20, size=120)


def frames_of(gif):
    with Image.open(io.BytesIO(gif)) as image:
        assert image.format == "GIF"
        for index in range(image.n_frames):
            image.seek(index)
            yield np.asarray(image.convert("RGB")), image.info["duration"]


def test_a_film_has_the_asked_frames_and_size(made):
    pictures, durations = zip(*frames_of(made.gif), strict=True)
    assert len(pictures) == 20
    assert {picture.shape for picture in pictures} == {(120 + videos.STRIP, 120, 3)}
    assert durations == (videos.FRAME_TIME,) * 19 + (videos.LAST_FRAME_TIME,)
    assert len(made.gif) <= videos.LARGEST
    moved = [np.abs(a[:120].astype(int) - b[:120]).max() for a, b in zip(pictures, pictures[1:], strict=False)]
    assert max(moved) > 30  # the world, not only the text
    assert pictures[0][:120].std() > 10


def test_its_sentence_is_that_of_the_episode(policy, made):
    episode = videos._play(CAR, lambda states, _: policy.act(states), 3)
    assert len(episode.actions) == CAR.horizon
    assert episode.returns[0] == episode.costs[0] == 0.0
    told = f"cost {episode.costs[-1]:.0f}, return {episode.returns[-1]:.1f} in 300 steps (seed 3)"
    assert made.told == f"CarCircle, random: {told}"


def test_the_running_text_differs_from_frame_to_frame(made):
    strips = [picture[120:].tobytes() for picture, _ in frames_of(made.gif)]
    assert len(set(strips)) == 20


def test_a_kept_film_is_read_and_not_made_again(policy, tmp_path):
    policy.save(tmp_path / "policy")
    job = Job(tmp_path / "policy", tmp_path / "videos" / "car.gif", "max_cost", "CarCircle, random")
    made = videos.film(CAR, lambda states, _: policy.act(states), 0, "CarCircle, random", frames=3, size=60)
    job.film.parent.mkdir()
    job.film.write_bytes(made.gif)
    assert videos.film_adversaries([job], processes=1) == [made] == [videos.read(job.film)]
    job.film.write_bytes(b"GIF89a, cut off")
    assert videos.read(job.film) is None


def test_an_adversary_is_shown_in_its_best_episode_and_kept(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "EPISODES", 3)
    policy.save(tmp_path / "policy")
    job = Job(tmp_path / "policy", tmp_path / "videos" / "car.gif", "min_reward", "CarCircle, Min Reward")
    chosen = []
    monkeypatch.setattr(videos, "film", lambda task, act, seed, title: chosen.append(seed) or Film(b"GIF", title))
    assert videos.film_adversary(job).gif == job.film.read_bytes() == b"GIF"

    def total(seed):
        generator = np.random.default_rng(seed)
        return videos._play(CAR, lambda states, _: policy.act(states, False, generator), seed).returns[-1]

    assert chosen == [min(range(3), key=total)]


def test_a_policy_that_cannot_be_read_gives_a_sentence(tmp_path):
    job = Job(tmp_path / "missing", tmp_path / "videos" / "car.gif", "max_cost", "CarCircle, Max Cost")
    (film,) = videos.film_adversaries([job], processes=1)
    assert film.gif is None and film.told.startswith("CarCircle, Max Cost: no film. ")
    assert "holds no complete policy" in film.told
    assert not job.film.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": {"actor.weight": torch.zeros(2)}}, "the weights are named .*'actor.weight', 'log_std'., expected"),
        ({"weights": {"log_std": torch.zeros(3)}}, "'log_std' has shape .3,., expected .2,."),
        ({"weights": {"0.bias": torch.zeros(5)}}, "'0.weight' has shape .4, 8., expected .5, 8."),
        ({"weights": {"1.weight": torch.zeros(2, 3)}}, "'1.weight' has shape .2, 3., expected .2, 4."),
        ({"mean": np.zeros(7)}, "'observation_mean' has shape .7,., expected .8,."),
        ({"variance": np.ones((8, 1))}, "'observation_variance' has shape .8, 1., expected .8,."),
    ],
)
def test_arrays_that_do_not_fit_are_named(policy, tmp_path, change, sentence):
    replace(policy, **change | {"weights": policy.weights | change.get("weights", {})}).save(tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        OnlinePolicy.load(tmp_path)


def test_kept_films_are_shown_where_none_can_be_drawn(made, tmp_path, monkeypatch):
    monkeypatch.setattr("saferule.sim.graphics.drawing_problem", lambda task: "No OpenGL here.")
    study = Study("smoke", output=tmp_path, data=tmp_path, attacks=["max_cost", "min_reward"])
    for count, attack in enumerate(study.profile.attacks, start=1):
        folder = study.store.folder(plan.adversary(study.profile, "CarCircle", attack))
        path = tmp_path / "smoke" / "videos" / f"{folder.name}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.gif)
        missing = [Film(None, "CarCircle: no film of Min Reward. No OpenGL here.")] if count == 1 else []
        assert study.adversary_films("CarCircle") == [made] * count + missing


def test_large_films_get_fewer_colours_and_then_fewer_frames(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (7, 40, 40, 3), dtype=np.uint8)
    frames = [Image.fromarray(picture) for picture in noise]
    large = videos._gif(frames, "told")
    monkeypatch.setattr(videos, "LARGEST", len(large) - 1)
    smaller = videos._gif(frames, "told")
    assert len(smaller) < len(large) and len(list(frames_of(smaller))) == 7
    monkeypatch.setattr(videos, "LARGEST", 1)
    durations = [duration for _, duration in frames_of(videos._gif(frames, "told"))]
    assert durations == [3 * videos.FRAME_TIME] * 2 + [videos.LAST_FRAME_TIME]


def test_films_are_embedded_and_missing_ones_told_once():
    page = videos.as_html([Film(b"GIF", 'a "film"'), Film(None, "No <GL>."), Film(None, "No <GL>.")])
    assert page.count("<img ") == 1 and 'src="data:image/gif;base64,R0lG"' in page
    assert 'alt="a &quot;film&quot;"' in page
    assert page.count("<p>No &lt;GL&gt;.</p>") == 1


def test_drawing_that_fails_gives_a_sentence(policy, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no memory for a frame")

    monkeypatch.setattr(videos, "_pictures", broken)
    film = videos.film(CAR, lambda states, _: policy.act(states), 0, "CarCircle, random")
    assert film == Film(None, "CarCircle, random: no film, as drawing failed here (OSError: no memory for a frame).")


def test_without_opengl_there_is_a_sentence_and_no_crash():
    """In a process of its own, as MuJoCo reads the variable when it is imported."""
    program = """
import numpy as np
from saferule.sim import get_task
from saferule.report.videos import film
made = film(get_task("PointGoal"), lambda states, _: np.zeros((1, 2)), 0, "PointGoal, Max Cost")
assert made.gif is None
print(made.told)
"""
    environment = os.environ | {"MUJOCO_GL": "nonsense", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PointGoal, Max Cost: no film. Cannot draw this task: MUJOCO_GL=nonsense gives no")
    assert drawing_problem(CAR) is None  # drawn in software, whatever OpenGL there is
