"""Files that are complete or absent, and folders that one process uses at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from codebase.errors import InputError
from codebase.runs import files


def test_a_folder_is_locked(tmp_path):
    """Refused while another holds it; free again afterwards."""
    folder = tmp_path / "run"
    refused = pytest.raises(InputError, match=r"run is in use by another process")
    for _ in range(2):
        with files.locked(folder), refused, files.locked(folder):
            pass


@pytest.mark.slow
def test_a_folder_is_locked_while_its_process_lives(tmp_path):
    """Refused in another process; free again when that has been killed."""
    folder = tmp_path / "run"
    hold = "import sys, time; from pathlib import Path; from codebase.runs import files\n"
    hold += "with files.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", hold, folder], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="in use"), files.locked(folder):
            pass
        process.kill()
    with files.locked(folder):
        pass


class Disk:
    """What a power cut may leave: a file's content is safe once it is synced, a name once its folder is."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.contents, self.names = folder, {}, None  # inode -> content; name -> inode
        self.syncing, self.renaming = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "replace", self.replace)
        self.fsync_names()

    def fsync_names(self):
        self.names = {path.name: path.stat().st_ino for path in self.folder.iterdir()}

    def fsync(self, fd):
        self.syncing(fd)
        inode = os.fstat(fd).st_ino
        if inode == self.folder.stat().st_ino:
            self.fsync_names()
        for path in self.folder.iterdir():
            if path.stat().st_ino == inode:
                self.contents[inode] = path.read_bytes()

    def replace(self, a, b):
        inode = Path(a).stat().st_ino
        assert self.contents.get(inode) == Path(a).read_bytes(), f"{b} may be empty after a power cut"
        self.renaming(a, b)

    def after_a_power_cut(self, path):
        return self.contents[self.names[path.name]]


def test_a_power_cut_leaves_a_whole_file_in_each_place(tmp_path, monkeypatch):
    path = tmp_path / "file"
    disk = Disk(tmp_path, monkeypatch)
    files.write_atomically(path, lambda file: file.write(b"old"))
    assert disk.after_a_power_cut(path) == b"old"
    files.write_atomically(path, lambda file: file.write(b"new"))
    assert disk.after_a_power_cut(path) == b"new"


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
