"""What a profile asks for: which runs, in which order, with which seeds; and which settings are refused."""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

import pytest

from saferule.agents import BACKBONES, get_backbone
from saferule.agents.checkpoint import (
    part_of,
    save_acting,
    save_networks,
    save_tensors,
    starting_part,
    tensors_of,
)
from saferule.agents.population import create
from saferule.errors import SettingsError
from saferule.runs.experiment import (
    FEW,
    PARTITIONED,
    PARTS,
    PROFILES,
    Data,
    ablated,
    asked,
    forget_run,
    get_profile,
    plan,
    slices,
)
from saferule.runs.interruptible import CHECKED
from saferule.runs.spec import (
    EvaluationRun,
    ForgetRun,
    Level,
    PolicyRun,
    RandomPart,
    TimingRun,
    config,
    identity,
    key,
    lineage,
    read_by,
    usual,
)
from saferule.sim import TASKS
from saferule.unlearn import METHODS, Method, applicable, chosen, supported

DATA = {task: Data("d" * 64, 50_000) for task in TASKS}
SMOKE = PROFILES["smoke"]


def methods(part: str) -> set[str]:
    return {method.name for method in METHODS.values() if method.part == part}


def test_smoke_asks_for_every_method_on_every_backbone_that_supports_it():
    parts = plan(SMOKE, DATA)
    assert tuple(parts) == PARTS
    for part in ("main", "controls", "ablations"):
        asked = {(run.backbone, run.method) for run in parts[part]}
        assert asked == {(b, m) for b in BACKBONES for m in methods(part) if supported(m, b)}
    assert len(parts["adversaries"]) == len(parts["forget sets"]) == 1
    assert [run.backbone for run in parts["timing"]] == list(BACKBONES)
    assert all(set(run.methods) < methods("main") for run in parts["timing"])
    starts = {run.start.method if run.start else "" for run in parts["main"]}
    assert starts == {"", "poisoned"}


def test_what_each_control_starts_from_and_forgets():
    parts = plan(replace(SMOKE, backbones=("cpq",)), DATA)
    (poisoned,) = (run for run in parts["main"] if run.method == "poisoned")
    (clean,) = (run for run in parts["main"] if run.method == "clean")
    of = {run.method: run for run in parts["controls"]}
    assert len(of) == len(parts["controls"])
    for method in ("keep-only", "critic-only", "random-forget", "continued"):
        assert of[method].start == poisoned and of[method].steps == SMOKE.unlearning_steps
    assert (of["on-clean"].start, of["on-clean"].forget) == (clean, poisoned.forget)
    assert of["random-forget"].forget == RandomPart("max_cost", 0.15, 7_500)  # 15 % of 50,000
    assert of["continued"].forget == poisoned.forget
    short = of["short-retraining"]
    assert (short.start, short.forget, short.steps) == (None, None, SMOKE.unlearning_steps)
    shown = identity(of["random-forget"])
    assert (shown["attack"], shown["ratio"]) == ("max_cost", 0.15)
    assert parts["forget sets"] == [poisoned.forget]  # the random part is no run


def test_all_96_cells_of_the_cpu_profile_with_every_replicate():
    profile = PROFILES["cpu"]
    parts = plan(profile, DATA)
    for method in ("poisoned", "safe-rule", "fine-tuning"):
        runs = [run for run in parts["main"] if run.method == method]
        cells = {(run.task, run.backbone, run.attack, run.ratio) for run in runs}
        assert len(cells) == 96 and len(runs) == len(set(runs)) == 96 * 3 + 4 * 2  # two more in the first slice
    assert len([run for run in parts["main"] if run.method == "clean"]) == 16 * 3 + 4 * 2
    assert all(ablated(profile, run) for run in parts["ablations"])
    assert {(run.attack, run.ratio) for run in parts["ablations"]} == {("max_cost", 0.05), ("max_cost", 0.15)}
    controls = {(run.attack, run.ratio) for run in parts["controls"] if run.forget}
    assert controls == {("max_cost", 0.05), ("max_cost", 0.15)}
    every = [run for runs in parts.values() for run in runs]
    assert len({key(run) for run in every}) == len(set(every))


