"""The notebooks as files, the runner that executes them, and what they work with."""

import ast
import inspect
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from episodes_by_hand import EPISODES
from jupyter_client.kernelspec import KernelSpec
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from saferule.data.schema import clean_data
from saferule.errors import RunError
from saferule.report.figures import FIGURES, OF_ATTACK
from saferule.report.study import Study
from saferule.report.study import shown as of_rows
from saferule.report.tables import TABLES, replicate_means
from saferule.runs import notebooks
from saferule.runs.experiment import PARTS, PROFILES
from saferule.runs.places import NOTEBOOKS, project_root
from saferule.runs.spec import identity
from saferule.unlearn import METHODS

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
PARAMETERS = {"profile": "smoke"} | dict.fromkeys(
    ("tasks", "backbones", "attacks", "ratios", "replicates", "output", "data", "changes")
)
PARAMETERS["only_stored"] = False


def code_of(name):
    return [cell for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells if cell.cell_type == "code"]


def called(method):
    """The first argument of every call of a method of the study in all notebooks, by notebook."""
    found = []
    for name in NOTEBOOKS:
        tree = ast.parse("\n".join(cell.source for cell in code_of(name)))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
        found += [call.args[0] for call in calls if ast.unparse(call.func) == f"study.{method}"]
    return {node.value for node in found if isinstance(node, ast.Constant)}


# Files


def test_these_notebooks_exist_and_no_others():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)
    assert project_root() == FOLDER.parent


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_valid_clean_and_thin(name):
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == notebooks.KERNEL
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    for cell in code_of(name):
        assert not cell.outputs and cell.execution_count is None
        assert len(cell.source.splitlines()) <= 10


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_come_first_and_name_the_smoke_profile(name):
    code = code_of(name)
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code[:1]
    values = {}
    exec(tagged[0].source, values)
    assert {key: value for key, value in values.items() if not key.startswith("__")} == PARAMETERS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_parameter_reaches_the_study(name, monkeypatch):
    asked = []

    def study(*arguments, **options):
        asked.append(inspect.signature(Study).bind(*arguments, **options).arguments)
        raise InterruptedError

    monkeypatch.setattr("saferule.report.study.Study", study)
    parameters = {name: object() for name in PARAMETERS}
    with pytest.raises(InterruptedError):
        exec(code_of(name)[1].source, dict(parameters))
    assert asked == [parameters]


def test_every_part_and_every_figure_is_shown_in_some_notebook():
    assert called("table") | {"table2", "table5", "table6"} == set(TABLES)  # in a loop
    assert called("figure") | set(OF_ATTACK.values()) == set(FIGURES)
    assert called("arranged") == {"table3", "table7"}
    assert called("part") | {"adversaries", "forget sets", "timing", "detections", *PARTS[-2:]} == set(PARTS)


def test_no_notebook_lists_methods():
    for name in NOTEBOOKS:
        nodes = [node for cell in code_of(name) for node in ast.walk(ast.parse(cell.source))]
        texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
        assert len(texts & set(METHODS) - {"clean"}) <= 1, name


# Runner


def write(path, *cells):
    metadata = {"kernelspec": {"name": notebooks.KERNEL, "display_name": "x", "language": "python"}}
    parameters = new_code_cell("profile = 'none'", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[new_markdown_cell("# title"), parameters, *cells], metadata=metadata), path)
    return path


