"""Table 3 from measured rows; no times are asserted."""

import math

import pandas as pd
import pytest

from saferule.report import timing
from saferule.report.figures import FIGURES


@pytest.fixture
def measured():
    """10^6 steps of 10 ms are 10,000 s; 5,000 of 16 ms are 80 s: 125 = 200 / 1.6 times less."""

    def row(backbone, method, steps, ms, relative):
        known = {"task": "CarCircle", "backbone": backbone, "method": method, "steps": steps, "machine": "abacus"}
        known |= {"ms_per_step": ms, "relative_step": relative, "relative_step_low": relative, "start_s": 0.5}
        known |= {"relative_step_high": relative + 0.1, "seconds": steps * ms / 1000}
        return known | {"share": steps * relative / 1e6, "factor": 1e6 / steps / relative}

    return pd.DataFrame(
        row(backbone, *values)
        for backbone in ("coptidice", "cpq")
        for values in (("safe-rule", 5000, 16.0, 1.6), ("clean", 1_000_000, 10.0, 1.0))
    )


def test_the_papers_times_stand_beside_cpq_only(measured):
    table = timing.table3(measured).set_index(["backbone", "method"])
    assert table["paper_minutes"].dropna().to_dict() == {("cpq", "clean"): 276.1, ("cpq", "safe-rule"): 9.2}
    assert table.loc[("cpq", "safe-rule"), "paper_factor"] == pytest.approx(30.011, abs=1e-3)
    expected = {"clean": 132.0, "safe-rule": 5.5, "trajdeleter": 3.1, "reward-only": 3.1, "fine-tuning": 3.6}
    assert timing.paper_minutes("PointGoal") == expected


def test_times_are_shown_in_the_unit_that_suits_them(measured):
    shown = timing.shown(timing.table3(measured)).set_index(["backbone", "method"])
    row = shown.loc[("cpq", "safe-rule")]
    assert row[["ms_per_step", "relative_step", "total", "factor"]].tolist() == [
        "16",
        "1.60 (1.60 to 1.70)",
        "80 s",
        "125",
    ]
    assert (row["start"], row["paper_total"]) == ("500 ms", "9.2 min") and shown.loc[
        ("cpq", "clean"), "total"
    ] == "2.78 h"


def test_durations():
    expected = {0.0123: "12.3 ms", 1.0: "1 s", 119.0: "119 s", 120.0: "2 min", 7199.0: "120 min", 7200.0: "2 h"}
    expected |= {1e6: "278 h", math.nan: ""}
    assert {seconds: timing.duration(seconds) for seconds in expected} == expected


def test_figure_places_every_method_at_its_share(measured):
    (_, figure), *_ = FIGURES["table3"].figures(timing.table3(measured))
    assert [panel.get_title("left") for panel in figure.axes] == ["CPQ", "COptiDICE"]
    cpq, coptidice = figure.axes
    at = [dots.get_offsets()[0, 0] for dots in cpq.collections]  # filled, then the paper's hollow
    assert at == pytest.approx([1.0, 0.008, 1.0, 9.2 / 276.1])
    assert cpq.get_xscale() == "log" and cpq.lines[0].get_xdata()[0] == pytest.approx(0.005)
