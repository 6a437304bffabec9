"""The image's entrypoint, outside the image: one sentence for what cannot work, and a place for results and caches."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
RUN_ALL = '#!/bin/sh\necho ran "$@" as $(id -u) >artifacts/ran\n'


@pytest.fixture
def workspace():
    """A stand-in for the image's /workspace in a folder that every user may enter, with data that it ships."""
    folder = Path(tempfile.mkdtemp(prefix="saferule-entrypoint-"))
    for part in ("docker", "artifacts", "shipped/data", "tmp"):
        (folder / part).mkdir(parents=True)
    shutil.copy2(ROOT / "docker" / "entrypoint.sh", folder / "docker")
    (folder / "run_all.sh").write_text(RUN_ALL)
    (folder / "shipped" / "data" / "CarCircle.hdf5").write_text("data")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    (folder / "tmp").chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def start(workspace, *command, script="docker/entrypoint.sh", user=None, mounted=True, **environment):
    """The entrypoint or another script with these arguments; as another user (root only), with or without a mount."""
    given = {
        "PATH": os.environ["PATH"],
        "HOME": "/",
        "TMPDIR": str(workspace / "tmp"),
        "SAFERULE_SHIPPED": str(workspace / "shipped"),
        **({"SAFERULE_DISCARD": "1"} if mounted else {}),  # what nothing is mounted at is not complained about then
        **environment,
    }
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    line = [*become, "bash", workspace / script, *command]
    return subprocess.run(line, env=given, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def assert_one_sentence(done, code, *words):
    assert done.returncode == code, done
    assert done.stdout == "" and done.stderr.startswith("saferule: ") and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


as_root = pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="becomes other users")


def test_alone_it_says_what_can_be_run(workspace):
    done = start(workspace, mounted=False)
    assert done.returncode == 0 and done.stderr == ""
    for command in ("./run_all.sh", "make test", "saferule doctor", " lab", "bash"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["--fast"], 2, ["--fast is no option of the image", "./run_all.sh --fast"]),
        (["trane"], 127, ["trane is no command of the image", "docker run saferule"]),
        (["./run_all.sh"], 1, ["nothing is mounted at", "would be lost", '-v "$PWD/artifacts:']),
        (["./run_all.sh", "--profile", "cpu"], 1, ["nothing is mounted at"]),
        (["bash", "run_all.sh"], 1, ["nothing is mounted at"]),
        (["lab"], 2, ["SAFERULE_LAB_TOKEN is empty"]),
        (["jupyter", "lab", "--IdentityProvider.token="], 2, ["an empty token lets everyone in"]),
        (["jupyter", "lab", "--ServerApp.token=''", "--ip=0.0.0.0"], 2, ["an empty token"]),
        (["jupyter-lab", '--token=""'], 2, ["an empty token"]),
    ],
)
def test_what_cannot_work_is_one_sentence(workspace, command, code, words):
    assert_one_sentence(start(workspace, *command, mounted=False), code, *words)
    assert not (workspace / "artifacts" / "ran").exists()


@pytest.mark.parametrize("token", ["", "  ", "\t\n"])
def test_the_lab_refuses_an_empty_token(workspace, token):
    assert_one_sentence(start(workspace, "lab", SAFERULE_LAB_TOKEN=token), 2, "SAFERULE_LAB_TOKEN is empty", "openssl")


def test_the_lab_asks_for_a_mount_too(workspace):
    assert_one_sentence(start(workspace, "lab", mounted=False, SAFERULE_LAB_TOKEN="s"), 1, "nothing is mounted at")


@as_root
def test_a_folder_of_another_user_is_one_sentence(workspace):
    done = start(workspace, "./run_all.sh", user=NOBODY)
    assert_one_sentence(done, 1, f"cannot be written by user {NOBODY}", "it belongs to 0:0", "--user 0:0")


@as_root
def test_root_becomes_the_owner_of_the_folder(workspace):
    os.chown(workspace / "artifacts", 4242, 4343)
    done = start(workspace, "./run_all.sh", "--profile", "smoke")
    assert done.returncode == 0, done.stderr
    assert (workspace / "artifacts" / "ran").read_text() == "ran --profile smoke as 4242\n"
    made = [workspace / "artifacts" / name for name in ("ran", "data", "data/CarCircle.hdf5")]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(4242, 4343)}


def test_what_the_image_ships_is_copied_where_it_is_missing_and_never_replaced(workspace):
    done = start(workspace, "./run_all.sh")
    assert done.returncode == 0 and "copying artifacts/data" in done.stderr
    file = workspace / "artifacts" / "data" / "CarCircle.hdf5"
    assert file.read_text() == "data"
    file.write_text("mine")
    again = start(workspace, "./run_all.sh")
    assert again.returncode == 0 and again.stderr == "" and file.read_text() == "mine"
    assert sorted(path.name for path in (workspace / "artifacts").iterdir()) == ["data", "ran"]


def test_other_commands_need_no_mount(workspace):
    done = start(workspace, "bash", "-c", "echo here", mounted=False)
    assert (done.returncode, done.stdout) == (0, "here\n")
    assert start(workspace, "bash", "-c", "exit 7", mounted=False).returncode == 7


def test_a_user_without_a_home_gets_one(workspace):
    done = start(workspace, "bash", "-c", 'touch "$HOME/x" && echo "$HOME"', mounted=False)
    assert done.stdout.startswith(str(workspace / "tmp")), done.stderr


@as_root
def test_a_user_without_a_name_gets_one(workspace):
    done = start(workspace, "python3", "-c", "import getpass; print(getpass.getuser())", mounted=False, user=54321)
    assert done.stdout == "saferule\n", done.stderr


@as_root
def test_nowhere_to_put_caches_is_one_sentence(workspace):
    (workspace / "tmp").chmod(0o755)
    assert_one_sentence(start(workspace, "bash", mounted=False, user=NOBODY), 1, "cannot be written", "--tmpfs /tmp")


@as_root
@pytest.mark.parametrize("part", ["artifacts", "artifacts/smoke"])
def test_run_all_names_a_folder_that_it_cannot_write(workspace, part):
    shutil.copy2(ROOT / "run_all.sh", workspace)
    (workspace / "artifacts" / "smoke").mkdir()
    for folder in ("artifacts", "artifacts/smoke"):
        os.chown(workspace / folder, *((0, 0) if folder == part else (NOBODY, NOBODY)))
    done = start(workspace, script="run_all.sh", user=NOBODY)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"{workspace / part} cannot be written by user {NOBODY}" in done.stderr and "owner 0:0" in done.stderr
