"""Claims judged by rows made by hand, where the verdict is known; the committed page is what the code writes."""

import math

import pandas as pd
import pytest
from episodes_by_hand import rows

from saferule.paper import audit
from saferule.report import claims
from saferule.report.claims import CLAIMS, NOT_SUPPORTED, SUPPORTED, UNKNOWN, Evidence
from saferule.report.study import Study
from saferule.report.tables import replicate_means, with_clean
from saferule.runs.places import project_root
from saferule.unlearn import METHODS

NOTHING = pd.DataFrame()


def evidence(costs: dict[str, list[float]], returns=50.0, ratios=(0.05, 0.15)) -> Evidence:
    """Replicates with these costs for each method, in two cells; a return that is the same for all."""
    parts = [
        rows(m, r, [cost], [returns], **({} if m == "clean" else {"ratio": ratio}))
        for m, own in costs.items()
        for ratio in ratios[: 1 if m == "clean" else None]
        for r, cost in enumerate(own)
    ]
    means = audit.scored(replicate_means(with_clean(pd.concat(parts, ignore_index=True))))
    return Evidence(means, pd.DataFrame(columns=["task", "backbone", "method"]), NOTHING)


def verdict(name, found):
    return CLAIMS[name].verdict(CLAIMS[name].test(found))


LOW, HIGH, SAME = [1.0, 2.0, 3.0], [20.0, 30.0, 40.0], [20.0, 1.0, 40.0]


@pytest.mark.parametrize(
    ("name", "costs", "expected"),
    [
        ("max-cost-harms", {"clean": LOW, "poisoned": HIGH}, SUPPORTED),
        ("max-cost-harms", {"clean": HIGH, "poisoned": LOW}, NOT_SUPPORTED),
        ("max-cost-harms", {"clean": SAME, "poisoned": SAME}, UNKNOWN),
        ("max-cost-harms", {"clean": LOW[:2], "poisoned": HIGH[:2]}, UNKNOWN),  # two replicates
        ("max-reward-harms", {"clean": LOW, "poisoned": HIGH}, UNKNOWN),  # the rows are of Max Cost
        ("critic-unlearning", {"safe-rule": LOW, "no-critic": HIGH}, SUPPORTED),
        ("repairs", {"safe-rule": LOW, "poisoned": HIGH}, SUPPORTED),  # the return is the same: one of the two suffices
        ("repairs", {"safe-rule": HIGH, "poisoned": LOW}, UNKNOWN),  # and one that fails does not
        ("adaptive-weight", {"safe-rule": LOW, "fixed-weight": HIGH}, UNKNOWN),  # both are needed
        ("adaptive-weight", {"safe-rule": HIGH, "fixed-weight": LOW}, NOT_SUPPORTED),
        ("percentile", {"percentile-50": LOW, "percentile-0": HIGH, "percentile-100": HIGH}, SUPPORTED),
        ("percentile", {"percentile-50": LOW, "percentile-0": HIGH}, UNKNOWN),
        ("slight-drop", {"safe-rule": [c + 9 for c in LOW], "clean": LOW}, SUPPORTED),  # 9 is less than the limit of 10
        ("slight-drop", {"safe-rule": HIGH, "clean": LOW}, NOT_SUPPORTED),
    ],
)
def test_verdicts(name, costs, expected):
    assert verdict(name, evidence(costs)) == expected


def test_safe_rule_has_to_beat_all_of_them():
    others = dict.fromkeys(claims.BASELINES, HIGH)
    assert "fine-tuning" in others and "safe-rule-described" not in others
    assert verdict("best-of-baselines", evidence({"safe-rule": LOW} | others)) == SUPPORTED
    assert verdict(
        "best-of-baselines", evidence({"safe-rule": [25.0, 26.0, 27.0]} | others | {"trajdeleter": LOW})
    ) == (NOT_SUPPORTED)
    controls = dict.fromkeys(claims.controls("safe-rule"), HIGH)
    assert set(controls) == {"keep-only", "critic-only", "random-forget", "short-retraining", "continued"}
    assert verdict("beyond-controls", evidence({"safe-rule": LOW} | controls)) == SUPPORTED
    assert "described-random-forget" in claims.controls("safe-rule-described")


