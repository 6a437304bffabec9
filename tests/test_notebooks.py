"""The notebooks as files, and the runner that executes them."""

import ast
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from saferule.errors import RunError
from saferule.profiles import PROFILES
from saferule.report.labels import method_name
from saferule.runs import notebooks
from saferule.runs.inventory import REPAIRS, VARIANTS
from saferule.runs.places import NOTEBOOKS, project_root
from saferule.runs.study import Study
from saferule.unlearn import METHODS

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
PARAMETERS = {"profile": "smoke"} | dict.fromkeys(
    ("tasks", "backbones", "attacks", "ratios", "seeds", "output", "data", "changes")
)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


# Files


def test_these_notebooks_exist_and_no_others():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)
    assert project_root() == FOLDER.parent


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_valid_clean_and_thin(name):
    book = read(name)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == notebooks.KERNEL
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    for cell in code:
        assert not cell.outputs and cell.execution_count is None
        assert len(cell.source.splitlines()) <= 15
    assert any(cell.cell_type == "markdown" for cell in book.cells[1:])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_come_first_and_name_the_smoke_profile(name):
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code[:1]
    values = {}
    exec(tagged[0].source, values)
    assert {key: value for key, value in values.items() if not key.startswith("__")} == PARAMETERS


@pytest.mark.parametrize(
    ("name", "expected"),
    [("unlearn", REPAIRS), ("tables", REPAIRS), ("ablate", ("safe-rule", "reward-only", *VARIANTS))],
)
def test_the_notebooks_make_the_methods_that_are_listed_as_runs(name, expected):
    source = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "code")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    (methods,) = (ast.unparse(call.args[1]) for call in calls if ast.unparse(call.func) == "study.repaired")
    assert sorted(eval(methods, {"REPAIRS": REPAIRS, "VARIANTS": VARIANTS})) == sorted(expected)


def test_every_method_is_a_run_of_some_notebook_and_described_in_the_first():
    assert set(REPAIRS) | set(VARIANTS) == set(METHODS)
    (table,) = (cell.source for cell in read("unlearn").cells if "| method |" in cell.source)
    for method in ("clean", *REPAIRS):
        assert f"| {method_name(method)} |" in table


# Runner


def write(path, *cells):
    metadata = {"kernelspec": {"name": "saferule", "display_name": "x", "language": "python"}}
    parameters = new_code_cell("profile = 'none'", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[new_markdown_cell("# title"), parameters, *cells], metadata=metadata), path)
    return path


@pytest.fixture(scope="module")
def kernel():
    return notebooks.choose_kernel()


def test_the_kernel_is_this_interpreter(tmp_path, kernel, capsys):
    book = write(tmp_path / "who.ipynb", new_code_cell("import sys; print(sys.executable, profile)"))
    notebooks.execute(book, tmp_path / "out", {"profile": "smoke"}, kernel, tmp_path)
    executed = nbformat.read(tmp_path / "out" / "who.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text.split() == [sys.executable, "smoke"]
    assert "    " + sys.executable in capsys.readouterr().out
    assert str(tmp_path) not in str(executed.metadata.papermill.input_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["who.ipynb"]


def test_a_failing_notebook_is_reported_and_kept_under_another_name(tmp_path, kernel):
    out = tmp_path / "out"
    book = write(tmp_path / "bad.ipynb", new_code_cell("x = 1"), new_code_cell("raise ValueError('no such thing')"))
    with pytest.raises(RunError) as caught:
        notebooks.execute(book, out, {}, kernel, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("bad.ipynb failed in cell ") and "ValueError: no such thing" in lines[0]
    assert any("raise ValueError" in line for line in lines[1:])
    assert "\x1b" not in str(caught.value)
    assert [path.name for path in out.iterdir()] == ["bad.failed.ipynb"]
    # Once it succeeds, the failed copy is gone.
    notebooks.execute(write(tmp_path / "bad.ipynb", new_code_cell("x = 1")), out, {}, kernel, tmp_path)
    assert [path.name for path in out.iterdir()] == ["bad.ipynb"]


def test_a_kernel_that_dies_is_reported(tmp_path, kernel):
    book = write(tmp_path / "dead.ipynb", new_code_cell("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    with pytest.raises(RunError, match="dead.ipynb failed: its kernel died"):
        notebooks.execute(book, tmp_path / "out", {}, kernel, tmp_path)
    assert not (tmp_path / "out" / "dead.ipynb").exists()


def test_another_interpreters_kernel_is_refused(monkeypatch, tmp_path):
    class Spec:
        argv = ["/somewhere/else/bin/python", "-m", "ipykernel_launcher"]

    monkeypatch.setattr("jupyter_client.kernelspec.KernelSpecManager.get_kernel_spec", lambda self, name: Spec)
    with pytest.raises(RunError, match="saferule starts /somewhere/else/bin/python.*expected one that starts it"):
        notebooks.choose_kernel()


# What the notebooks work with


def test_study_takes_the_profile_and_its_changes(tmp_path):
    study = Study("smoke", seeds=[0, 1], output=tmp_path, data=tmp_path, changes={"training_steps": 5})
    assert study.profile.seeds == (0, 1) and study.profile.training_steps == 5
    assert study.name == "smoke (seeds=0 1, training_steps=5)"
    assert study.folder == tmp_path / "smoke"
    assert Study("cpu", output=tmp_path).profile == PROFILES["cpu"]


def test_films_that_are_not_made_leave_a_sentence(tmp_path, monkeypatch):
    off = Study("smoke", output=tmp_path, data=tmp_path, changes={"videos": False})
    (film,) = off.adversary_films("CarCircle")
    assert film == (None, "CarCircle: no films. Videos are switched off (videos=false).")
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    (film,) = Study("cpu", output=tmp_path, data=tmp_path).adversary_films("PointGoal")
    assert film.gif is None and "Cannot draw this task: MUJOCO_GL=nonsense" in film.told
    assert not (tmp_path / "smoke").exists() and not (tmp_path / "cpu").exists()