def test_the_kernel_is_this_interpreter(tmp_path, capsys):
    notebooks.kernel()
    book = write(tmp_path / "who.ipynb", new_code_cell("import sys; print(sys.executable, profile)"))
    notebooks.execute(book, tmp_path / "out", {"profile": "smoke"}, tmp_path)
    executed = nbformat.read(tmp_path / "out" / "who.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text.split() == [sys.executable, "smoke"]
    assert "    " + sys.executable in capsys.readouterr().out
    assert str(tmp_path) not in str(executed.metadata.papermill.input_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["who.ipynb"]


def test_a_failing_notebook_is_reported_and_kept_under_another_name(tmp_path):
    out = tmp_path / "out"
    book = write(tmp_path / "bad.ipynb", new_code_cell("x = 1"), new_code_cell("raise ValueError('no such thing')"))
    with pytest.raises(RunError) as caught:
        notebooks.execute(book, out, {}, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("bad.ipynb failed in cell ") and "ValueError: no such thing" in lines[0]
    assert any("raise ValueError" in line for line in lines[1:])
    assert "\x1b" not in str(caught.value)
    assert [path.name for path in out.iterdir()] == ["bad.failed.ipynb"]
    # Once it succeeds, the failed copy is gone.
    notebooks.execute(write(tmp_path / "bad.ipynb", new_code_cell("x = 1")), out, {}, tmp_path)
    assert [path.name for path in out.iterdir()] == ["bad.ipynb"]


def test_a_kernel_that_dies_is_reported(tmp_path):
    book = write(tmp_path / "dead.ipynb", new_code_cell("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    with pytest.raises(RunError, match="dead.ipynb failed: its kernel died"):
        notebooks.execute(book, tmp_path / "out", {}, tmp_path)
    assert not (tmp_path / "out" / "dead.ipynb").exists()


def test_another_interpreters_kernel_is_refused(monkeypatch):
    spec = KernelSpec(argv=["/somewhere/else/bin/python", "-m", "ipykernel_launcher"])
    monkeypatch.setattr("jupyter_client.kernelspec.KernelSpecManager.get_kernel_spec", lambda self, name: spec)
    with pytest.raises(RunError, match="starts /somewhere/else/bin/python, expected "):
        notebooks.kernel()


# What the notebooks work with


def test_study_takes_the_profile_and_its_changes(tmp_path):
    study = Study("smoke", replicates=[0, 1], output=tmp_path, data=tmp_path, changes={"training_steps": 5})
    assert study.profile.replicates == (0, 1) and study.profile.training_steps == 5
    assert study.name == "smoke (replicates=0 1, training_steps=5)"
    assert study.folder == tmp_path / "smoke"
    assert Study("cpu", output=tmp_path, data=tmp_path).profile == PROFILES["cpu"]
    assert Study("smoke", output=tmp_path, changes={"backbones": "cpq"}).profile.backbones == ("cpq",)


@pytest.fixture
def study(tmp_path, data_folder):
    return Study("smoke", backbones=["cpq", "coptidice"], output=tmp_path, data=data_folder)


def test_of_a_part_only_what_is_read_is_made(study, monkeypatch):
    made = []
    monkeypatch.setattr("saferule.report.study.make", lambda runs, workspace, level: made.extend(runs))
    fresh = study.part("main", start="fresh")
    assert [run.method for run in fresh] == ["clean", "poisoned"] * 2
    assert [run.policy for run in made] == fresh  # episodes; not the policies, whose evaluations may be there
    made.clear()
    assert study.inside(fresh) == fresh and made == [*fresh, fresh[1].forget, fresh[3].forget]
    repairs = study.part("main", family="safe_rule")
    assert [run.method for run in repairs] == ["reward-only", "safe-rule", "safe-rule-described"] * 2
    assert study.ablated(repairs) == repairs


def test_a_study_of_what_is_stored_makes_nothing_and_knows_what_is_missing(study, tmp_path, data_folder, monkeypatch):
    monkeypatch.setattr("saferule.report.study.make", lambda *_, **__: pytest.fail("a run was made"))
    stored = Study("smoke", backbones=["cpq"], output=tmp_path, data=data_folder, only_stored=True)
    main, evaluations = stored.plan["main"], stored.plan["evaluations"]
    with stored.store.write(evaluations[0]) as folder:
        EPISODES[EPISODES["method"] == "clean"].to_csv(folder / "episodes.csv")
    with stored.store.write(main[1]):  # a policy that is not evaluated is not shown
        pass
    with stored.store.write(evaluations[2]) as folder:  # nor one whose episodes were changed
        EPISODES.to_csv(folder / "episodes.csv")
    (stored.store.folder(evaluations[2]) / "episodes.csv").write_text("cost\n0\n")
    assert stored.part("main") == main[:1] and stored.missing("main") == main[1:]
    assert stored.beside(main, "main") == main[:1] and stored.inside(main) == [] and stored.part("readings") == []
    assert set(stored.curves(main)["method"]) == {"clean"} and stored.forget_sets("CarCircle") == []
    shown = []
    monkeypatch.setattr("saferule.report.study.display", shown.append)
    stored.made_with()
    assert f"Shown is what is stored: 1 of {len(evaluations)} evaluated policies." in shown[0].data
    assert "1 damaged runs and what they were for are left out" in shown[0].data


def test_a_study_of_the_cpu_profile_names_its_slices(tmp_path, data_folder, monkeypatch):
    shown = []
    monkeypatch.setattr("saferule.report.study.display", shown.append)
    monkeypatch.setattr(Study, "dataset", lambda self, task: clean_data(data_folder, "CarCircle"))
    Study("cpu", output=tmp_path, data=data_folder).made_with()
    assert "(1) CarCircle; max_cost; 0.15; replicates 0, 1, 2, 3, 4; ablations at 0.15. (2) CarCircle;" in shown[0].data


def test_policies_beside_others_share_their_data_and_replicate(study, monkeypatch):
    monkeypatch.setattr(study, "make", list)
    variants = study.part("ablations")
    parts = ("main", "ablations")
    beside = study.beside([run for run in variants if run.backbone == "cpq"], *parts)
    assert {run.backbone for run in beside} == {"cpq"}
    assert [run.method for run in beside] == [name for name, method in METHODS.items() if method.part in parts]


def test_curves_begin_with_the_policy_that_a_repair_started_from(study, monkeypatch):
    def rows(store, evaluations):
        """Cost 1 at the end, 9 on the way, which only the first two evaluation seeds have."""
        end = pd.DataFrame({"seed": range(3), "cost": 1.0, "return": 5.0, "step": 100, "final": True})
        frames = [end.assign(**identity(evaluation.policy)) for evaluation in evaluations]
        early = [frame[:2].assign(step=50, final=False, cost=9.0) for frame in frames]
        return pd.concat([*early, *frames])

    monkeypatch.setattr("saferule.report.study.results.episodes", rows)
    monkeypatch.setattr(study, "make", list)
    repair = study.only(study.plan["main"], name="safe-rule")[0]
    curves = study.curves([repair])
    assert curves.groupby("step")["cost"].agg(["mean", "size"]).to_numpy().tolist() == [[1, 2], [9, 2], [1, 2]]
    assert set(curves["method"]) == {"safe-rule"} and len(study.episodes([repair])) == 3


def test_without_a_backbone_that_draws_there_is_nothing_to_compare(tmp_path, data_folder):
    study = Study("smoke", backbones=["cpq"], output=tmp_path, data=data_folder)
    assert study.acting(study.plan["main"]).empty


def test_tables_and_figures_are_files_too(study, monkeypatch):
    shown = []
    monkeypatch.setattr("saferule.report.study.display", shown.append)
    study.table("table1", EPISODES[EPISODES["replicate"] == 0])
    lines = (study.folder / "tables" / "table1.csv").read_text().splitlines()
    assert lines[0].startswith("profile,data,task,") and lines[1].startswith("smoke (backbones=cpq coptidice),")
    assert len(lines) == 1 + 8 and len(shown) == 2  # two methods and metrics; those of COptiDICE are missing
    told = "Shown are replicates 0; 2 episodes per policy."
    caption = f"Table 1. {TABLES['table1'].title}. {study.caption} {told}"
    assert shown[0].data == caption and "asked for are replicates 0 and 3 episodes per policy" in caption
    saved = pd.read_csv(study.folder / "tables" / "table1.csv")
    assert of_rows(saved) == f" {told}" and of_rows(saved[:0]) == of_rows(saved.drop(columns="episodes")) == ""
    means = replicate_means(EPISODES.drop(index=0))
    assert of_rows(means) == " Shown are replicates 0, 1; 1 to 2 episodes per policy."
    assert (study.folder / "tables" / "table1.md").read_text().startswith(f"**{caption}**\n")
    assert r"\label{tab:table1}" in (study.folder / "tables" / "table1.tex").read_text()
    assert "missing / missing" in shown[1].to_string()
    study.figure("unlearning-methods", EPISODES)
    image = study.folder / "figures" / "unlearning-methods-CarCircle-cpq.png"
    assert not list((study.folder / "figures").glob("*.svg"))
    assert shown[-1].data == image.read_bytes() and shown[-1].alt.startswith("CarCircle, CPQ: before and after")


def test_films_that_are_not_made_leave_a_sentence(tmp_path, capsys):
    Study("smoke", output=tmp_path, changes={"videos": False}).films()
    assert capsys.readouterr().out == "No films: videos are switched off (videos=false).\n"
    assert not (tmp_path / "smoke").exists()
