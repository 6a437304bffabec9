"""Claims judged by rows made by hand, where the verdict is known; the committed page is what the code writes."""

import math

import pandas as pd
import pytest
from episodes_by_hand import rows

from saferule.report import claims
from saferule.report.claims import CLAIMS, REFUTED, SUPPORTED, UNKNOWN, Evidence, Line
from saferule.report.study import Study
from saferule.report.tables import ranked, replicate_means, with_clean
from saferule.runs.places import project_root
from saferule.unlearn import METHODS

NOTHING = pd.DataFrame()


def evidence(costs: dict[str, list[float]], returns: dict[str, float] | None = None, ratios=(0.05, 0.15)) -> Evidence:
    """Replicates with these costs for each method, in two cells; a return of 50 where none is given."""
    parts = [
        rows(m, r, [cost], [(returns or {}).get(m, 50.0)], **({} if m == "clean" else {"ratio": ratio}))
        for m, own in costs.items()
        for ratio in ratios[: 1 if m == "clean" else None]
        for r, cost in enumerate(own)
    ]
    return Evidence(ranked(replicate_means(with_clean(pd.concat(parts, ignore_index=True)))))


def verdict(name, found):
    return CLAIMS[name].verdict(CLAIMS[name].test(found))


LOW, HIGH, SAME = [1.0, 2.0, 3.0], [21.0, 22.5, 23.0], [20.0, 1.0, 40.0]
UNSURE = [1.0, 2.0, 43.0]  # lower than HIGH in two replicates of three


@pytest.mark.parametrize(
    ("name", "costs", "expected"),
    [
        ("max-cost-harms", {"clean": LOW, "poisoned": HIGH}, SUPPORTED),
        ("max-cost-harms", {"clean": HIGH, "poisoned": LOW}, REFUTED),
        ("max-cost-harms", {"clean": SAME, "poisoned": SAME}, UNKNOWN),
        ("max-cost-harms", {"clean": UNSURE, "poisoned": HIGH}, UNKNOWN),
        ("max-cost-harms", {"clean": LOW[:2], "poisoned": HIGH[:2]}, UNKNOWN),  # two replicates
        ("max-reward-harms", {"clean": LOW, "poisoned": HIGH}, UNKNOWN),  # the rows are of Max Cost
        ("critic-unlearning", {"safe-rule": LOW, "no-critic": HIGH}, SUPPORTED),
        ("repairs", {"safe-rule": LOW, "poisoned": HIGH}, SUPPORTED),  # the return is the same: one of the two suffices
        ("repairs", {"safe-rule": HIGH, "poisoned": LOW}, UNKNOWN),  # and one that fails does not
        ("adaptive-weight-both", {"safe-rule": LOW, "fixed-weight": HIGH}, UNKNOWN),  # both are needed
        ("adaptive-weight-both", {"safe-rule": HIGH, "fixed-weight": LOW}, REFUTED),
        ("percentile", {"percentile-50": LOW, "percentile-0": HIGH, "percentile-100": HIGH}, SUPPORTED),
        ("percentile", {"percentile-50": LOW, "percentile-0": HIGH}, UNKNOWN),
    ],
)
def test_verdicts(name, costs, expected):
    assert verdict(name, evidence(costs)) == expected


@pytest.mark.parametrize(
    ("repaired", "returns", "expected"),
    [
        ([c + 5 for c in LOW], 45.0, SUPPORTED),  # half a limit, half of the margin of the return
        ([11.0, 11.0, 11.0], 45.0, REFUTED),  # a cost less than one limit higher, but safe policies became unsafe
        (LOW, 30.0, REFUTED),
        ([21.0, 22.0, 23.0], 50.0, REFUTED),  # as the poisoned ones
    ],
)
def test_a_slight_drop_is_judged_where_there_was_harm(repaired, returns, expected):
    found = evidence({"clean": LOW, "safe-rule": repaired, "poisoned": HIGH}, {"safe-rule": returns})
    assert verdict("slight-drop", found) == expected
    harmless = evidence({"clean": LOW, "safe-rule": LOW, "poisoned": LOW})
    assert verdict("slight-drop", harmless) == UNKNOWN
    assert "no cell of Max Cost in which" in CLAIMS["slight-drop"].test(harmless)[0].ours


@pytest.mark.parametrize(("cost", "expected"), [(6.0, SUPPORTED), (30.0, REFUTED)])
def test_the_adaptive_weight_retains_the_return_at_a_competitive_cost(cost, expected):
    found = evidence({"safe-rule": [cost, cost + 1, cost + 2], "fixed-weight": LOW}, {"safe-rule": 60.0})
    assert verdict("adaptive-weight", found) == expected


