"""Downloads from an HTTP server on this machine that speaks the few routes of the hub that a file needs."""

import errno
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from saferule.data import schema
from saferule.data.fetch import REPOSITORY, dataset_folder, fetch
from saferule.errors import DataError
from saferule.sim import get_task

TASK = get_task("CarCircle")
ROUTE = f"/datasets/{REPOSITORY}/resolve/main/{TASK.dsrl_file}"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A valid CarCircle file."""
    path, states = tmp_path_factory.mktemp("content") / "data.hdf5", np.random.default_rng(0).normal(size=(900, 8))
    ends = np.arange(1, 901) % TASK.horizon == 0
    zeros = np.zeros(900)
    schema.save(schema.Dataset(states, states, states[:, :2].clip(-1, 1), zeros, zeros, zeros, ends), path)
    return path.read_bytes()


@pytest.fixture
def hub(content):
    """A hub with one file: `content` under every name, or `status` in its place; `shown` notes the requests."""
    hub = SimpleNamespace(content=content, status=200, announced=None, shown=[])

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            hub.shown.append((self.command, self.path, self.headers.get("Authorization")))
            self.send_response(hub.status)
            self.send_header("Content-Length", str(hub.announced or len(hub.content)))
            self.send_header("ETag", '"one"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(hub.content)
            self.close_connection = True

        do_HEAD = do_GET = answer

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        hub.url, hub.server = f"http://127.0.0.1:{server.server_port}", server
        yield hub
        server.shutdown()


@pytest.fixture
def get(tmp_path, hub):
    """fetch() into a fresh folder; get.said are its messages."""

    def get(task="CarCircle", mirror=hub.url):
        return fetch(task, tmp_path, mirror=mirror, say=get.said.append)

    get.said, get.path = [], tmp_path / TASK.dsrl_file
    return get


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_recorded(hub, get, content, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "mine")
    assert get() == get.path and get.path.read_bytes() == content
    assert get() == get.path
    # No token goes to a mirror, and a file that is there is not asked for again.
    assert hub.shown == [("HEAD", ROUTE, None), ("GET", ROUTE, None)]
    assert get.path.stat().st_mode == (tmp_path / (TASK.dsrl_file + ".json")).stat().st_mode
    assert len(get.said) == 1 and "the next call begins again" in get.said[0]
    assert files(tmp_path) == [TASK.dsrl_file, TASK.dsrl_file + ".json"]
    record = json.loads((tmp_path / (TASK.dsrl_file + ".json")).read_text())
    assert record == {"url": hub.url + ROUTE, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("status", [404, 503])
def test_without_the_file_the_error_says_what_to_do_by_hand(hub, get, status, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.status = status
    with pytest.raises(DataError) as caught:
        get()
    for part in (str(status), "check the connection", f"get {hub.url}{ROUTE}", f"put it at {get.path}"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and files(tmp_path) == []


def test_offline_and_cut_off_there_is_one_sentence(hub, get, content, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.announced = len(content) + 5  # a length that never comes
    with pytest.raises(DataError, match="could not be downloaded .*: check the connection"):
        get()
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(DataError, match="could not be downloaded .*: check the connection"):
        get()
    assert files(tmp_path) == []


@pytest.mark.parametrize(("task", "reason"), [("AntVelocity", "8 columns, expected 27"), ("CarCircle", "no HDF5 file")])
def test_a_file_that_breaks_the_schema_is_kept_aside_and_named(hub, get, tmp_path, task, reason):
    if task == "CarCircle":
        hub.content = b"<html>Please log in</html>"
    start = hashlib.sha256(hub.content).hexdigest()[:8]  # another file that is rejected replaces none
    rejected = f"{get_task(task).dsrl_file}.{start}.rejected"
    with pytest.raises(DataError, match=f"{reason}.* is kept as .*{re.escape(rejected)}"):
        get(task)
    assert files(tmp_path) == [rejected] and (tmp_path / rejected).read_bytes() == hub.content


def test_another_file_than_recorded_is_refused(hub, get, content, tmp_path):
    get().rename(tmp_path / "first.hdf5")
    schema.save(schema.load(tmp_path / "first.hdf5", TASK).select([0]), tmp_path / "other.hdf5")
    hub.content = (tmp_path / "other.hdf5").read_bytes()
    with pytest.raises(DataError, match="or that record to accept it"):
        get()
    assert not get.path.exists()
    hub.content = content
    assert get().read_bytes() == content


def test_a_file_that_is_there_is_checked_against_its_record(hub, get, content):
    get.path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="no HDF5 file"):
        get()
    get.path.write_bytes(content)  # put there by hand: validated and recorded
    assert get() == get.path
    get.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="has SHA-256 .* expected .* delete the file to fetch it again"):
        get()
    get.path.with_name(get.path.name + ".json").write_text("[]")
    with pytest.raises(DataError, match="no record of a download"):
        get()
    assert hub.shown == []


def test_a_folder_that_cannot_be_written_is_named(hub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file.* a part of the path is a file.*DSRL_DATASET_DIR"):
        fetch("CarCircle", tmp_path / "file" / "below", mirror=hub.url)


@pytest.mark.parametrize(
    ("number", "about", "told"),
    [
        (errno.EIO, "mirror", "the disk fails"),
        (errno.EACCES, "mirror", "no permission"),
        (errno.ENOSPC, "kept", "disk is full"),
    ],
)
def test_what_fails_is_named_the_source_or_the_target(tmp_path, monkeypatch, number, about, told):
    """Whatever fails, `shutil.copyfile` names its source."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / TASK.dsrl_file).touch()

    def fail(source, target):
        raise OSError(number, "no", str(source), None, str(target))

    monkeypatch.setattr("saferule.data.fetch.shutil.copyfile", fail)
    with pytest.raises(DataError, match=f"/{about}/{TASK.dsrl_file}: .*{told}"):
        fetch("CarCircle", tmp_path / "kept", mirror=str(tmp_path / "mirror"), say=lambda line: None)
    assert files(tmp_path / "kept") == []


