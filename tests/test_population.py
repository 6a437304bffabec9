"""Agents trained together equal agents trained alone; each loss trains its networks; targets follow."""

import pytest
import torch
from helpers import Sampled, advance, assert_same_state, changed_networks, frozen, tiny

from saferule.agents import BACKBONES, get_backbone
from saferule.agents.population import Algorithm, create, draw_noise, member, reset_optimisers, training
from saferule.errors import SettingsError


@pytest.mark.parametrize("name", BACKBONES)
def test_three_agents_together_equal_three_alone(name):
    backbone, cfg, seeds = get_backbone(name), tiny(name), (3, 11, 4)
    algorithm, draw = training(backbone, cfg), Sampled(tiny(name))
    together = create(backbone, cfg, seeds)
    alone = [create(backbone, cfg, [seed]) for seed in seeds]
    start = frozen(together)
    for _ in range(10):
        (info,) = advance(together, algorithm, draw)
        infos = [advance(population, algorithm, draw)[0] for population in alone]
        for quantity, values in info.items():
            torch.testing.assert_close(values, torch.cat([i[quantity] for i in infos]), rtol=1e-5, atol=1e-5)
    for p, population in enumerate(alone):
        assert_same_state(frozen(together, [p]), frozen(population), 1e-5)
    assert changed_networks(start, frozen(together)) == set(algorithm.trained) | set(algorithm.targets)
    assert together.step == 10


@pytest.mark.parametrize("name", BACKBONES)
def test_an_agent_depends_on_its_seed_alone(name):
    backbone, cfg = get_backbone(name), tiny(name)
    pair, single = create(backbone, cfg, [8, 9]), create(backbone, cfg, [9])
    first, second = (member(pair.nets, p) for p in (0, 1))
    assert_same_state(second, member(single.nets, 0))
    for net, leaves in second.items():
        assert not any(torch.equal(leaf, first[net][k]) for k, leaf in leaves.items() if leaf.numel() > 1)
    for target, source in backbone.TARGETS.items():
        assert_same_state(pair.nets[target], pair.nets[source])
    shapes = {"a": (3, 2), "b": (4,)}
    for _ in range(2):
        two, one = (draw_noise(p, shapes, torch.float32) for p in (pair, single))
        assert two["a"].shape == (2, 3, 2) and two["b"].shape == (2, 4)
        assert all(torch.equal(two[k][1], one[k][0]) and not torch.equal(two[k][0], two[k][1]) for k in shapes)


@pytest.mark.parametrize("name", BACKBONES)
def test_targets_move_by_tau(name):
    backbone, cfg = get_backbone(name), tiny(name)
    algorithm, draw = training(backbone, cfg), Sampled(cfg)
    population = create(backbone, cfg, [0, 1])
    for _ in range(3):  # so that targets and networks differ
        before = frozen(population)
        advance(population, algorithm, draw)
    for target, source in backbone.TARGETS.items():
        for k, leaf in population.nets[target].items():
            old, network = before[f"nets/{target}/{k}"], population.nets[source][k].detach()
            torch.testing.assert_close(leaf, (1 - cfg.tau) * old + cfg.tau * network, rtol=1e-5, atol=1e-7)
            assert not leaf.requires_grad


@pytest.mark.parametrize(
    ("name", "index"), [(name, i) for name in BACKBONES for i in range(len(get_backbone(name).LOSSES))]
)
def test_each_loss_trains_its_networks_and_no_other(name, index):
    backbone, cfg = get_backbone(name), tiny(name)
    whole, draw = training(backbone, cfg), Sampled(cfg)
    loss = backbone.LOSSES[index]
    population = create(backbone, cfg, [0, 1])
    advance(population, whole, draw, 3)
    reset_optimisers(population, whole)
    before = frozen(population)
    advance(population, Algorithm(((loss,),), whole.noise_shapes, {}, cfg), draw)
    after = frozen(population)
    assert changed_networks(before, after) == set(loss[0])
    for p in range(2):  # in each agent
        one, other = ({n: v[p] for n, v in s.items() if n.startswith("nets/")} for s in (before, after))
        assert changed_networks(one, other) == set(loss[0])


def test_noise_is_standard_normal_and_empty_shapes_are_allowed():
    population = create(get_backbone("cpq"), tiny("cpq"), [0, 1])
    noise = draw_noise(population, {"z": (100, 200)}, torch.float32)["z"]
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
    assert draw_noise(population, {}, torch.float32) == {}


def test_unknown_backbone():
    with pytest.raises(SettingsError, match="bcq-lag, bear-lag, cpq, coptidice"):
        get_backbone("sac")
