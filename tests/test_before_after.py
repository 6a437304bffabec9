"""The table and the picture of a repair: numbers by hand, an interval over paired episodes."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from saferule.report import before_after


def episodes(*sides: tuple[str, list[float], list[float]]) -> pd.DataFrame:
    """Rows of policies with these returns and costs, under a limit of 10."""
    told = {"task": "CarCircle", "backbone": "cpq", "cost_limit": 10.0}
    return pd.DataFrame(
        [
            {"policy": policy, "seed": seed, "return": r, "cost": c} | told
            for policy, returns, costs in sides
            for seed, (r, c) in enumerate(zip(returns, costs, strict=True))
        ]
    )


THREE = episodes(("before", [100, 110, 120], [20, 10, 30]), ("after", [91, 110, 108], [8, 10, 12]))


def test_table_by_hand():
    table = before_after.table(THREE.sample(frac=1, random_state=0)).set_index("quantity")  # in any order
    assert table["episodes"].tolist() == [3] * 3 and table["cost_limit"].tolist() == [10.0] * 3
    returned, cost, within = table.loc["return"], table.loc["cost"], table.loc["share of episodes within the limit"]
    assert (returned["before"], returned["after"], returned["difference"]) == (110, 103, -7)
    assert (cost["before"], cost["after"], cost["difference"]) == (20, 10, -10)
    assert (within["before"], within["after"], within["difference"]) == pytest.approx((1 / 3, 2 / 3, 1 / 3))
    half = stats.t.ppf(0.975, 2) * np.std([-9, 0, -12], ddof=1) / math.sqrt(3)  # of differences within a seed
    assert (returned["low"], returned["high"]) == pytest.approx((-7 - half, -7 + half))


def test_one_episode_has_no_interval():
    table = before_after.table(episodes(("before", [1], [2]), ("after", [3], [2])))
    assert table["difference"].tolist() == [2, 0, 0] and table[["low", "high"]].isna().all().all()


def test_files_and_picture(tmp_path):
    before_after.write(THREE, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [before_after.TABLE, before_after.PICTURE]
    with Image.open(io.BytesIO((tmp_path / before_after.PICTURE).read_bytes())) as image:
        assert image.width > 600 and len(image.getcolors()) > 5
    assert "within the limit" in before_after.text(tmp_path) and "-7.00" in before_after.text(tmp_path)
    figure = before_after.draw(THREE)
    costs, returns = figure.axes
    assert len(returns.lines) == 3 and len(costs.lines) == 4  # and the limit
    assert costs.lines[-1].get_ydata()[0] == 10.0 and costs.get_ylim()[0] <= 0
