"""What the caller's environment may hold: variables in all forms, homes, locales, places, errors of the system."""

import errno
import json
import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from saferule import environment, files
from saferule.agents import BACKBONES, get_backbone
from saferule.cli import App, Command, Commands, app
from saferule.environment import cores, dataset_folder, graphics, home, user_path
from saferule.errors import LONGEST, DataError, SettingsError, cause, listed, sentence, shortened
from saferule.files import beside, check_different, derived, try_file, try_folder, write_bytes, write_folder
from saferule.limits import RANGES, check_number
from saferule.runs import notebooks
from saferule.runs.experiment import PROFILES
from saferule.runs.store import Store

RUNNER = CliRunner()
ROOT = os.getuid() == 0


def run(*arguments):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


# Variables


@pytest.mark.parametrize(
    ("told", "expected"),
    [("2", 2), ("3,2", 3), (" 2 , 1", 2), ("64", 4), ("0", 4), ("", 4), (" ", 4), ("abc", 4), ("-1", 4), ("²", 4)],
)
def test_threads_in_every_form(monkeypatch, told, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert cores() == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [("", None), (" On ", None), ("1", None), ("EGL", "egl"), (" osmesa", "osmesa"), ("glx", "glfw"), ("foo", "foo")],
)
def test_ways_to_draw_in_every_spelling(monkeypatch, told, expected):
    """As in mujoco/gl_context.py."""
    monkeypatch.setenv("MUJOCO_GL", told)
    assert graphics() == expected


def test_a_cluster_is_the_options_or_the_environments(monkeypatch):
    monkeypatch.setenv("SAFERULE_RAY_GPUS", "0")
    monkeypatch.setenv("RAY_ADDRESS", "host:1")
    assert environment.cluster() == ("host:1", 0)
    environment.use_cluster(None, 0.5)
    assert environment.cluster() == ("host:1", 0.5)
    environment.use_cluster("other:2", None)
    assert environment.cluster() == ("other:2", 0.5)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(SettingsError, match="--ray-gpus is given without --ray"):
        environment.use_cluster(None, 1)


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user id without an entry in the passwd file, and no HOME."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("DSRL_DATASET_DIR", raising=False)

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "fetch", "--task", "CarCircle"),
        ("status", "--profile", "paper"),
        ("run", "--profile", "paper"),
        ("data", "check", "~/x.hdf5", "--task", "CarCircle"),
        ("data", "fetch", "--task", "CarCircle", "--folder", "nowhere", "--mirror", "~/x"),
    ],
)
def test_without_a_home_what_needs_one_says_so(homeless, arguments):
    found = run(*arguments)
    assert found.exit_code == 2 and "HOME is not set and user" in found.stderr and found.stderr.endswith("set HOME\n")


def test_without_a_home_the_rest_works(homeless, monkeypatch, tmp_path):
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    assert dataset_folder() == tmp_path
    registered = []
    monkeypatch.setattr(environment.atexit, "register", lambda *call, **options: registered.append(call))
    monkeypatch.setenv("HOME", "to be restored")
    monkeypatch.delenv("HOME")
    assert Path(notebooks.kernel()).parent.resolve() == Path(sys.executable).parent.resolve()
    assert home().is_dir() and registered[0][1] == str(home())
    shutil.rmtree(home())


def test_paths_are_read_as_users_write_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x", "--out") == tmp_path / "x" and user_path("~", "--out") == tmp_path
    assert user_path("a~b/{x} y", "--out") == Path("a~b/{x} y")
    for wrong, told in (("", "is no path"), ("a\0b", "is no path"), ("~nobody-here/x", "a user who is not known here")):
        with pytest.raises(SettingsError, match=f"--out: .* {told}"):
            user_path(wrong, "--out")
    monkeypatch.chdir(tmp_path)
    found = run("data", "check", "~/x.hdf5", "--task", "CarCircle")
    assert f"{tmp_path}/x.hdf5 does not exist" in found.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{broken", json.dumps({"argv": ["/nowhere/python"], "display_name": "x"}), ""])
@pytest.mark.parametrize("name", ["python3", "saferule"])
def test_kernelspecs_of_others_are_not_taken(monkeypatch, tmp_path, name, content):
    (tmp_path / "kernels" / name).mkdir(parents=True)
    (tmp_path / "kernels" / name / "kernel.json").write_text(content)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert Path(notebooks.kernel()).parent.resolve() == Path(sys.executable).parent.resolve()


@pytest.mark.parametrize("name", ["run-{a}", "{profile}", "run}", "a b", "{{0}}"])
def test_braces_and_spaces_in_places_are_only_characters(tmp_path, name):
    from papermill.parameterize import parameterize_path

    place = tmp_path / name / "x.ipynb"
    assert parameterize_path(notebooks._as_it_is(place), {"profile": "smoke"}) == str(place)


@pytest.mark.parametrize("backend", ["osmesa", "foo"])
def test_a_bullet_task_needs_no_opengl(backend):
    code = "import os, saferule.sim.ppo, saferule.sim as s; s.make('CarCircle').close(); print(os.environ['MUJOCO_GL'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MUJOCO_GL": backend}, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.split()[-1] == backend, done.stderr


