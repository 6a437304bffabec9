"""Downloads from a real HTTP server on this machine that misbehaves in every way the mirrors may."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from saferule.data import schema
from saferule.data.download import dataset_folder, fetch
from saferule.data.transfer import CHUNK, Part
from saferule.errors import DataError
from saferule.sim import get_task

TASK = get_task("CarCircle")
FIRST, SECOND = 5 * CHUNK, 2 * CHUNK  # bytes that come before a connection is cut


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A valid CarCircle file of random numbers, several chunks long."""
    rng, rows = np.random.default_rng(0), 12_000
    ends = np.arange(1, rows + 1) % TASK.horizon == 0
    data = schema.Dataset(
        rng.normal(size=(rows, 8)),
        rng.normal(size=(rows, 8)),
        rng.uniform(-1, 1, (rows, 2)),
        rng.normal(size=rows),
        rng.uniform(0, 1, rows),
        np.zeros(rows, dtype=bool),
        ends,
    )
    path = tmp_path_factory.mktemp("content") / "data.hdf5"
    schema.save(data, path)
    assert path.stat().st_size > 2 * FIRST
    return path.read_bytes()


class Mirror:
    """A server of one file; `script` holds what to do with the next requests, then it serves honestly."""

    def __init__(self, content):
        self.content, self.etag, self.script, self.requests = content, '"one"', [], []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.requests.append(dict(self.headers) | {"path": self.path})
                (mirror.script.pop(0) if mirror.script else serve)(mirror, self)
                self.close_connection = True

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/files/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def ranges(self):
        return [request.get("Range") for request in self.requests]


