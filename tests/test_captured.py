"""A step replayed as a CUDA graph does what a step does. Runs where there is a GPU."""

import pytest
import torch
from helpers import EXISTING, Sampled, frozen, tiny

from saferule.agents import get_backbone
from saferule.agents.captured import CapturedUpdate
from saferule.agents.population import create, draw_noise, training, update
from saferule.errors import SettingsError


def test_a_captured_step_needs_a_gpu():
    backbone, cfg = get_backbone("cpq"), tiny("cpq")
    population, algorithm = create(backbone, cfg, [0]), training(backbone, cfg)
    noise = draw_noise(population, algorithm.noise_shapes, torch.float32)
    with pytest.raises(SettingsError, match="CUDA"):
        CapturedUpdate(population, algorithm, Sampled(cfg)(population), noise)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", EXISTING)
def test_replayed_steps_equal_steps(name):
    backbone, cfg = get_backbone(name), tiny(name)
    algorithm, draw = training(backbone, cfg), Sampled(cfg)
    plain, replayed = (create(backbone, cfg, [0, 1], "cuda") for _ in range(2))
    graph = None
    for _ in range(5):
        batch = torch.utils._pytree.tree_map(lambda x: x.cuda(), draw(plain))
        noise = draw_noise(plain, algorithm.noise_shapes, torch.float32)
        graph = graph or CapturedUpdate(replayed, algorithm, batch, noise)
        expected, found = update(plain, algorithm, batch, noise), graph(batch, noise)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    assert replayed.step == plain.step == 5
    ours, theirs = frozen(replayed), frozen(plain)
    for key in theirs:
        if key != "generators":  # only the plain population drew
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)
