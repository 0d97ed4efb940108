"""Files that are complete or absent, and folders that one process uses at a time."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from codebase.runs import files


def test_a_folder_is_locked(tmp_path):
    """Refused while another holds it; free again afterwards. (Between processes: test_series.py.)"""
    folder = tmp_path / "run"
    refused = pytest.raises(files.InUse, match=r"run is in use by another process\. Stop that one, or give another")
    for _ in range(2):
        with files.locked(folder), refused, files.locked(folder):
            pass
    assert not folder.exists()  # it is empty


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    """Whatever it says, this is a remark. Another error names the file and the reason."""
    numbers = errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=[OSError(number, os.strerror(number)) for number in numbers]))
    for _ in numbers[:3]:
        with files.locked(tmp_path):
            assert "without locks: make sure that no other process" in capsys.readouterr().out
    with pytest.raises(OSError, match=f"Input/output error: '{tmp_path}/.lock'"), files.locked(tmp_path):
        pass


class Disk:
    """What a power cut may leave: a file's content is safe once it is synced, a name once its folder is."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.contents, self.names = folder, {}, {}  # inode -> content; name -> inode
        self.syncing, self.renaming = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "replace", self.replace)

    def fsync(self, fd):
        self.syncing(fd)
        inode = os.fstat(fd).st_ino
        if inode == self.folder.stat().st_ino:
            self.names = {path.name: path.stat().st_ino for path in self.folder.iterdir()}
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
    for content in (b"old", b"new"):
        files.write_atomically(path, lambda file, content=content: file.write(content))
        assert disk.after_a_power_cut(path) == content


@pytest.mark.parametrize("place", ["write", "fsync"])
def test_a_file_is_whole_or_the_old_one(tmp_path, monkeypatch, place):
    """A write that fails halfway leaves the old content and nothing beside it."""
    path = tmp_path / "file"
    files.write_atomically(path, lambda file: file.write(b"old"))

    def fail(*args):
        raise OSError(28, "no space left")

    if place == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        files.write_atomically(path, lambda file: file.write(b"half of the new") if place == "fsync" else fail())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
