"""The spot-check: what is right passes; a changed network, episode, table or file is named and fails."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from episodes_by_hand import rows
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from saferule.agents.checkpoint import read, write
from saferule.cli import app
from saferule.errors import SettingsError
from saferule.report import spot_check, style, tables
from saferule.report.study import Study
from saferule.report.tables import CELL
from saferule.runs.engine import make
from saferule.runs.execute import InProcess
from saferule.runs.interruptible import AGENT
from saferule.runs.spec import EvaluationRun
from saferule.runs.store import Store, write_sums
from saferule.runs.work import EPISODES

CHANGES = {"backbones": "cpq", "adversary_steps": 2048, "training_steps": 20, "unlearning_steps": 5}
CHANGES |= {"snapshots": 0, "episodes": 2, "block_seconds": 1e-3}
SHOWN = ("clean", "poisoned", "safe-rule")
NAME = "CPQ/max_cost/CarCircle/0.15"


def study_of(folder: Path, data_folder: Path) -> Study:
    return Study("smoke", output=folder, data=data_folder, changes=CHANGES, only_stored=True)


@pytest.fixture(scope="module")
def committed(tmp_path_factory, data_folder) -> Path:
    """Three policies with their episodes, the measurement of their times, three tables and a figure."""
    study = study_of(tmp_path_factory.mktemp("committed"), data_folder)
    policies = [run for run in study.plan["main"] if run.method in SHOWN]
    some = [run for run in study.plan["evaluations"] if run.policy in policies]
    make([*some, *study.plan["timing"]], study.workspace, InProcess(), say=lambda line: None)
    save_table1(study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saferule.report.study.display", lambda shown: None)
        study.arranged("table3", study.save_table(study.times(), "table3"))
        settings = tables.hyperparameters(study.only(study.plan["main"], name="safe-rule"))
        study.arranged("table7", study.save_table(settings, "table7"))
    episodes = study.episodes(study.part("main"))
    study.figure("figure1", tables.TABLES["methods"].build(episodes, study.asked), tables.replicate_means(episodes))
    return study.folder.parent


def save_table1(study: Study) -> None:
    """As the notebook does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saferule.report.study.display", lambda shown: None)
        study.table("table1", study.episodes(study.part("main")))


@pytest.fixture
def study(committed, tmp_path, data_folder) -> Study:
    """The same in a copy that may be damaged."""
    return study_of(Path(shutil.copytree(committed, tmp_path / "copy")), data_folder)


def evaluation(study: Study, method: str) -> EvaluationRun:
    return next(run for run in study.plan["evaluations"] if run.policy.method == method)


def checked(study: Study, name: str = "table1", cell: str = NAME, **options) -> tuple[bool, list[str]]:
    said: list[str] = []
    return spot_check.check(study, name, cell, say=said.append, **options), said


def failures(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("FAIL  ")]


def flip_a_bit(study: Study) -> None:
    path = study.store.folder(evaluation(study, "safe-rule").policy) / AGENT
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def flip_a_bit_and_its_sum(study: Study) -> None:
    """The lowest bit of the exponent of a layer's weights of the actor, which the sums then agree with."""
    folder = study.store.folder(evaluation(study, "safe-rule").policy)
    tensors, meta = read(folder / AGENT)
    name = next(name for name in tensors if name.startswith("nets/actor/"))
    weights = tensors[name].clone().numpy()
    weights.view(np.uint32)[:] ^= 1 << 23
    write(folder / AGENT, tensors | {name: tensors[name].new_tensor(weights)}, meta)
    write_sums(folder)


def exchange_the_networks(study: Study) -> None:
    target, source = (study.store.folder(evaluation(study, name).policy) for name in ("safe-rule", "clean"))
    shutil.copyfile(source / AGENT, target / AGENT)
    write_sums(target)


def empty_the_networks(study: Study) -> None:
    folder = study.store.folder(evaluation(study, "safe-rule").policy)
    (folder / AGENT).write_bytes(b"")
    write_sums(folder)


def edit_episodes(study: Study, which: slice = slice(1, 2), by: float = 1.0) -> None:
    """Their cost, in the sums and in the table too."""
    folder = study.store.folder(evaluation(study, "safe-rule"))
    frame = pd.read_csv(folder / EPISODES)
    frame.loc[frame.index[which], "cost"] += by
    frame.to_csv(folder / EPISODES, index=False)
    write_sums(folder)
    save_table1(study)


def edit_the_episodes_alone(study: Study) -> None:
    path = study.store.folder(evaluation(study, "safe-rule")) / EPISODES
    path.write_text(path.read_text().replace("10001", "10009"))