def head(handler, status, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def serve(mirror, handler, stop=None, ranges=True):
    """The file, or the range that is asked for if it is still the same file; `stop` bytes of it, if given."""
    content, start = mirror.content, 0
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if asked and ranges and handler.headers.get("If-Range", mirror.etag) == mirror.etag:
        start = int(asked[1])
        if start >= len(content):
            return head(handler, 416, Content_Range=f"bytes */{len(content)}")
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        head(handler, 206, Content_Length=len(content) - start, Content_Range=span, ETag=mirror.etag)
    else:
        head(handler, 200, Content_Length=len(content), ETag=mirror.etag)
    handler.wfile.write(content[start : None if stop is None else start + stop])


def cut_after(size, **options):
    return lambda mirror, handler: serve(mirror, handler, stop=size, **options)


def answer(status, body=b"", **headers):
    def do(mirror, handler):
        head(handler, status, Content_Length=len(body), **headers)
        handler.wfile.write(body)

    return do


@pytest.fixture
def mirror(content):
    server = Mirror(content)
    yield server
    server.close()


@pytest.fixture
def other(content):
    server = Mirror(content)
    yield server
    server.close()


@pytest.fixture
def get(tmp_path):
    """fetch() into a fresh folder; get.waits are the seconds it would have slept, get.said its messages."""

    def get(*mirrors, **options):
        urls = [getattr(mirror, "url", mirror) for mirror in mirrors]
        return fetch(
            "CarCircle", tmp_path, mirrors=urls, sleep=get.waits.append, say=get.said.append, progress=False, **options
        )

    get.waits, get.said = [], []
    get.path = tmp_path / TASK.dsrl_file
    return get


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_recorded(mirror, get, content, tmp_path):
    assert get(mirror) == get.path and get.path.read_bytes() == content
    assert get(mirror) == get.path
    assert len(mirror.requests) == 1 and mirror.requests[0]["path"] == f"/files/{TASK.dsrl_file}"
    assert get.waits == [] and files(tmp_path) == [TASK.dsrl_file, TASK.dsrl_file + ".json"]
    record = json.loads((tmp_path / (TASK.dsrl_file + ".json")).read_text())
    expected = {"url": mirror.url + TASK.dsrl_file, "bytes": len(content)}
    assert record == expected | {"sha256": hashlib.sha256(content).hexdigest()}


def test_a_cut_connection_is_resumed(mirror, get, content):
    mirror.script = [cut_after(FIRST), cut_after(SECOND)]
    assert get(mirror).read_bytes() == content
    assert mirror.ranges() == [None, f"bytes={FIRST}-", f"bytes={FIRST + SECOND}-"]
    assert [request.get("If-Range") for request in mirror.requests] == [None, '"one"', '"one"']
    assert get.waits == [1, 1]  # both attempts gained something


def test_another_call_continues_an_interrupted_download(mirror, get, content, tmp_path):
    mirror.script = [cut_after(FIRST)] + [answer(503)] * 5
    with pytest.raises(DataError, match="continues where it stopped"):
        get(mirror)
    assert (tmp_path / (TASK.dsrl_file + ".part")).read_bytes() == content[:FIRST]
    assert get(mirror).read_bytes() == content
    assert mirror.ranges()[-1] == f"bytes={FIRST}-"


def test_a_whole_part_is_accepted_without_a_request(mirror, get, content, tmp_path):
    """As one leaves it that was stopped while the file was checked."""
    (tmp_path / (TASK.dsrl_file + ".part")).write_bytes(content)
    source = {"url": mirror.url + TASK.dsrl_file, "etag": '"one"', "length": len(content)}
    (tmp_path / (TASK.dsrl_file + ".part.json")).write_text(json.dumps(source))
    assert get(mirror).read_bytes() == content
    assert mirror.requests == [] and get.said == []
    assert files(tmp_path) == [TASK.dsrl_file, TASK.dsrl_file + ".json"]


def test_a_server_that_ignores_ranges_sends_all_again(mirror, get, content):
    mirror.script = [cut_after(FIRST), cut_after(None, ranges=False)]
    assert get(mirror).read_bytes() == content
    assert mirror.ranges() == [None, f"bytes={FIRST}-"]


def test_a_file_that_changed_meanwhile_is_not_mixed(mirror, get, content):
    def replaced(status):
        def do(mirror, handler):
            mirror.etag = '"two"'
            if status == 206:  # ignores If-Range: the new file's bytes under the old file's range
                span, rest = f"bytes {FIRST}-{len(content) - 1}/{len(content)}", len(content) - FIRST
                head(handler, 206, Content_Range=span, Content_Length=rest, ETag=mirror.etag)
                handler.wfile.write(bytes(rest))
            else:
                serve(mirror, handler)

        return do

    for status in (200, 206):
        get.path.unlink(missing_ok=True)
        get.said.clear()
        mirror.script, mirror.etag = [cut_after(FIRST), replaced(status)], '"one"'
        assert get(mirror).read_bytes() == content
        assert any("has changed" in line for line in get.said) == (status == 206)


def test_a_shorter_file_than_before_starts_again(mirror, get, content):
    def shrunk(mirror, handler):
        head(handler, 416, Content_Range="bytes */10")

    mirror.script = [cut_after(FIRST), shrunk]
    assert get(mirror).read_bytes() == content
    assert mirror.ranges() == [None, f"bytes={FIRST}-", None]


def test_a_length_that_never_comes_gives_up(mirror, get, content, tmp_path):
    def too_long(mirror, handler):
        head(handler, 200, Content_Length=len(content) + 5)
        handler.wfile.write(content)

    mirror.script = [too_long] * 20
    with pytest.raises(DataError, match="connection was lost.*after 3 attempts"):
        get(mirror, attempts=3)
    assert not get.path.exists() and len(mirror.requests) == 4


def test_a_length_that_cuts_the_file_is_noticed(mirror, other, get, content):
    mirror.script = [answer(200, content[:FIRST])]
    assert get(mirror, other).read_bytes() == content
    assert "truncated" in get.said[0] and len(other.requests) == 1


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_not_taken_for_data(mirror, get, kind, tmp_path):
    mirror.script = [answer(200, b"<html>Please log in</html>", Content_Type=kind)]
    with pytest.raises(DataError, match="web page|no HDF5 file"):
        get(mirror)
    assert files(tmp_path) == []


def test_data_of_another_task_are_refused_and_kept_aside(mirror, content, tmp_path):
    rejected = get_task("AntVelocity").dsrl_file + ".rejected"
    with pytest.raises(DataError, match=f"8 columns, expected 27 for AntVelocity.*kept as .*{re.escape(rejected)}"):
        fetch("AntVelocity", tmp_path, mirrors=[mirror.url], sleep=print, say=str, progress=False)
    assert files(tmp_path) == [rejected] and (tmp_path / rejected).read_bytes() == content


def test_a_missing_file_is_looked_for_elsewhere_at_once(mirror, other, get, content):
    mirror.script = [answer(404)]
    assert get(mirror, other).read_bytes() == content
    assert get.waits == [] and len(mirror.requests) == 1
    assert json.loads(get.path.with_name(get.path.name + ".json").read_text())["url"].startswith(other.url)


def test_an_overloaded_server_is_asked_again_later(mirror, get, content):
    mirror.script = [answer(503), answer(503), answer(503, Retry_After=30), answer(429, Retry_After=10_000)]
    assert get(mirror).read_bytes() == content
    assert get.waits == [1, 2, 30, 60]


def test_a_mirror_that_is_down_is_skipped(other, get, content):
    down = Mirror(content)
    down.close()
    assert get(down, other, attempts=2).read_bytes() == content
    assert get.waits == [1] and "connection was lost" in get.said[0]


def test_offline_the_error_says_what_to_do_by_hand(get, tmp_path):
    down = [Mirror(b""), Mirror(b"")]
    for server in down:
        server.close()
    with pytest.raises(DataError) as caught:
        get(*down)
    for part in (*(server.url + TASK.dsrl_file for server in down), f"put it at {get.path}", "check the connection"):
        assert part in str(caught.value)
    assert files(tmp_path) == [] and get.waits == [1, 2, 4, 8] * 2


def test_a_changed_file_is_noticed(mirror, get, content):
    get(mirror)
    get.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="has changed since it was recorded"):
        get(mirror)
    assert len(mirror.requests) == 1


def test_a_mirror_that_gives_another_file_than_recorded_is_refused(mirror, other, get, content, tmp_path):
    get(other).rename(tmp_path / "first.hdf5")
    schema.save(schema.load(tmp_path / "first.hdf5", TASK).select([0]), tmp_path / "other.hdf5")
    mirror.content = (tmp_path / "other.hdf5").read_bytes()
    with pytest.raises(DataError, match="delete that record to accept another file"):
        get(mirror)
    assert get(mirror, other).read_bytes() == content


def test_a_file_put_there_by_hand_is_validated_and_recorded(get, content):
    get.path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="no HDF5 file"):
        get()
    get.path.write_bytes(content)
    assert get() == get.path
    get.path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="has changed"):
        get()


def test_two_processes_do_not_write_one_file(mirror, get):
    with Part(get.path), pytest.raises(DataError, match="another process"):
        get(mirror)
    assert mirror.requests == []


def test_a_folder_that_cannot_be_written_is_named(mirror, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="DSRL_DATASET_DIR"):
        fetch("CarCircle", tmp_path / "file" / "below", mirrors=[mirror.url])


def test_the_folder_is_that_of_dsrl(monkeypatch, tmp_path):
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path / "sets"))
    assert dataset_folder() == tmp_path / "sets"
    monkeypatch.delenv("DSRL_DATASET_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dataset_folder() == tmp_path / ".dsrl" / "datasets"
