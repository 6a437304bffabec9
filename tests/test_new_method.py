"""A method of one entry: trained and evaluated in the real simulator, in Table 1 and in the figures."""

import pytest

from saferule.report import figures
from saferule.report.study import Study
from saferule.report.tables import TABLES
from saferule.unlearn import METHODS, Method

CHANGES = {
    "adversary_steps": 2048,
    "training_steps": 4,
    "unlearning_steps": 4,
    "episodes": 2,
    "curve_episodes": 1,
    "snapshots": 1,
}


@pytest.mark.slow
def test_a_method_of_one_entry_is_trained_evaluated_shown(tmp_path, data_folder, monkeypatch):
    toy = Method("toy", "Toy", "#123456", "fine_tune", part="main")
    monkeypatch.setitem(METHODS, "toy", toy)
    study = Study("smoke", backbones=["cpq"], output=tmp_path, data=data_folder, changes=CHANGES)
    policies = study.part("main")
    (made,) = (run for run in policies if run.method == "toy")
    assert study.store.done(made) and made.start.method == "poisoned"
    episodes = study.episodes(policies)
    assert (episodes["method"] == "toy").sum() == 2
    built = TABLES["methods"].build(episodes)
    (cost, _) = built.loc[built["method"] == "toy", "mean"]
    assert cost == episodes.loc[episodes["method"] == "toy", "cost"].mean()
    assert "Toy" in TABLES["methods"].shown(built).to_string()
    for name, rows in (
        ("methods", episodes),
        ("unlearning-curves", study.curves(study.only(policies, start="poisoned"))),
    ):
        ((_, figure),) = figures.FIGURES[name].figures(rows)
        texts = {text.get_text() for axes in figure.axes for text in axes.get_yticklabels()}
        texts |= {text.get_text() for legend in figure.legends for text in legend.get_texts()}
        assert "Toy" in texts, name