def test_the_cpu_profile_is_the_union_of_its_slices_in_their_order():
    profile, whole = PROFILES["cpu"], plan(PROFILES["cpu"], DATA)
    first, *others = [plan(own, DATA) for own in slices(profile)]
    chosen = {"tasks": "CarCircle", "attacks": "max_cost", "ratios": 0.15, "replicates": [0, 1, 2, 3, 4]}
    assert first == plan(get_profile("cpu", **chosen), DATA)  # what is chosen takes the place of the slices
    assert {(run.attack, run.ratio) for run in first["ablations"]} == {("max_cost", 0.15)}
    for part, runs in whole.items():
        assert runs[: len(first[part])] == first[part]
        union = dict.fromkeys(run for own in (first, *others) for run in own[part])
        assert list(union) == runs or part in ("readings", "partitions", "evaluations")
    assert whole["readings"] == first["readings"]  # tried once
    assert slices(SMOKE) == [SMOKE] and slices(get_profile("cpu", backbones="cpq", episodes=2))[3].episodes == 2
    assert [len(own.replicates) for own in slices(profile)] == [5, 3, 3, 3]


def test_runs_are_asked_for_cell_by_cell_and_one_replicate_of_everything_before_the_second():
    profile = get_profile("cpu", tasks=["CarCircle", "PointGoal"], backbones=["bcq-lag", "cpq"], replicates=[0, 1])
    order = list(dict.fromkeys(run for _, run in asked(profile, DATA)))
    assert set(order) == {run for runs in plan(profile, DATA).values() for run in runs}
    place = {run: i for i, run in enumerate(order)}
    policies = [run for run in order if isinstance(run, PolicyRun) and run.attack != "clean"]
    parts = {run: part for part, run in asked(profile, DATA)}
    of_table_1 = [parts[run] in ("main", "controls") for run in policies]
    cells = [(run.replicate, run.task, run.backbone, run.attack, run.ratio) for run in policies]
    of_main = [cell for cell, main in zip(cells, of_table_1, strict=True) if main]
    assert len(list(groupby(of_main))) == len(set(cells)) == 2 * 2 * 2 * 6  # each in one piece
    stages = [(cell[0], not main) for cell, main in zip(cells, of_table_1, strict=True)]
    assert stages == sorted(stages)  # one replicate of everything before the second, in it Table 1 before the rest
    for run in order:
        if isinstance(run, EvaluationRun):  # episodes do not wait for the next policy
            assert 1 <= place[run] - place[run.policy] <= 2
        if isinstance(run, PolicyRun) and isinstance(run.forget, ForgetRun):
            first = min(place[other] for other in policies if other.forget == run.forget)
            assert place[run.forget] == first - 1
    last = [run for run in order if isinstance(run, TimingRun)]
    assert order[-len(last) :] == last


def test_a_replicate_is_independent_from_the_adversary_on():
    parts = plan(get_profile("smoke", replicates=[0, 4]), DATA)
    for run in parts["main"]:
        root = run.start or run
        assert run.replicate == root.replicate and (not run.forget or run.forget.adversary.seed == run.replicate)
    assert [run.seed for run in parts["adversaries"]] == [0, 4]
    order = [run.replicate for run in parts["main"]]
    assert order == sorted(order)  # one replicate of everything before the second


def test_what_each_policy_relearns_and_what_a_single_replicate_gets_beside_it():
    profile = replace(SMOKE, backbones=("cpq",))
    parts = plan(profile, DATA)
    *relearn, second = parts["forgetting"]
    assert [run.start for run in relearn] == parts["main"]
    assert {(run.method, run.steps, run.snapshots) for run in relearn} == {("relearn", SMOKE.relearning_steps, 1)}
    assert all(run.forget == parts["forget sets"][0] for run in relearn)  # a clean policy too
    assert identity(relearn[0]) == {
        "task": "CarCircle",
        "backbone": "cpq",
        "attack": "max_cost",
        "ratio": 0.15,
        "replicate": 0,
        "method": "relearn",
        "start": "clean",
        "readings": "{}",
    }
    assert relearn[0].label == "CarCircle-cpq-max_cost-0.15-clean-relearn-r0"
    assert second == replace(parts["main"][0], replicate=1)  # the floor of distances takes two clean policies
    assert not any(run.method == "clean" for run in plan(get_profile("smoke", replicates=[0, 1]), DATA)["forgetting"])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_readings_are_tried_on_the_first_task_and_replicate_one_at_a_time(backbone):
    profile = get_profile("smoke", tasks=["CarCircle", "PointGoal"], replicates=[3, 4], backbones=backbone)
    parts = plan(profile, DATA)
    (usual,) = (r for r in parts["main"] if (r.task, r.method, r.replicate) == ("CarCircle", "safe-rule", 3))
    runs = parts["readings"]
    assert [dict(run.readings) for run in runs] == applicable(backbone, config(usual))
    assert len(runs) == {"bcq-lag": 11, "bear-lag": 11, "cpq": 10, "coptidice": 6}[backbone]
    assert {replace(run, readings=()) for run in runs} == {usual}
    assert len({key(run) for run in [usual, *runs]}) == len(runs) + 1  # although their labels are the same