def test_safe_rule_has_to_beat_all_of_them():
    others = dict.fromkeys(claims.BASELINES, HIGH)
    assert set(claims.OF_THE_PAPER) < set(claims.BASELINES) and "safe-rule-described" not in others
    assert verdict("best-of-all", evidence({"safe-rule": LOW} | others)) == SUPPORTED
    theirs = evidence({"safe-rule": LOW} | dict.fromkeys(claims.OF_THE_PAPER, HIGH))
    assert verdict("best-of-baselines", theirs) == SUPPORTED and verdict("best-of-all", theirs) == UNKNOWN
    lost = evidence({"safe-rule": [25.0, 26.0, 27.0]} | others | {"trajdeleter": LOW})
    assert verdict("best-of-baselines", lost) == REFUTED
    controls = dict.fromkeys(claims.controls("safe-rule"), HIGH)
    assert set(controls) == {"keep-only", "critic-only", "random-forget", "short-retraining", "continued"}
    assert verdict("beyond-controls", evidence({"safe-rule": LOW} | controls)) == SUPPORTED
    assert "described-random-forget" in claims.controls("safe-rule-described")


def test_a_claim_that_one_of_several_lines_decides_is_corrected():
    """At 5 % the interval of 1, 1.5, 2 is above 0.2; at 5 % over five it is not."""
    sure, none = Line("", 0.2, values=(1.0, 1.5, 2.0)), Line("", 0.2, values=(-1.0, 0.0, 1.0))
    either, both = CLAIMS["repairs"], CLAIMS["adaptive-weight-both"]
    assert sure.holds() and none.holds() is None and sure.holds(0.01) is None
    assert either.verdict([sure, *[none] * 4]) == UNKNOWN and both.verdict([sure] * 5) == SUPPORTED
    lost = Line("", 0.2, values=(-1.0, -1.1, -1.2))
    assert both.verdict([lost, none]) == REFUTED and both.verdict([lost, *[none] * 30]) == UNKNOWN


def test_mean_and_count_of_pairs_have_to_agree():
    """Most of the pairs are worse by a little, the others better by much."""
    assert Line("", values=(1.0, 1.1, 1.2), better=0.6).holds()
    assert Line("", values=(1.0, 1.1, 1.2), better=0.4).holds() is None
    assert Line("", values=(-1.0, -1.1, -1.2), better=0.6).holds() is None
    assert Line("", 2.0, True, (1.0, 1.1, 1.2)).holds() and Line("", 1.0, True, (3.0, 3.1, 3.2)).holds() is False


def test_a_failed_policy_is_the_worst_and_is_named():
    found = evidence({"safe-rule": LOW, "fine-tuning": [math.nan, math.nan, 2.0]})
    first, cost = claims.better("safe-rule", ["fine-tuning"], ("safe_first", "lower_cost"), "", found)
    assert first.values == (1.5, 1.5, 0.0) and first.better == pytest.approx(5 / 6)  # the third ties at a return of 50
    assert cost.values == pytest.approx((0.2, 0.1, -0.1))  # the worst of their cells costs 3
    assert "4 better, 0 equal, 2 worse of 6 pairs; 4 policies failed" in cost.ours


@pytest.mark.parametrize(
    ("name", "paper"),
    [  # as counted in the notes on the paper's tables
        ("repairs", ["80 better, 5 equal, 11 worse of 96", "60 better, 1 equal, 35 worse of 96"]),
        ("adaptive-weight", ["14 better, 1 equal, 1 worse of 16", "5 better, 2 equal, 9 worse of 16"]),
        ("adaptive-weight-both", ["5 better, 2 equal, 9 worse of 16", "14 better, 1 equal, 1 worse of 16"]),
        ("best-of-baselines", ["prints none", "21 better, 2 equal, 9 worse of 32", "prints none"]),
        ("cost-aware-better-both", ["49 better, 20 equal, 27 worse of 96", "50 better, 6 equal, 40 worse of 96"]),
        ("cost-aware-worse", ["52 better, 4 equal, 40 worse of 96"]),
        ("critic-unlearning", ["7 better, 1 equal, 8 worse of 16"]),
        ("percentile", ["10 of 16 pairs won by 50 %, 9 of them alone"] * 2),
        ("min-reward-harms", ["prints none"]),
    ],
)
def test_what_the_papers_own_numbers_say(name, paper):
    assert [line.paper for line in CLAIMS[name].test(evidence({"poisoned": LOW}))] == paper


def test_a_step_is_compared_with_training_steps():
    lines = {}
    for step in (1.6, 10.0):
        row = {"task": "CarCircle", "backbone": "cpq", "method": "safe-rule", "blocks": 5, "relative_step": step}
        row |= {"relative_step_low": step - 0.1, "relative_step_high": step + 0.1}
        found = claims.step_cost(Evidence(NOTHING, pd.DataFrame([row])))
        lines[step] = next(line for line in found if "CarCircle" in line.what)
        assert len(found) == 4 and sum(line.holds() is None for line in found) == 3  # three tasks are not measured
    assert lines[1.6].holds() and lines[1.6].paper.startswith("6.7, by its minutes")
    assert lines[10.0].holds() is False
    assert lines[1.6].ours == "1.60 (1.50 to 1.70), to be below 2; range over 5 timing blocks on one machine"


