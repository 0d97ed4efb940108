"""The layout of the code is what README.md says."""

import ast
import re

import pytest
from conftest import ROOT, printed_by

README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURE = re.search(r"Imports go downwards only:\n\n```\n(.*?)```", README, re.DOTALL)[1]
LEVELS = [re.findall(r"[\w/]+(?:\.py|/)(?=\s|$)", line.split("   ")[0]) for line in PICTURE.splitlines()]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.py"), *ROOT.glob("codebase/**/*.py")])


def level(file):
    """The line of the picture in which a file is, or its folder."""
    (found,) = (
        i for i, names in enumerate(LEVELS) if any(file == n or (n[-1] == "/" and file.startswith(n)) for n in names)
    )
    return found


def imported(file):
    """The files of the project that a file imports, as paths."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "codebase":
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                path = name.replace(".", "/")
                paths = f"{path}.py", f"{path}/__init__.py", f"{path.rpartition('/')[0]}.py"
                yield next(
                    (each for each in paths if (ROOT / each).is_file()), f"{path.rpartition('/')[0]}/__init__.py"
                )


@pytest.mark.parametrize("file", [file for file in FILES if file != "codebase/__init__.py"])
def test_imports_go_downwards(file):
    for other in imported(file):
        same_folder = file.rpartition("/")[0] == other.rpartition("/")[0]
        assert level(file) < level(other) or (level(file) == level(other) and same_folder), other


def test_there_is_no_cycle():
    below = {file: set(imported(file)) - {file} for file in FILES if file != "codebase/__init__.py"}
    while below:
        free = [file for file, others in below.items() if not others & below.keys()]
        assert free, below
        for file in free:
            del below[file]


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_short_and_in_the_table(file):
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= 250
    if file.startswith("codebase/") and (ROOT / file).read_text() and file != "codebase/__init__.py":
        assert f"`{file.removeprefix('codebase/')}`" in README or f"`{file.split('/')[-1]}`" in README


def test_the_table_names_files_that_are_there():
    table = README[README.index("| file in `codebase/`") : README.index("A run script, such as")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    for row in rows:
        first, *others = re.findall(r"`([\w/.]+)`", row)
        folder = first.rpartition("/")[0]
        for name in (first, *(f"{folder}/{other}".lstrip("/") for other in others)):
            assert (ROOT / "codebase" / name).is_file(), name


def test_the_package_is_imported_without_torchvision():
    """torchvision takes a second, so it is imported only where it is needed: not for --help, a wrong flag, a report."""
    program = "import sys, codebase.runs; print('torchvision' in sys.modules)"
    assert printed_by(program) == "False\n"
