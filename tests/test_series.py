"""Series of runs: --replicates."""

import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
from conftest import ROOT, contents, same, weights

from codebase.runs import course, environment


def results_of(folder):
    return sorted(folder.glob("logs/*/results.json"))


def test_replicates_are_the_runs_that_they_would_be_alone(vae, tmp_path):
    """The runs 1 and 2, bit for bit, and then their table."""
    usual = ["--train", 2, "--iw_eval", "1,3", "--z", 2]
    code, out, _ = vae(*usual, "--run", 1, "--replicates", 2)
    assert code == 0
    together = {path.name: weights(path, 30) for path in (tmp_path / "checkpoints").iterdir()}
    assert sorted(name[-8:] for name in together) == ["run=0001", "run=0002"]
    means = [json.loads(path.read_text())["results"]["test"]["nelbo"]["mean"] for path in results_of(tmp_path)]
    table = out[out.index("### vae") :]
    assert "| runs | 2 |\n| seeds | 1, 2 |\n| steps | 30 |" in table
    assert f"| test NELBO | {np.mean(means):.2f} ± {abs(means[0] - means[1]) / 2:.2f} |" in table
    assert "### Left out" not in table

    for name, there in together.items():
        vae(*usual, "--run", int(name[-1]), "--overwrite", 1)
        assert same(weights(tmp_path / "checkpoints" / name, 30), there)
    assert [json.loads(path.read_text())["results"]["test"]["nelbo"]["mean"] for path in results_of(tmp_path)] == means


@pytest.mark.parametrize("overwrite", [0, 1])
def test_a_series_that_is_stopped_says_how_it_is_resumed(vae, monkeypatch, overwrite):
    """--overwrite 1 would delete what was saved, also if the same command is given again."""
    monkeypatch.setattr(course, "should_stop", lambda signals, step: signals.append(2) or True)
    code, out, _ = vae("--z", 2, "--replicates", 2, "--overwrite", overwrite)
    assert code == 130
    assert f"the same command{' without --overwrite 1' * overwrite} resumes it" in out


@pytest.mark.slow
def test_a_series_goes_on_where_it_was_interrupted(vae, tmp_path, monkeypatch):
    """The first run finished, the second stopped after step 4 of 6, the third not begun: as if never interrupted."""
    vae = partial(vae, "--iter_save", 4, "--batch_size", 20)
    usual = ["--z", 2, "--replicates", 3, "--iter_max", 6]
    vae(*usual)
    expected = {path: weights(path, 6) for path in (tmp_path / "checkpoints").iterdir()}
    for each in ("checkpoints", "logs"):
        shutil.rmtree(tmp_path / each)

    vae("--z", 2, "--iter_max", 6)
    vae("--z", 2, "--iter_max", 4, "--run", 1)
    first = contents(min(tmp_path.glob("checkpoints/*"))) | contents(min(tmp_path.glob("logs/*")))
    code, out, _ = vae(*usual)
    assert code == 0
    assert out.count("already finished") == 1
    assert "resuming after step 4" in out
    assert "| runs | 3 |" in out
    assert all(path.read_bytes() == content for path, content in first.items())
    assert all(same(weights(path, 6), there) for path, there in expected.items())

    # All are finished; then more results are requested; then they are evaluated; then started again.
    everything = contents(tmp_path)
    _, again, _ = vae(*usual)
    assert again.count("already finished") == 3
    assert contents(tmp_path) == everything
    for _ in range(2):
        _, bounds, _ = vae(*usual, "--train", 2, "--iw_eval", 7)
        assert "| subset IWAE-7 |" in bounds
    assert bounds.count("already finished") == 3
    code, evaluated, _ = vae("--z", 2, "--replicates", 2, "--train", 0, "--iw_eval", 5)
    assert code == 0
    assert "| runs | 2 |" in evaluated
    assert "| subset IWAE-5 |" in evaluated
    code, anew, _ = vae(*usual, "--overwrite", 1)
    assert anew.count("trained 6 steps") == 3
    assert all(same(weights(path, 6), there) for path, there in expected.items())


def test_a_run_that_is_no_longer_whole_is_not_finished(vae, tmp_path):
    """Its training went on: until the new weights are evaluated, results.json does not call itself complete."""
    vae("--z", 2)
    (path,) = results_of(tmp_path)
    assert json.loads(path.read_text())["complete"] is True
    record = json.loads(path.read_text())
    del record["complete"]
    path.write_text(json.dumps(record))
    _, out, _ = vae("--z", 2, "--replicates", 2)
    assert "already finished" not in out
    assert json.loads(path.read_text())["complete"] is True


def test_the_supervised_baseline_has_replicates_though_it_has_no_bounds(on_digits):
    usual = ["--gw", 0, "--labels", 20, "--replicates", 2, "--train", 2]
    on_digits("run_ssvae.py", *usual)
    code, out, _ = on_digits("run_ssvae.py", *usual)
    assert code == 0
    assert out.count("already finished") == 2
    assert "| test accuracy, % |" in out


def test_another_script_or_package_has_another_digest(tmp_path, monkeypatch):
    """A run records the code that made it: a change of the script or of a file of the package changes the digest."""
    script = tmp_path / "run_mine.py"
    script.write_text("a = 1\n")
    monkeypatch.setattr(sys, "argv", [str(script)])
    before = environment.code_digest.__wrapped__()
    assert before == environment.code_digest.__wrapped__()
    script.write_text("a = 2\n")
    after = environment.code_digest.__wrapped__()
    assert after != before
    package = tmp_path / "codebase"
    shutil.copytree(ROOT / "codebase", package)
    monkeypatch.setattr(environment, "__file__", str(package / "runs" / "environment.py"))
    assert environment.code_digest.__wrapped__() == after
    with open(package / "utils.py", "a") as file:
        file.write("\nLOG_2PI = 0\n")
    assert environment.code_digest.__wrapped__() != after