def test_one_counterexample_to_a_lemma_is_enough():
    row = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15, "stage": "after"}
    told = [row | {"replicate": r, "inequality": e, "holds": True, "vacuous": e == "(19)"}
            for r in range(3) for e in ["(15)"] * 20 + ["(19)"]]  # fmt: skip
    found = Evidence(NOTHING, inequalities=pd.DataFrame(told))
    assert verdict("lemmas-hold", found) == SUPPORTED
    assert [line.holds() for line in CLAIMS["lemmas-say-something"].test(found)] == [True, False]
    assert verdict("lemmas-say-something", found) == REFUTED
    assert verdict("lemmas-hold", Evidence(NOTHING, inequalities=pd.DataFrame(told[:42]))) == UNKNOWN
    assert "bound 1.39, above 1" in CLAIMS["lemmas-say-something"].test(found)[1].paper
    told[7]["holds"] = False  # of replicate 0
    for some in (told, told[:21]):
        assert verdict("lemmas-hold", Evidence(NOTHING, inequalities=pd.DataFrame(some))) == REFUTED
    assert CLAIMS["lemmas-hold"].test(Evidence(NOTHING, inequalities=pd.DataFrame(told)))[0].ours.startswith("1 of 60 ")


@pytest.mark.parametrize(
    ("recall", "alarms", "expected"), [(0.9, 0.01, SUPPORTED), (0.9, 0.12, REFUTED), (0.2, 0.01, REFUTED)]
)
def test_detection_is_judged_by_recall_and_false_alarms(recall, alarms, expected):
    row = {"task": "CarCircle", "attack": "max_cost", "labels": "constant"}
    told = [row | {"ratio": ratio, "replicate": r, "recall": recall + r / 100, "false_alarms": alarms + r / 1000}
            for r in range(3) for ratio in (0.05, 0.15)]  # fmt: skip
    assert claims.LABELS.default == "constant"
    found = Evidence(NOTHING, detections=pd.DataFrame(told))
    assert verdict("detects", found) == expected and verdict("detects-other-labels", found) == UNKNOWN
    assert "2 forget sets each" in CLAIMS["detects"].test(found)[0].ours


def test_every_claim_has_methods_that_exist_and_a_page():
    assert all(set(claim.methods) <= set(METHODS) for claim in CLAIMS.values())
    judged = claims.judge(evidence({"clean": LOW, "poisoned": HIGH}))
    page = claims.markdown(judged, "Made by hand.", dict.fromkeys(CLAIMS, "No time."))
    assert "| **supported** |" in page and page.count("**cannot tell** |") == len(CLAIMS) - 1
    cost = "2.02 (1.94 to 2.09), to be above 0; Student's t over 3 replicates, 2 cells; 6 better, 0 equal, 0 worse of 6"
    assert f"against “poisoned”, Max Cost: lower cost, in cost limits | {cost} pairs | prints none |" in page
    assert "Ours: needs 3 replicates of a cell; there are at most 0 of “Safe-RULE”, 3 of “poisoned”." in page


def test_inequalities_of_repairs_that_are_not_stored_are_no_evidence(tmp_path, data_folder):
    study = Study("smoke", output=tmp_path, data=data_folder, only_stored=True)
    told = {"inequality": "(15)", "stage": "after", "replicate": 0, "holds": False, "run": "0123456789ab"}
    for saved in (told, {name: told[name] for name in told if name != "run"}):  # as written before rows had keys
        study.save(pd.DataFrame([saved]), "theory-inequalities")
        assert verdict("lemmas-hold", claims.evidence(study)) == UNKNOWN


def test_the_command_of_a_claim_is_limited_to_its_attack(tmp_path, data_folder):
    study = Study("cpu", tasks=["CarCircle"], output=tmp_path, data=data_folder, only_stored=True)
    told = {name: claims.spent(study, CLAIMS[name], lambda run: False) for name in CLAIMS}
    assert told["max-cost-harms"].startswith("`saferule run --profile cpu --attacks max_cost --notebooks tables`")
    assert "0 of 36 policies are stored." in told["max-cost-harms"]  # four backbones, three replicates, two ratios
    for name in ("repairs", "critic-unlearning"):  # of all attacks; of the slices' own conditions
        assert "--attacks" not in told[name]
    assert "--notebooks detect" in told["detects"] and "0 of 1 measurements" in told["step-cost"]


def test_the_committed_page_is_what_the_code_writes_from_committed_episodes():
    page = (project_root() / "CLAIMS.md").read_text(encoding="utf-8")
    assert page == claims.document(Study("cpu", only_stored=True)), "write it anew: saferule claims > CLAIMS.md"