PLAYED = "episodes of Safe-RULE, replicate 0"


@pytest.mark.parametrize(
    ("tamper", "sentences"),
    [
        (flip_a_bit, ["agent.safetensors: has changed since it was written"]),
        (flip_a_bit_and_its_sum, [PLAYED]),
        (exchange_the_networks, ["the agent of run"]),
        (empty_the_networks, ["not a whole safetensors file"]),
        (edit_episodes, [PLAYED]),
        (edit_the_episodes_alone, ["episodes.csv: has changed since it was written", "not built again"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_changed_fails_and_is_named(study, tamper: Callable, sentences: list[str]):
    tamper(study)
    passed, said = checked(study)
    assert not passed and said[-1] == "FAIL"
    assert len(failures(said)) == len(sentences), failures(said)
    for sentence, line in zip(sentences, failures(said), strict=True):
        assert sentence in line
    assert any("episodes of clean (retrained), replicate 0" in line for line in said if line.startswith("pass"))


def test_policies_without_networks_are_rows_only_until_they_are_trained_again(study, tmp_path):
    folder = study.store.folder(evaluation(study, "safe-rule").policy)
    (folder / AGENT).unlink()
    write_sums(folder)
    shutil.rmtree(study.store.folder(evaluation(study, "clean").policy))
    passed, said = checked(study)
    assert passed and sum(line.startswith("pass  episodes") for line in said) == 1
    assert "----  episodes of 2 policies: no networks are stored, rows only: --retrain makes them" in said
    assert sum("as built again" in line for line in said) == 4
    again = tmp_path / "again"
    passed, said = checked(study, again=again)
    assert passed and sum("trained again" in line and line.endswith("; equal") for line in said) == 6
    assert Store(again).done(evaluation(study, "safe-rule").policy.forget.adversary)  # from the dataset on
    with pytest.raises(SettingsError, match="expected another folder"):
        checked(study, again=study.folder)
    edit_episodes(study, slice(None), 1e4)
    passed, said = checked(study, again=again)
    assert not passed and ["cost of Safe-RULE, trained again" in line for line in failures(said)] == [True]


def test_tables_without_episodes_are_built_again(study):
    for name, count, cell in (("table3", 8, "cpq"), ("table7", 14, "")):
        passed, said = checked(study, name, cell)
        assert passed and sum("as built again" in line for line in said) == count, said
    assert "----  times: not measured again without --retrain" in checked(study, "table3", "")[1]
    table = study.folder / "tables" / "table7.csv"
    table.write_text(table.read_text().replace("Discount factor,gamma,0.99,0.99", "Discount factor,gamma,0.99,0.9"))
    lines = failures(checked(study, "table7", "")[1])
    assert lines[0] == "FAIL  Discount factor: ours 0.9 committed and 0.99 built again"
    assert lines[1:] == [f"FAIL  table7.{suffix}: is not what table7.csv says" for suffix in ("md", "tex")]


@pytest.mark.parametrize(
    ("file", "word"),
    [
        *((f"tables/table{number}.{suffix}", "cost limit 10") for number in (1, 3, 7) for suffix in ("md", "tex")),
        ("tables/table1.csv", "smoke"),
        ("figures/figure1.svg", "path"),
    ],
)
def test_every_file_beside_is_made_again(study, file, word):
    """A caption, the profile and a drawing are edited; what was right passes before."""
    path = study.folder / file
    assert checked(study, path.stem, "")[0]
    path.write_text(path.read_text().replace(word, "edited", 1))
    (line,) = failures(checked(study, path.stem, "")[1])
    assert line.startswith(f"FAIL  {path.name}: is ")


def test_a_figure_is_drawn_again(study):
    passed, said = checked(study, "figure1")
    assert passed and "pass  figure1: drawn again, every pixel is equal" in said
    assert sum("; 2 equal to the last digit" in line for line in said) == 3
    file = study.folder / "figures" / "figure1.png"
    with Image.open(file) as picture:
        edited, about = picture.convert("RGB"), PngImagePlugin.PngInfo()
        for name in style.TOLD:
            about.add_itxt(name, picture.info[name])
    edited.save(file)
    (line,) = failures(checked(study, "figure1")[1])
    assert line.startswith("FAIL  figure1: its title is '', drawn again 'Figure 1: ")
    edited.putpixel((9, 9), (255, 0, 0))
    edited.save(file, pnginfo=about)
    (line,) = failures(checked(study, "figure1")[1])
    assert line.startswith("FAIL  figure1: 0.0") and line.endswith("% of the pixels differ")


# The cell

CELLS = pd.DataFrame(
    [
        (task, backbone, attack, ratio)
        for task in ("CarCircle", "PointGoal")
        for backbone in ("bcq-lag", "cpq")
        for attack in ("max_cost", "min_reward")
        for ratio in (0.05, 0.15)
    ],
    columns=CELL,
)


@pytest.mark.parametrize(
    "text",
    [
        "BCQ-Lag/max_cost/PointGoal/0.15",
        "bcqlag, Max Cost, point goal, 15 %",
        "15% pointgoal MaxCost bcq_lag",
        "Max-Cost|rho=.15|BCQ|SafetyPointGoal1-v0",
        "OfflinePointGoal1Gymnasium-v0 ratio 15 max_cost bcq-lag",
    ],
)
def test_a_cell_is_understood_in_any_order_and_spelling(text):
    (found,) = spot_check.fitting(text, CELLS).to_dict("records")
    assert found == {"task": "PointGoal", "backbone": "bcq-lag", "attack": "max_cost", "ratio": 0.15}
    assert spot_check.name_of(found) == "BCQ-Lag/max_cost/PointGoal/0.15"


def test_what_a_cell_leaves_out_may_be_anything():
    assert len(spot_check.fitting("", CELLS)) == 16 and len(spot_check.fitting("cpq 0.05", CELLS)) == 4


@pytest.mark.parametrize(
    "text",
    ["BCQ-Lag/max_cost/PointGoal/0.10", "TD3/max_cost/PointGoal/0.15", "bcqlag/bear-lag", "0.05 0.15", "PointGoal2"],
)
def test_an_unknown_cell_is_answered_with_those_that_come_nearest(text):
    with pytest.raises(SettingsError) as caught:
        spot_check.fitting(text, CELLS)
    assert f"--cell {text!r}: none of the 16 cells" in str(caught.value) and len(str(caught.value)) <= 300
    if "PointGoal/" in text:
        assert "the nearest are BCQ-Lag/max_cost/PointGoal/0.05, BCQ-Lag/max_cost/PointGoal/0.15" in str(caught.value)


# Comparisons by hand


def episodes(costs, returns, replicate=0) -> pd.DataFrame:
    return rows("safe-rule", replicate, costs, returns).assign(length=300)


def test_where_rounding_differs_in_every_episode_means_are_compared():
    """Ten costs in another order are as close as can be; 2.685 is t at 9 degrees of freedom and 1 - 0.05 / 4."""
    values = np.arange(10.0)
    committed, again = episodes(values, values), episodes(values[::-1], values + 1e-9)
    (outcome,) = spot_check.episodes_again(committed, again)
    assert outcome.passed and "close, not equal" in outcome.why
    (outcome,) = spot_check.episodes_again(committed, again, same_processor=True)
    assert not outcome.passed and "10 of 10 differ" in outcome.why
    half = 2.6850 * math.sqrt(2) * values.std(ddof=1) / math.sqrt(10)
    for moved, passes in ((0.999 * half, True), (1.001 * half, False)):
        (outcome,) = spot_check.episodes_again(committed, again.assign(cost=again["cost"] + moved))
        assert outcome.passed is passes and f"{half:.3g}" in outcome.why


def test_rounding_does_not_pick_single_episodes():
    values = np.arange(10.0)
    committed, again = episodes(values, values), episodes(values, values)
    again.loc[:4, "return"] += 1e-9
    (outcome,) = spot_check.episodes_again(committed, again)
    assert not outcome.passed and "5 of 10 differ, the first on seed 0: return 0, now 1e-09" in outcome.why
    others = (episodes(values, values, replicate=1), episodes(values[:9], values[:9], replicate=1))
    other = episodes(values[::-1], values + 1e-9)  # close, but the policy beside it is equal
    outcomes = spot_check.episodes_again(pd.concat([committed, others[0]]), pd.concat([other, others[0]]))
    assert [outcome.passed for outcome in outcomes] == [False, True]
    lost = episodes(values, values, replicate=1).assign(cost=np.nan)
    lost["return"] = np.nan  # failed, then and now
    assert spot_check.episodes_again(lost, lost)[0].passed and not spot_check.episodes_again(others[0], lost)[0].passed
    for fewer in (others, others[::-1], (pd.concat([others[0], others[0][:1]]), others[0])):  # gone, added, twice
        (outcome,) = spot_check.episodes_again(*fewer)
        assert not outcome.passed and f"1 of {max(map(len, fewer))} differ" in outcome.why


def test_policies_that_were_trained_again_are_compared_over_replicates():
    """Means 1 2 3 against 2 3 4, 6.2053 is t at 2 degrees of freedom and 1 - 0.05 / 4; returns are equal."""
    half = 6.2053 * math.sqrt(2 / 3)
    committed, again = (
        pd.concat([episodes([c + r] * 2, [50.0 + r] * 2, replicate=r) for r in range(3)]) for c in (1.0, 2.0)
    )
    cost, returned = spot_check.means_again(committed, again)
    assert cost.passed and cost.why == f"2 and again 3; within {half:.3g}, the spread of 3 replicates"
    assert returned.passed and "; equal" in returned.why
    far = again.assign(cost=again["cost"] + half)
    assert [outcome.passed for outcome in spot_check.means_again(committed, far)] == [False, True]


def test_a_table_is_compared_row_by_row():
    committed = pd.DataFrame(
        {"task": "CarCircle", "method": ["clean", "poisoned"], "mean": [1 / 3, 2.0], "low": np.nan}
    )

    def failing(other: pd.DataFrame) -> list[str]:
        return [str(o) for o in spot_check.numbers_again(committed, other) if not o.passed]

    assert not failing(committed) and not failing(committed.assign(mean=committed["mean"] * (1 + 1e-12)))
    assert failing(committed.assign(mean=[1 / 3, 2.0000001])) == [
        "FAIL  poisoned: mean 2.0 committed and 2.0000001 built again"
    ]
    assert failing(committed.assign(low=[np.nan, 1.0])) == ["FAIL  poisoned: low nan committed and 1.0 built again"]
    assert failing(committed[:1]) == ["FAIL  poisoned: in the committed table, there are no episodes of it"]
    more = pd.concat([committed, committed[:1].assign(method="safe-rule")])
    assert failing(more) == ["FAIL  Safe-RULE: not in the committed table, there are episodes of it"]
    assert "without column n" in failing(committed.assign(n=1))[0]


def test_times_that_are_measured_again_overlap_or_not():
    where = {"task": "CarCircle", "backbone": "cpq", "method": ["fine-tuning", "safe-rule"]}
    committed = pd.DataFrame(where | {"relative_step_low": [0.9, 2.0], "relative_step_high": [1.1, 3.0]})
    again = committed.assign(relative_step_low=[1.05, 3.1], relative_step_high=[1.2, 4.0])
    assert [outcome.passed for outcome in spot_check.times_again(committed, again)] == [True, False]


# The command


def command(study: Study, *arguments: str):
    changes = [part for name, value in CHANGES.items() for part in ("--set", f"{name}={value}")]
    places = ["--output", str(study.folder.parent), "--data", str(study.workspace.data_folder)]
    return CliRunner().invoke(app, ["check", *arguments, *changes, *places])


def test_what_is_right_passes_and_an_edited_table_fails(study):
    passed = command(study, "Table 1", "--cell", "carcircle cpq")
    said = passed.stdout.splitlines()
    assert passed.exit_code == 0 and said[-1] == "PASS" and NAME in said[0], passed.output
    assert sum("; 2 equal to the last digit" in line for line in said) == 3
    assert sum("as built again" in line for line in said) == 4  # cost and return, before and after
    table = study.folder / "tables" / "table1.csv"
    frame = pd.read_csv(table)
    frame.loc[(frame["method"] == "safe-rule") & (frame["metric"] == "return"), "mean"] += 1e-3
    frame.to_csv(table, index=False)
    failed = command(study, "table1", "--cell", NAME, "--replicates", "0")
    (line,) = failures(failed.stdout.splitlines())
    assert failed.exit_code == 1 and line.startswith("FAIL  return of Safe-RULE (Table 1): mean")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["table8"], "unknown table or figure 'table8': choose among controls, figure1"),
        (["table1", "--cell", "BEAR-Lag/max_cost/CarCircle/0.15"], "none of the 1 cells with committed episodes"),
        (["table1", "--replicates", "7"], "--replicates 7: no policies of it, expected among 0"),
        (["table2"], "table2.csv: no such file, expected it with its runs"),
        (["figure2", "--cell", "cpq"], "figure2.png: no such file"),
        (["table1", "--retrain", "--into", __file__], "expected a folder"),
        (["table1", "--into", "x"], "--into: there is nothing to put there without --retrain"),
    ],
)
def test_a_request_that_cannot_be_met_is_answered_in_a_line(study, arguments, sentence):
    result = command(study, *arguments)
    assert result.exit_code == 2 and sentence in result.stderr
    assert result.stderr.startswith("saferule: error: ") and result.stderr.count("\n") == 1
