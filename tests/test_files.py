"""Files and folders appear whole or not at all, with the modes of any new file."""

import hashlib
import os
from pathlib import Path

import pytest

from saferule import files
from saferule.errors import RunError
from saferule.files import sha256, write_bytes, write_files, write_folder


def test_a_file_appears_in_a_folder_that_need_not_exist(tmp_path):
    path = tmp_path / "new" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two" and list(path.parent.iterdir()) == [path]
    assert sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as patched:  # the second of three, half written
        write = Path.write_bytes
        patched.setattr(Path, "write_bytes", lambda draft, text: write(draft, text[:2]) and 1 / (text != b"two"))
        write_files({path: b"one", tmp_path / "b": b"two", tmp_path / "c": b"three"})
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)  # the last step
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_modes_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_files({tmp_path / "a": b"", tmp_path / "b": b""}, new=True)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_what_somebody_else_was_faster_with_stays_and_nothing_is_lost(tmp_path):
    (tmp_path / "b").write_bytes(b"theirs")
    with pytest.raises(
        RunError, match="cannot get its name .*/b: something is there already: .*; until then"
    ) as caught:
        write_files({tmp_path / "a": b"one", tmp_path / "b": b"two"}, new=True)
    kept = [Path(place) for place in str(caught.value).rpartition("lies in ")[2].split(" and ")]
    assert [path.read_bytes() for path in kept] == [b"one", b"two"] and (tmp_path / "b").read_bytes() == b"theirs"
    assert set(tmp_path.iterdir()) == {tmp_path / "b", *kept}
    write_files({tmp_path / "c": b"three"}, new=True)
    assert (tmp_path / "c").read_bytes() == b"three"


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), write_folder(tmp_path / "folder") as draft:
        (draft / "file").write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with write_folder(tmp_path / "folder") as draft:
        (draft / "file").write_text("whole")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "file").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RunError, match="until then it lies in"), write_folder(tmp_path / "folder") as draft:
        (draft / "file").write_text("late")  # somebody was faster
    assert (tmp_path / "folder" / "file").read_text() == "whole"
    assert (draft / "file").read_text() == "late" and set(tmp_path.iterdir()) == {tmp_path / "folder", draft}
