"""Appendix A from the rows of `saferule.runs.theory_checks`: figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saferule.report.canvas import head, panels, styled, with_zero
from saferule.report.labels import BACKBONES

OBSERVED = {"color": "#000000", "label": "observed"}
PRINTED = {"color": "#D55E00", "label": "bound as printed"}
SHARPER = {"color": "#0072B2", "label": "sharper bound (ours)"}
ONE = {"color": "#555555", "linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1}
VACUOUS = Line2D([], [], **ONE, label="1: at or above it a bound says nothing")
POLICY = ["attack", "ratio", "training_seed"]


def _softplus(x: np.ndarray | float) -> np.ndarray:
    return np.logaddexp(0, x)


def _handles(*looks: dict) -> list[Line2D]:
    return [Line2D([], [], **look) for look in looks]


# Figures


@styled
def bounds_for_a_constant_critic(sigma: float) -> Figure:
    """Lemma A.2 for a critic with the same Q_c on all of D_f: against its value, and, on target, against sigma."""
    figure, axes = panels(1, 2, 4.6, 2.9)
    left, right = axes[0]
    above = np.linspace(-0.75, 2.5, 400)  # Q_c - kappa
    residual = _softplus(sigma - above)
    left.step(above, above <= 0, where="post", color=OBSERVED["color"])
    left.plot(above, residual / sigma, color=PRINTED["color"])
    left.plot(above, residual / _softplus(sigma), color=SHARPER["color"])
    left.axvline(sigma, color="#999999", linewidth=1)
    left.annotate("on target", (sigma, 0.02), (3, 2), textcoords="offset points", color="#555555", fontsize=8)
    left.set(
        xlabel="$Q_c - \\kappa$", ylabel="share still called safe", title=f"$\\sigma$ = {sigma:g}", ylim=(-0.05, 3)
    )
    margins = np.linspace(0.05, 3, 400)
    right.plot(margins, np.log(2) / margins, color=PRINTED["color"])
    right.plot(margins, np.log(2) / _softplus(margins), color=SHARPER["color"])
    right.plot(margins, 0 * margins, color=OBSERVED["color"])
    right.axvline(np.log(2), color="#999999", linewidth=1)
    right.annotate("ln 2", (np.log(2), 2.7), (3, 2), textcoords="offset points", color="#555555", fontsize=8)
    right.set(xlabel="margin $\\sigma$", title="critic on target, $Q_c = \\kappa + \\sigma$", ylim=(-0.05, 3))
    for panel in axes[0]:
        panel.axhline(1, **ONE)
    title = "Lemma A.2 for a critic that is the same on all of the forget set"
    return head(figure, title, [*_handles(OBSERVED, PRINTED, SHARPER), VACUOUS])


@styled
def bounds_during_unlearning(rows: pd.DataFrame, title: str) -> Figure:
    """Both sides of Eq. 14 and 19 against the step: a row per backbone, a line per poisoned policy."""
    backbones = list(rows["backbone"].unique())
    figure, axes = panels(len(backbones), 2, 4.6, 2.4, sharex=True)
    columns = {"(14)": "mean excess of $Q_r$", "(19)": "share still called safe"}
    for line, backbone in enumerate(backbones):
        for panel, (number, label) in zip(axes[line], columns.items(), strict=True):
            here = rows[(rows["backbone"] == backbone) & (rows["inequality"] == number)]
            for _, policy in here.groupby(POLICY, sort=False):
                _three(panel, policy, "step")
            panel.set(ylabel=label, title=f"{BACKBONES[backbone]}, Eq. {number[1:-1]}")
            if number == "(19)":
                panel.set_yscale("symlog", linthresh=2)
                panel.set_yticks([0, 0.5, 1, 10, 100], ["0", "0.5", "1", "10", "100"])
                panel.set_ylim(-0.05, 1.4 * max(here["bound"].max(), 1.0))
                panel.axhline(1, **ONE)
            else:
                with_zero(panel, "y")
            panel.tick_params(labelbottom=line == len(backbones) - 1)
            panel.set_xlabel("gradient step" if line == len(backbones) - 1 else "")
    return head(figure, title, [*_handles(OBSERVED, PRINTED, SHARPER), VACUOUS])


@styled
def tails(rows: pd.DataFrame, title: str) -> Figure:
    """Both sides of Eq. 15 against u, before and after unlearning: a row per backbone, a line per poisoned policy."""
    rows = rows[rows["inequality"] == "(15)"]
    backbones = list(rows["backbone"].unique())
    figure, axes = panels(len(backbones), 2, 4.6, 2.4, sharex=True, sharey=True)
    for line, backbone in enumerate(backbones):
        for panel, stage in zip(axes[line], ("before", "after"), strict=True):
            here = rows[(rows["backbone"] == backbone) & (rows["stage"] == stage)]
            for _, policy in here.groupby(POLICY, sort=False):
                _three(panel, policy, "u")
            panel.axhline(1, **ONE)
            panel.set(xscale="log", ylim=(-0.05, 1.5), title=f"{BACKBONES[backbone]}, {stage} unlearning")
            panel.set(xlabel="$u$, in units of $Q_r$", ylabel="share with $Q_r \\geq$ reference $+ u$")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.label_outer()
    return head(figure, title, [*_handles(OBSERVED, PRINTED, SHARPER), VACUOUS])


def _three(panel: Axes, rows: pd.DataFrame, x: str) -> None:
    for column, look in (("bound", PRINTED), ("sharper", SHARPER), ("observed", OBSERVED)):
        panel.plot(rows[x], rows[column], color=look["color"], linewidth=1.2, marker="o", markersize=2.5)


@styled
def neighbourhood(balls: pd.DataFrame, searches: pd.DataFrame, title: str) -> Figure:
    """Eq. 23-25, a row per backbone: samples with a ball, radii, Lipschitz constants, and what the search finds.

    box in the last column: every action of the action box.
    """
    backbones = list(balls["backbone"].unique())
    figure, axes = panels(len(backbones), 4, 2.9, 2.4)
    for line, backbone in enumerate(backbones):
        share, radius, slope, found = axes[line]
        here, tried = balls[balls["backbone"] == backbone], searches[searches["backbone"] == backbone]
        for _, policy in here.groupby(POLICY, sort=False):
            look = {"marker": "o", "markersize": 3, "linewidth": 1.2}
            share.plot(policy["step"], policy["nonempty"], color=OBSERVED["color"], **look)
            radius.plot(policy["step"], policy["radius"] / policy["diameter"], color=SHARPER["color"], **look)
            radius.plot(policy["step"], policy["printed"] / policy["diameter"], color=PRINTED["color"], **look)
            slope.plot(policy["step"], policy["slope_bound"], color=PRINTED["color"], **look)
            slope.plot(policy["step"], policy["slope_found"], color=OBSERVED["color"], **look)
        factors = sorted(searches["factor"].unique())
        for _, policy in tried[tried["stage"] == "after"].groupby(POLICY, sort=False):
            places = [factors.index(factor) for factor in policy["factor"]]
            found.plot(places, policy["violated"] / policy["searched"], color=OBSERVED["color"], **look)
        if tried[tried["stage"] == "after"].empty:
            found.text(0.5, 0.5, "no ball to search", ha="center", transform=found.transAxes, color="#555555")
        found.set_xticks(range(len(factors)), ["box" if np.isinf(f) else f"{f:g}x" for f in factors])
        share.set(title=f"{BACKBONES[backbone]}: samples with a ball", ylabel="share", ylim=(-0.05, 1.05))
        radius.set(title="median radius", ylabel="share of the box's diameter")
        slope.set(title="Lipschitz constant of $Q_c$", ylabel="$Q_c$ per unit of action")
        found.set(title="balls with a safe action, after", ylabel="share", ylim=(-0.05, 1.05))
        found.set_xlabel("ball, from 2x on cut at the box")
        for panel in (share, radius, slope):
            panel.set(xlabel="gradient step", xlim=(-0.02 * here["step"].max(), 1.05 * here["step"].max()))
        for panel in (radius, slope):
            with_zero(panel, "y")
    looks = (
        {"color": OBSERVED["color"], "label": "observed, found"},
        {"color": PRINTED["color"], "label": "as printed; product of spectral norms"},
        {"color": SHARPER["color"], "label": "a bound per member (ours)"},
    )
    return head(figure, title, _handles(*looks))
