"""The measurement behind Table 3: its arithmetic, and that nothing is left out. No times are asserted."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import changed_networks, frozen, random_dataset

from saferule.agents import BACKBONES, get_backbone
from saferule.bench import unlearning as bench
from saferule.bench import write_json
from saferule.data.schema import Dataset
from saferule.profiles import get_profile
from saferule.report import timing
from saferule.runs.cells import settings
from saferule.runs.inventory import REPAIRS
from saferule.runs.places import project_root
from saferule.unlearn import supported, unlearning

TINY = replace(
    get_profile("smoke", training_steps=1000, unlearning_steps=50),
    settings=settings(hidden=(8, 8), vae_hidden=8, batch_size=6, samples=3),
)


def timed(method, steps, shares=(1.0,), start_s=0.0):
    return bench.Timed(method, steps, (lambda: None,) * len(shares), shares, start_s)


def car_circle(episodes=4, length=10):
    """Random transitions of CarCircle's widths."""
    rng, n = np.random.default_rng(0), episodes * length
    ends = np.arange(n) % length == length - 1
    rows = {"observations": (n, 8), "next_observations": (n, 8)}
    drawn = {key: rng.normal(size=shape) for key, shape in rows.items()}
    actions = rng.uniform(-1, 1, (n, 2))
    return Dataset(**drawn, actions=actions, rewards=np.ones(n), costs=np.ones(n), terminals=np.zeros(n), timeouts=ends)


@pytest.fixture(scope="module")
def measured():
    return bench.measure({"CarCircle": car_circle()}, TINY, rounds=1, block_seconds=0.0)


# Arithmetic


def test_phases_count_by_their_share_of_the_steps():
    backbone = get_backbone("cpq")
    cfg = backbone.Config(3, 2, 300)
    # Four fifths forgetting, one fifth convergence.
    assert bench.shares(unlearning("trajdeleter", backbone, cfg, 5000), 5000) == (0.8, 0.2)
    # Keep and forget blocks take turns for four fifths of the steps.
    assert bench.shares(unlearning("trajdeleter-released", backbone, cfg, 5000), 5000) == (0.4, 0.4, 0.2)
    assert bench.shares(unlearning("safe-rule", backbone, cfg, 5000), 5000) == (1.0,)
    blocks = timed("trajdeleter", 5000, (0.8, 0.2)).seconds_per_step([[0.010, 0.020], [0.020, 0.030]])
    assert blocks == pytest.approx([0.012, 0.022])


def test_totals_and_factors():
    start, repair = timed("retraining", 1_000_000, start_s=2.0), timed("safe-rule", 5_000)
    rows = bench.rows_of("CarCircle", "cpq", [(start, [0.010]), (repair, [0.016])])
    # 10^6 x 10 ms = 10,000 s; 5,000 x 16 ms = 80 s; 10,000 / 80 = 125 = 200 / 1.6.
    assert rows[0]["seconds"] == pytest.approx(10_000) and rows[1]["seconds"] == pytest.approx(80)
    assert rows[0]["factor"] == rows[0]["share"] == rows[0]["relative_step"] == 1 and rows[0]["start_s"] == 2.0
    assert rows[1]["ms_per_step"] == pytest.approx(16) and rows[1]["relative_step"] == pytest.approx(1.6)
    assert rows[1]["factor"] == pytest.approx(125) and rows[1]["share"] == pytest.approx(0.008)
    # Table 3, CarCircle: 276.1 and 9.2 minutes.
    assert (rows[0]["paper_minutes"], rows[1]["paper_minutes"]) == (276.1, 9.2)
    assert rows[1]["paper_factor"] == pytest.approx(30.011, abs=1e-3)


def test_medians_and_ranges_over_the_blocks():
    """The ratio's range is of the blocks of a round: a machine that is slow in one round is so for both."""
    start, repair = timed("retraining", 100), timed("safe-rule", 10)
    _, row = bench.rows_of("CarCircle", "cpq", [(start, [0.010, 0.020, 0.012]), (repair, [0.011, 0.024, 0.012])])
    assert row["ms_per_step"] == pytest.approx(12) and row["relative_step"] == pytest.approx(1.0)
    assert (row["ms_per_step_low"], row["ms_per_step_high"]) == pytest.approx((11, 24))
    assert (row["relative_step_low"], row["relative_step_high"]) == pytest.approx((1.0, 1.2))
    assert row["factor"] == pytest.approx(10) and row["seconds"] == pytest.approx(0.12)