def test_a_locale_without_the_characters_of_a_name_stops_nothing():
    code = "from saferule.cli import main; main()"
    command = [sys.executable, "-c", code, "data", "check", "π✓.hdf5", "--task", "CarCircle"]
    environ = os.environ | {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    done = subprocess.run(command, env=environ, capture_output=True, encoding="latin-1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and r"\u03c0" in done.stderr


# Numbers


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("seed", (0, 2**31 - 1), (-1, 2**31, 0.5, True)),
        ("replicates", (0, 7), (-1, 2**31)),
        ("ratio", (0.05, 1e-9), (0, 1, -0.1, float("nan"))),
        ("cost_limit", (0, 0.0, 25.5), (-1, float("nan"), float("inf"))),
        ("gamma", (0.99,), (0, 1, 1.5)),
        ("num_q", (1, 4), (0, 2.5, -1, 10**9)),
        ("hidden", (1, 256), (0, 10**9)),
        ("beta", (0.5, 0), (-3, float("inf"))),
        ("ray_gpus", (-1, 0.5), (float("nan"),)),  # without a range of its own
    ],
)
def test_every_number_has_its_range(name, good, bad):
    for value in good:
        check_number(name, value)
    for value in bad:
        with pytest.raises(SettingsError, match=f"--{name} = .*, expected"):
            check_number(name, value, f"--{name}")
    assert str(RANGES["seed"]) == "a whole number from 0 to 2,147,483,647"


def numeric(settings) -> dict[str, object]:
    """The fields of settings that hold numbers, alone or in a tuple, with their values."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    first = {name: value[0] if isinstance(value, tuple) and value else value for name, value in values.items()}
    return {n: values[n] for n, one in first.items() if isinstance(one, int | float) and not isinstance(one, bool)}


SETTINGS = {name: get_backbone(name).Config(8, 2, 300) for name in BACKBONES} | PROFILES


@pytest.mark.parametrize("name", SETTINGS)
def test_every_number_of_all_settings_has_a_range_which_is_kept(name):
    assert len(numeric(SETTINGS[name])) > 8
    for field, value in numeric(SETTINGS[name]).items():
        wrong = tuple(-1e9 for _ in value) if isinstance(value, tuple) else -1e9
        assert field in RANGES, field
        with pytest.raises(SettingsError, match=f"{field} = -"):
            replace(SETTINGS[name], **{field: wrong})


# Places


def test_places_are_tried_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    before = sorted(tmp_path.rglob("*"))
    for place, told in (
        ("file", "exists and would be replaced"),
        ("link", "exists and would be replaced"),
        ("full", "is a folder"),
        ("file/x", "a part of the path is a file"),
        ("n" * 250, "its name is too long"),
    ):
        with pytest.raises(SettingsError, match=told):
            try_file(tmp_path / place)
    for place, told in (("file", "something here already"), ("full", "new or empty folder"), ("file/a/b", "is a file")):
        with pytest.raises(SettingsError, match=told):
            try_folder(tmp_path / place)
    with pytest.raises(SettingsError):
        try_file(tmp_path / "loop")
    try_file(tmp_path / "file", None)
    try_file(tmp_path / "new" / "deep" / "x")
    try_folder(tmp_path / "new" / "deep")
    try_folder(tmp_path / "full", empty=False)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_place_that_the_system_refuses_is_named(tmp_path, monkeypatch, number):
    def refuse(path, *_, **__):
        raise OSError(number, "no", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    for trial in (try_file, try_folder):
        with pytest.raises(SettingsError, match="new/x cannot be written: ") as caught:
            trial(tmp_path / "new" / "x")
        assert cause(OSError(number, "")) in str(caught.value) and not list(tmp_path.iterdir())


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"


def test_an_empty_folder_is_filled_not_replaced(tmp_path):
    """A mount point cannot be replaced; and its mode and owner are somebody's choice."""
    place = tmp_path / "mount"
    place.mkdir(mode=0o750)
    number = place.stat().st_ino
    with write_folder(place) as draft:
        (draft / "a").write_text("a")
        (draft / "b").mkdir()
        assert draft.parent == place and files.vacant(place)
    assert sorted(entry.name for entry in place.iterdir()) == ["a", "b"] and place.stat().st_ino == number
    assert beside(place, "x") == tmp_path / ".mount.x" and place.stat().st_mode & 0o777 == 0o750


