"""docs/sweeps.md: its commands on small data with fewer values, and its lines of pandas."""

import json
import os
import re
import statistics
import subprocess

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
PANDAS = re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture
def commands(tmp_path):
    """commands(block): the commands that a block of shell would start, as lists of words. Loops take two values."""
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" ''\n")  # a word in each line, then an empty one
    program.chmod(0o755)

    def started(block):
        short = re.sub(r"for (\w+) in (\S+ \S+)[^;]*;", r"for \1 in \2;", block)
        environment = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
        out = subprocess.run(["sh", "-ec", short], env=environment, check=True, capture_output=True, text=True).stdout
        return [command.split("\n") for command in out.removesuffix("\n\n").split("\n\n")]

    return started


def test_a_sweep_and_its_tables(commands, vae, script, tmp_path):
    """Two sizes of z and two learning rates, one of them the default, two runs each."""
    sweep, (by,), (difference,), (to_csv,) = map(commands, BLOCKS)
    assert len(sweep) == 4
    for name, *words in sweep:
        assert name == "run_vae.py"
        words = ["50" if word == "10000" else word for word in words]  # of 300 images
        code, _, err = vae(*words, "--iter_max", 3, "--hidden", 20)
        assert code == 0, err
    found, names = {}, {}
    for path in tmp_path.glob("logs/*/results.json"):
        record = json.loads(path.read_text())
        key = record["flags"]["z"], record["flags"]["lr"]
        found.setdefault(key, []).append(record["results"]["validation"]["nelbo"]["mean"])
        names[key] = record["name"].partition("_run=")[0].removeprefix("model=")
    assert [len(of) for of in found.values()] == [2] * 4
    expected = {key: statistics.mean(of) for key, of in found.items()}

    def report(command):
        code, out, err = script(*command)
        assert (code, err) == (0, "")
        return [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]

    head, *rows = report(by)
    assert head[:3] == ["configuration", "runs", "validation NELBO"]
    assert [float(row[2].split()[0]) for row in rows] == [round(mean, 2) for mean in sorted(expected.values())]

    _, *rows = report([*difference[:-2], names[2, 0.001], names[2, 0.0003]])
    (nelbo,) = (row for row in rows if row[0] == "validation NELBO")
    change = expected[2, 0.0003] - expected[2, 0.001]
    assert (float(nelbo[3].split()[0]), nelbo[4]) == (pytest.approx(change, abs=0.001), "2")

    report(to_csv)
    namespace = {}
    exec(PANDAS, namespace)
    means = namespace["means"]
    assert means.shape == (2, 2)
    for (z, lr), mean in expected.items():
        assert means.loc[z, lr] == pytest.approx(mean, rel=1e-12)
