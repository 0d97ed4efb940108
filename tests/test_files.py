"""Files that are whole or absent, and folders that one process uses at a time."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from codebase.errors import InputError
from codebase.runs import files


def test_a_folder_is_locked_while_its_process_lives(tmp_path):
    """Refused here and in another process; free again when that has been killed."""
    folder = tmp_path / "run"
    refused = pytest.raises(InputError, match=r"run is in use by another process")
    with files.locked(folder), refused, files.locked(folder):
        pass
    hold = "import sys, time; from pathlib import Path; from codebase.runs import files\n"
    hold += "with files.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", hold, folder], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="in use"), files.locked(folder):
            pass
        process.kill()
    with files.locked(folder):
        pass


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path = tmp_path / "file"
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(f"to {b.name}"), replace(a, b)))
    files.write_atomically(path, lambda file: file.write(b"new"))
    assert order == ["fsync", "to file", "fsync"]  # the content, the name
    assert path.read_bytes() == b"new"


def test_a_file_is_whole_or_the_old_one(tmp_path):
    """A write that fails halfway leaves the old content and nothing beside it."""
    path = tmp_path / "file"
    files.write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        files.write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def acquire(self, timeout):
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with files.locked(tmp_path):
        assert "without locks: make sure that no other process" in capsys.readouterr().out