def test_a_record_is_written_of_what_has_its_name(tmp_path, monkeypatch, content):
    """Who is stopped in between finds no record of a file that is not there."""
    (tmp_path / TASK.dsrl_file).write_bytes(content)
    monkeypatch.setattr("saferule.data.fetch.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch("CarCircle", tmp_path / "kept", mirror=str(tmp_path), say=lambda line: None)
    assert files(tmp_path / "kept") == []


def test_the_folder_is_that_of_dsrl(monkeypatch, tmp_path):
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path / "sets"))
    assert dataset_folder() == tmp_path / "sets"
    monkeypatch.delenv("DSRL_DATASET_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dataset_folder() == tmp_path / ".dsrl" / "datasets"


def test_a_folder_is_a_mirror_too(hub, get, content, tmp_path):
    """Of a network file system or a disk that was carried here: judged and recorded as a download is."""
    mirror, kept = tmp_path / "mirror", tmp_path / "kept"
    mirror.mkdir()
    for wrong in (mirror, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=f"{TASK.dsrl_file} is not there, expected CarCircle's file in the folder"):
            fetch("CarCircle", kept, mirror=str(wrong), say=get.said.append)
    (mirror / TASK.dsrl_file).write_bytes(content)
    path = fetch("CarCircle", kept, mirror=str(mirror), say=get.said.append)
    assert path.read_bytes() == content and files(kept) == [TASK.dsrl_file, TASK.dsrl_file + ".json"]
    record = json.loads((kept / (TASK.dsrl_file + ".json")).read_text())
    assert record["url"] == (mirror / TASK.dsrl_file).as_uri() and hub.shown == []
    path.unlink()
    (mirror / TASK.dsrl_file).write_bytes(b"<html>")
    with pytest.raises(DataError, match="no HDF5 file.* is kept as "):
        fetch("CarCircle", kept, mirror=str(mirror), say=get.said.append)
    assert (mirror / TASK.dsrl_file).read_bytes() == b"<html>"  # a copy was kept