def test_what_cannot_get_its_name_is_kept(tmp_path, monkeypatch):
    def busy(*_):
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(files.os, "replace", busy)
    for write in (lambda: write_bytes(tmp_path / "x", b"work"), lambda: _filled(tmp_path / "y")):
        with pytest.raises(
            Exception, match="all is written but cannot get its name .* until then it lies in"
        ) as caught:
            write()
        kept = Path(str(caught.value).rpartition(" ")[2])
        assert (kept / "a" if kept.is_dir() else kept).read_bytes() == b"work"


def _filled(place):
    with write_folder(place) as draft:
        (draft / "a").write_bytes(b"work")


def test_derived_names_keep_apart():
    names = [derived(Path("f") / name, ".adversary").name for name in ("forget.hdf5", "forget-0.05", "forget-0.15")]
    assert names == ["forget.adversary", "forget-0.05.adversary", "forget-0.15.adversary"]
    with pytest.raises(SettingsError, match="--out and its recordings are both"):
        check_different({"--data": None, "--out": Path("a"), "its recordings": Path("b/../a")})


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES, errno.EIO])
def test_a_store_without_locks_is_named(tmp_path, monkeypatch, number):
    import fcntl

    def no_locks(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(Exception, match="the lock of the store cannot be held") as caught, Store(tmp_path).lock():
        pass
    assert cause(OSError(number, "")) in str(caught.value)


# Sentences


@pytest.mark.parametrize(
    ("error", "told", "code"),
    [
        (DataError("x" * 1000), "xxx ... xxx", 2),
        (DataError("two\nlines " * 200), "two lines two lines", 2),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: the disk is full", 2),
        (OSError("Unable to write (file write failed: errno = 28, error message = 'No space')"), "the disk is full", 2),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: you have no permission", 2),
        (MemoryError("Unable to allocate 8 TiB"), "not enough memory (Unable to allocate 8 TiB)", 2),
        (ZeroDivisionError("division\nby zero"), "ZeroDivisionError: division", 1),
        (RuntimeError(), "RuntimeError in saferule/cli.py", 1),
        (KeyError("π" * 500), "set SAFERULE_DEBUG=1", 1),
        (KeyboardInterrupt(), "interrupted: finished work is kept", 130),
    ],
)
def test_no_error_reaches_a_user_as_a_traceback(monkeypatch, error, told, code):
    small = App(cls=Commands)

    @small.command()
    def fail() -> None:
        raise error

    @small.command()
    def other() -> None: ...

    monkeypatch.delenv("SAFERULE_DEBUG", raising=False)
    found = RUNNER.invoke(small, ["fail"])
    assert (found.exit_code, found.stderr.count("\n")) == (code, 1) and told in found.stderr
    assert len(found.stderr) <= LONGEST + len("saferule: error: \n") and "Traceback" not in found.output
    if code != 130:
        monkeypatch.setenv("SAFERULE_DEBUG", "1")
        assert RUNNER.invoke(small, ["fail"]).exception is error


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["two\nlines"],
        ["repair", "--x\ny"],
        ["--nonsense"],
        ["repair"],
        ["repair", "--steps", "x"],
        ["data", "what"],
        ["attack", "-z"],
    ],
)
def test_words_that_mean_nothing_are_one_line(words):
    found = run(*words)
    assert found.exit_code == 2 and found.stderr.startswith("saferule: error: ") and found.stderr.count("\n") == 1
    assert "--help`" in found.stderr


def test_every_command_judges_its_paths_and_numbers():
    def commands(group):
        for command in group.commands.values():
            yield from commands(command) if hasattr(command, "commands") else [command]

    assert all(isinstance(command, Command) for command in commands(typer.main.get_command(app)))


def test_sentences_are_short():
    assert shortened("a\n b") == "a b" and len(shortened("x" * 999)) <= LONGEST
    assert listed("abcdefghij", 2) == "'a', 'b' and 8 more"
    assert "saferule/" in sentence(_raised())


def _raised() -> Exception:
    try:
        derived(None, "")  # a mistake inside the package
    except AttributeError as error:
        return error