def test_a_failed_policy_is_the_worst_safety_first_and_no_replicate_of_a_cost():
    found = evidence({"safe-rule": LOW, "fine-tuning": [math.nan, math.nan, 2.0]})
    (first,) = claims.better("safe-rule", ["fine-tuning"], ("safe_first",), "", found)
    (cost,) = claims.better("safe-rule", ["fine-tuning"], ("cost",), "", found)
    assert first.value == pytest.approx((6 + 1.5) / 9) and first.replicates == 3  # the third ties all at a return of 50
    assert cost.holds is None and cost.lacks.startswith(
        "needs 3 replicates of a cell; there are at most 3 of Safe-RULE"
    )


@pytest.mark.parametrize(
    ("name", "paper"),
    [  # as counted in the notes on the paper's tables
        ("repairs", ["80 better, 5 equal, 11 worse of 96", "60 better, 1 equal, 35 worse of 96"]),
        ("adaptive-weight", ["5 better, 2 equal, 9 worse of 16", "14 better, 1 equal, 1 worse of 16"]),
        ("cost-aware-better", ["49 better, 20 equal, 27 worse of 96", "50 better, 6 equal, 40 worse of 96"]),
        ("cost-aware-worse", ["52 better, 4 equal, 40 worse of 96"]),
        ("critic-unlearning", ["7 better, 1 equal, 8 worse of 16"]),
        ("percentile", ["10 of 16 pairs won by 50 %, 9 of them alone"] * 2),
        ("max-cost-harms", ["prints none"]),
    ],
)
def test_what_the_papers_own_numbers_say(name, paper):
    assert [line.paper for line in CLAIMS[name].test(evidence({"poisoned": LOW}))] == paper


def test_time_is_compared_at_the_papers_numbers_of_steps():
    """A step of 1.6 training steps: 200 / 1.6 = 125 times as long; one of 10: 20 times, less than 24."""
    lines = {}
    for step in (1.6, 10.0):
        row = {"task": "CarCircle", "backbone": "cpq", "method": "safe-rule", "blocks": 5, "relative_step": step}
        row |= {"relative_step_low": step - 0.1, "relative_step_high": step + 0.1}
        found = claims.faster(Evidence(NOTHING, pd.DataFrame([row]), NOTHING))
        lines[step] = next(line for line in found if "CarCircle" in line.what)
        assert len(found) == 4 and sum(line.holds is None for line in found) == 3  # three tasks are not measured
    assert (lines[1.6].value, lines[1.6].holds, lines[1.6].paper) == (125.0, True, "30.0")
    assert lines[10.0].holds is False and "5 blocks" in lines[10.0].ours


def test_lemmas_are_judged_over_replicates():
    row = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15, "stage": "after"}
    told = [row | {"replicate": r, "inequality": e, "holds": True, "vacuous": e == "(19)"}
            for r in range(3) for e in ("(15)", "(19)")]  # fmt: skip
    found = Evidence(NOTHING, NOTHING, pd.DataFrame(told))
    assert verdict("lemmas-hold", found) == SUPPORTED
    assert [line.holds for line in CLAIMS["lemmas-say-something"].test(found)] == [True, False]
    assert verdict("lemmas-say-something", found) == NOT_SUPPORTED
    assert verdict("lemmas-hold", Evidence(NOTHING, NOTHING, pd.DataFrame(told[:4]))) == UNKNOWN
    assert "bound 1.39, above 1" in CLAIMS["lemmas-hold"].test(found)[1].paper


def test_every_claim_has_methods_that_exist_and_a_page():
    assert all(set(claim.methods) <= set(METHODS) for claim in CLAIMS.values())
    judged = claims.judge(evidence({"clean": LOW, "poisoned": HIGH}))
    page = claims.markdown(judged, "Made by hand.", dict.fromkeys(CLAIMS, "No time."))
    assert "| **supported** |" in page and page.count("**cannot tell** |") == len(CLAIMS) - 1
    assert "| 1.00 (1.00 to 1.00), to be above 0.5; 2 cells, 3 replicates | prints none |" in page


def test_the_committed_page_is_what_the_code_writes_from_committed_episodes():
    page = (project_root() / "CLAIMS.md").read_text(encoding="utf-8")
    assert page == claims.document(Study("cpu", only_stored=True)), "write it anew: saferule claims > CLAIMS.md"