def test_evaluations_have_few_episodes_where_policies_are_many_or_on_the_way():
    parts = plan(SMOKE, DATA)
    of = {run.policy: run for run in parts["evaluations"]}
    assert len(of) == len(parts["evaluations"])
    assert set(of) == {
        run for part in ("main", "controls", "ablations", "readings", "partitions") for run in parts[part]
    } | {run for run in parts["forgetting"] if run.start}
    seeds = SMOKE.evaluation_seeds
    assert (of[parts["main"][0]].seeds, of[parts["main"][0]].snapshot_seeds) == (seeds, seeds[:2])
    assert (of[parts["readings"][0]].seeds, of[parts["readings"][0]].snapshot_seeds) == (seeds, seeds[:2])
    assert (of[parts["forgetting"][0]].seeds, of[parts["forgetting"][0]].snapshot_seeds) == (seeds[:2], seeds[:2])


def test_a_run_holds_changes_to_readings_and_not_what_its_method_fixes():
    for run in plan(SMOKE, DATA)["main"]:
        fixed = METHODS[run.method].readings
        assert run.readings == () and fixed.items() <= chosen(run.method, dict(run.readings)).items()


def test_policies_are_evaluated_both_ways_where_osrl_draws():
    parts = plan(SMOKE, DATA)
    drawn = {run.policy: run for run in parts["drawn evaluations"]}
    assert set(drawn) == {run for run in parts["main"] if run.backbone == "bcq-lag"}
    for evaluation in parts["evaluations"]:
        if other := drawn.get(evaluation.policy):
            assert evaluation.deterministic and not other.deterministic and evaluation.seeds == other.seeds


def test_a_method_of_one_entry_is_planned(monkeypatch):
    toy = Method("toy", "Toy", "#123456", "fine_tune", part="main")
    monkeypatch.setitem(METHODS, "toy", toy)
    parts = plan(SMOKE, DATA)
    made = [run for run in parts["main"] if run.method == "toy"]
    assert [run.backbone for run in made] == list(BACKBONES) and all(run.start.method == "poisoned" for run in made)
    assert {run.policy for run in parts["evaluations"]} >= set(made)
    assert all("toy" in run.methods for run in parts["timing"])
    assert any(run.start in made for run in parts["forgetting"])


def test_a_reading_that_came_later_changes_no_name_of_a_run_under_its_default():
    """The folder's name is that of a forget set that was made before there was the reading `labels`."""
    data = Data("76ccae6e68b785c925ed9f5e52e1fee918245803911ef638de69f14454c31f3a", 135_000)
    usual, other = (
        forget_run(PROFILES["cpu"], data, "CarCircle", "max_cost", 0.15, 0, **changes)
        for changes in ({"labels": "constant"}, {"labels": "smoothed"})
    )
    assert key(usual) == "285d54170451" != key(other)
    assert set(other.readings) - set(usual.readings) == {("labels", "smoothed")}


def test_what_is_known_of_the_poison_where_not_all_is():
    parts = plan(get_profile("cpu", tasks="CarCircle", backbones=["cpq", "coptidice"], replicates=[0, 1, 2, 3]), DATA)
    runs = [run for run in parts["partitions"] if (run.backbone, run.replicate) == ("cpq", 0)]
    assert {run.method for run in runs} == set(PARTITIONED) and len(runs) == 3 * 6
    assert {run.replicate for run in parts["partitions"]} == {0, 1, 2}
    assert "critic-only" not in {run.method for run in parts["partitions"] if run.backbone == "coptidice"}
    (known,) = {run.start for run in runs}
    assert {run.poison for run in runs} == {known.forget} and known.method == "poisoned"
    shares = [(run.forget.share, run.forget.mistaken) for run in runs[:5]]
    assert shares == [(0.5, 0), (0.8, 0), (0.9, 0), (1, 0.05), (1, 0.1)]
    detected = runs[5].forget
    assert detected in parts["detections"] and set(read_by(runs[5])) == {detected, known}
    assert set(read_by(runs[0])) == {known.forget, known} and runs[0].attack == "max_cost"
    assert {run for run in parts["detections"] if not run.forget} == {replace(detected, forget=None)}
    labels = {(dict(run.forget.readings).get("labels"), run.ratio) for run in parts["detections"] if run.forget}
    others = {(option, 0.05) for option in ("resampled", "smoothed", "cost_only")}
    assert labels == {(None, 0.05), (None, 0.15), (None, FEW)} | others