def test_the_papers_times_stand_beside_cpq_only():
    pair = [(timed("retraining", 10), [1.0]), (timed("trajdeleter-cost", 10), [1.0])]
    assert [row["paper_minutes"] for row in bench.rows_of("PointGoal", "bcq-lag", pair)] == [None, None]
    assert [row["paper_minutes"] for row in bench.rows_of("PointGoal", "cpq", pair)] == [132.0, None]
    expected = {"retraining": 132.0, "safe-rule": 5.5, "trajdeleter": 3.1, "reward-only": 3.1, "fine-tuning": 3.6}
    assert bench.paper_minutes("PointGoal") == expected


def test_the_last_trajectories_stand_in_for_the_forget_set():
    data = random_dataset(20, seed=0)
    keep, forget = bench.marked(data, 0.15)
    assert (len(keep.episodes()), len(forget.episodes())) == (17, 3)
    np.testing.assert_array_equal(forget.rewards, data.rewards[-30:])
    assert len(bench.marked(random_dataset(2, seed=0), 0.05)[1].episodes()) == 1


# The rows


def test_every_backbone_has_retraining_and_every_method_that_it_supports(measured):
    rows, machine = measured
    assert machine["block_seconds"] == 0.0 and machine["rounds"] == 1
    assert machine["threads"] == 1 and machine["profile"] == "smoke" and "evaluation" in machine["excluded"]
    for backbone in BACKBONES:
        here = [row for row in rows if row["backbone"] == backbone]
        wanted = ["retraining", *(method for method in REPAIRS if supported(method, backbone))]
        assert [row["method"] for row in here] == wanted
        assert [row["steps"] for row in here] == [1000] + [50] * (len(wanted) - 1)
        assert all(row["ms_per_step"] > 0 and row["task"] == "CarCircle" for row in here)
        for row in here:  # the factor is the ratio of steps over the cost of a step
            assert row["factor"] == pytest.approx(1000 / row["steps"] / row["relative_step"])
            whole = row["method"] in ("safe-rule", "reward-only") and backbone != "coptidice"
            assert (row["reference_s"] is not None) == whole


def test_a_timed_step_is_a_step_of_the_method():
    made, drawn = bench.Bench("CarCircle", "cpq", car_circle(), TINY, "cpu"), []
    population = made._agent(made.keep)
    before = frozen(population)

    def draw(population, agents):
        drawn.append(agents)
        return made.pool.gather(made.keep[: made.cfg.batch_size].unsqueeze(0))

    bench._step(population, bench.training(made.backbone, made.cfg), draw)()
    assert population.step == 1 and drawn == [[0]]
    assert {"actor", "critic", "cost_critic", "vae"} <= changed_networks(before, frozen(population))


def test_torch_has_its_threads_back():
    import torch

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), bench.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


# What is shown


ROWS = [
    *bench.rows_of(
        "CarCircle",
        "cpq",
        [
            (timed("retraining", 2000), [0.010]),
            (timed("fine-tuning", 200), [0.011]),
            (timed("trajdeleter", 200), [0.020]),
            (timed("safe-rule", 200), [0.016]),
        ],
    ),
    *bench.rows_of("CarCircle", "coptidice", [(timed("retraining", 2000), [0.1]), (timed("safe-rule", 200), [0.25])]),
]
BLOCKS = [(timed("retraining", 2000), [0.01, 0.01, 0.01]), (timed("safe-rule", 200), [0.01234, 0.0121, 0.0149])]
NOISY_ROWS = bench.rows_of("CarCircle", "coptidice", BLOCKS)  # 1.234, from 1.21 to 1.49


def test_markdown_has_a_line_per_method_and_a_column_per_backbone():
    lines = timing.markdown(ROWS).splitlines()
    assert lines[0] == "| task | method | gradient steps | CPQ | COptiDICE | the paper, CPQ |"
    assert lines[2] == "| CarCircle | retraining | 2,000 | 10 ms, 20 s | 100 ms, 3.33 min | 276.1 min |"
    assert lines[4] == "| CarCircle | Trajdeleter | 200 | 20 ms, 4 s, 5x | - | 6.6 min, 41.8x |"
    assert lines[5] == "| CarCircle | Safe-RULE | 200 | 16 ms, 3.2 s, 6.25x | 250 ms, 50 s, 4x | 9.2 min, 30x |"