def test_tasks_without_data_are_left_out():
    parts = plan(PROFILES["cpu"], {"PointPush": DATA["PointPush"]})
    assert {run.task for part in ("main", "adversaries", "timing") for run in parts[part]} == {"PointPush"}
    assert not any(plan(PROFILES["cpu"], {}).values())


def test_settings_of_a_profile_suit_every_backbone_and_carry_the_cost_limit():
    """COptiDICE has no VAE and leaves its width out."""
    for run in plan(get_profile("cpu", cost_limit=25, replicates=0), DATA)["main"]:
        cfg = config(run)
        task = TASKS[run.task]
        assert (cfg.observation_dim, cfg.action_dim) == (task.observation_dim, task.action_dim)
        assert cfg.episode_len == task.horizon and cfg.hidden == (128, 128) and cfg.cost_limit == 25
        assert hasattr(cfg, "vae_hidden") == get_backbone(run.backbone).CRITICS


def test_changes_have_the_fields_types():
    profile = get_profile("smoke", replicates=[0, 1], ratios=0.05, tasks="CarCircle", training_steps=7, cost_limit=5)
    assert (profile.replicates, profile.ratios, profile.tasks) == ((0, 1), (0.05,), ("CarCircle",))
    assert profile.training_steps == 7 and profile.cost_limit == 5.0 and isinstance(profile.cost_limit, float)
    assert get_profile("cpu", adversary_steps=9).adversary_steps_by_task == ()
    assert get_profile("cpu", tasks=None) == PROFILES["cpu"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training_steps": "many"}, "training_steps = 'many', expected int"),
        ({"training_steps": 0}, "training_steps = 0, expected a whole number from 1 to"),
        ({"training_steps": 1.5}, "training_steps = 1.5, expected int"),
        ({"videos": 1}, "videos = 1, expected bool"),
        ({"ratios": 5.0}, "ratios = 5.0, expected a number between 0 and 1"),
        ({"cost_limit": float("nan")}, "cost_limit = nan"),
        ({"cost_limit": -1.0}, "cost_limit = -1.0, expected a finite number of 0 or more"),
        ({"replicates": -1}, "replicates = -1, expected a whole number from 0 to"),
        ({"replicates": [1, 1]}, "different values"),
        ({"tasks": []}, "tasks = .*one or more"),
        ({"attacks": []}, "attacks = .*one or more"),
        ({"tasks": "Moon"}, "unknown name 'Moon' in tasks"),
        ({"data": "moon"}, "unknown name 'moon' in data: choose among local, dsrl"),
        ({"name": "x"}, "unknown setting 'name'"),
        ({"config": "x"}, "unknown setting 'config'"),
        ({"slices": []}, "unknown setting 'slices'"),
    ],
)
def test_impossible_changes_are_refused(changes, told):
    with pytest.raises(SettingsError, match=told):
        get_profile("smoke", **changes)


def test_runs_tell_their_kinds_apart():
    for run in plan(SMOKE, DATA)["main"]:
        assert isinstance(run, PolicyRun) and (run.forget is None or isinstance(run.forget, ForgetRun))


# What it takes


def test_the_policies_of_smoke_leave_room_in_100_megabytes(tmp_path):
    """Agents and snapshots in the files that are kept of each; adversaries, forget sets and rows take a few more."""
    kept: dict[tuple, int] = {}

    def size(run: PolicyRun, save: Callable) -> int:
        if (run.backbone, save) not in kept:
            population, cfg = create(get_backbone(run.backbone), config(run), [0]), config(run)
            path = tmp_path / f"{run.backbone}-{save.__name__}.safetensors"
            save(population, 0, path, run.task, run.backbone, cfg, *[{}][: save is save_whole])
            kept[run.backbone, save] = path.stat().st_size
        return kept[run.backbone, save]

    def save_whole(population, p, path, *about):
        save_tensors(starting_part(part_of(tensors_of(population), [p])), path, *about)

    runs = [run for run in lineage([run for _, run in asked(SMOKE, DATA)]) if isinstance(run, PolicyRun)]
    checked = {run for run in runs if run.method == CHECKED and not run.readings}
    agents = sum(size(run, save_whole if usual(run) == Level.WHOLE else save_acting) for run in runs)
    on_the_way = sum(run.snapshots * size(run, save_networks if run in checked else save_acting) for run in runs)
    assert 10e6 < agents + on_the_way < 90e6