def test_the_table_renders_from_the_file(tmp_path):
    write_json(tmp_path / "deep" / "unlearning.json", ROWS, {"device": "abacus"})
    assert timing.markdown(timing.read(tmp_path / "deep" / "unlearning.json")) == timing.markdown(ROWS)


def test_rows_measured_before_there_were_ranges_still_render():
    """As artifacts/bench/unlearning.json has them."""
    old = [{name: value for name, value in row.items() if not name.endswith(("_low", "_high"))} for row in ROWS]
    assert timing.markdown(old) == timing.markdown(ROWS)
    assert [sentence.replace(" (1.60 to 1.60 over the blocks)", "") for sentence in timing.conclusions(ROWS)][0] == (
        timing.conclusions(old)[0]
    )
    frame = timing.table(old, {"device": "abacus", "threads": 1})
    assert set(timing.shown(frame)["range"]) == {""} and len(timing.shares_of_retraining(frame, "time").axes) == 2
    committed = timing.read(project_root() / "artifacts" / "bench" / "unlearning.json")
    assert len(timing.markdown(committed).splitlines()) == 2 + 4 * 7


def test_noisy_values_have_two_digits():
    assert timing.digits(NOISY_ROWS[0]) == 3 and timing.digits(NOISY_ROWS[1]) == 2
    assert "12 ms, 2.5 s, 8.1x" in timing.markdown(NOISY_ROWS)  # 12.34, 2.468 and 8.104
    (said,) = timing.conclusions(NOISY_ROWS)
    assert "as long as 1.2 training steps (1.21 to 1.49 over the blocks)" in said
    assert "it is 8.1 times faster" in said and "it would be 160 times" in said and " = " not in said  # 10 / 1.2 = 8.3
    shown = timing.shown(timing.table(NOISY_ROWS, {"device": "abacus", "threads": 1}))
    assert shown["range"].tolist() == ["", "1.21 to 1.49"] and shown["total"].tolist() == ["20 s", "2.5 s"]
    assert shown["relative_step"].tolist() == ["1", "1.2"] and shown["factor"].tolist() == ["1", "8.1"]


def test_durations():
    expected = {
        0.0123: "12.3 ms",
        1.0: "1 s",
        119.0: "119 s",
        120.0: "2 min",
        7199.0: "120 min",
        7200.0: "2 h",
        1e6: "278 h",
    }
    assert {seconds: timing.duration(seconds) for seconds in expected} == expected


def test_conclusions_are_arithmetic_on_the_rows():
    cpq, coptidice, paper = timing.conclusions(ROWS)
    assert "takes as long as 1.6 training steps" in cpq and "it is 6.25 times faster" in cpq
    assert "it would be 125 times" in cpq
    assert "it is 4 times faster" in coptidice and "it would be 80 times" in coptidice
    # 276.1 / 9.2 = 30.0; 200 x 9.2 / 276.1 = 6.7; 200 x 7.0 / 276.1 = 5.1; 9.2 / 6.6 = 1.39; 16 / 20 = 0.8
    for number in ("retraining takes 30.0 times", "as long as 6.7 training steps, here 1.6", "5.1 of them, here 1.1"):
        assert number in paper
    assert "0.8 times as long as one of Trajdeleter here, 1.39 times in the paper" in paper
    only = [row for row in ROWS if row["backbone"] == "coptidice"]
    assert len(timing.conclusions(only)) == 1
    pair = [(timed("retraining", 1_000_000), [0.1]), (timed("safe-rule", 5_000), [0.1])]
    (table7,) = timing.conclusions(bench.rows_of("CarCircle", "coptidice", pair))
    assert table7.endswith("it is 200 times faster than retraining.")  # nothing to convert


def test_figure_places_every_method_at_its_share(measured):
    times = timing.table(measured[0], measured[1])
    figure = timing.shares_of_retraining(times, "time")
    assert [panel.get_title("left") for panel in figure.axes] == [
        "CarCircle, BCQ-Lag",
        "CarCircle, BEAR-Lag",
        "CarCircle, CPQ",
        "CarCircle, COptiDICE",
    ]
    for panel, backbone in zip(figure.axes, BACKBONES, strict=True):
        rows = times[times["backbone"] == backbone]
        assert panel.get_xscale() == "log"
        at = [dots.get_offsets()[0][0] for dots in panel.collections]
        assert set(rows["share"].round(9)) <= {round(float(x), 9) for x in at}
        assert len(at) == len(rows) + (5 if backbone == "cpq" else 0)  # the paper's hollow dots
