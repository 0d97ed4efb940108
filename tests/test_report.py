"""The tables of runs."""

import json

import pytest


@pytest.fixture
def log(tmp_path):
    def write(name, run, nelbo, **more):
        folder = tmp_path / "logs" / f"model={name}_run={run:04d}"
        folder.mkdir(parents=True)
        record = {
            "name": folder.name,
            "flags": {"run": run, "seed": run},
            "step": 20_000,
            "results": {"subset": {"nelbo": {"mean": nelbo, "se": 9.0, "n": 100}}} | more,
        }
        (folder / "results.json").write_text(json.dumps(record))
        return folder

    return write


def test_mean_and_standard_error_over_the_runs_of_one_experiment(script, log):
    """1, 2, 6: mean 3, standard deviation sqrt(7), standard error sqrt(7 / 3) = 1.53."""
    for run, nelbo in enumerate((1.0, 2.0, 6.0)):
        log("vae_z=10", run, nelbo)
    log("vae_z=2", 0, 50.0)
    code, out, _ = script("report.py")
    assert code == 0
    assert "| mean of 3 | | 3.00 ± 1.53 |" in out
    assert "| 2 | 2 | 6.00 |" in out
    assert "| mean of 1 | | 50.00 |" in out


def test_runs_of_different_lengths_are_not_averaged(script, log):
    log("vae_z=10", 0, 1.0)
    folder = log("vae_z=10", 1, 2.0)
    (folder / "results.json").write_text((folder / "results.json").read_text().replace("20000", "10000"))
    _, out, _ = script("report.py")
    assert out.count("mean of 1") == 2
    assert "model=vae_z=10, 10,000 steps" in out


def test_numbers_that_only_some_runs_have_are_left_out(script, log):
    log("vae_z=10", 0, 1.0, test={"nelbo": {"mean": 5.0, "se": 1.0, "n": 3}})
    log("vae_z=10", 1, 2.0)
    _, out, _ = script("report.py")
    assert "| run | seed | subset NELBO |" in out


def test_accuracies_are_in_percent(script, log):
    for run, percent in enumerate((93.0, 94.0)):
        accuracy = {"mean": percent, "se": 0.2, "n": 10_000}
        log("ssvae_gw=001_cw=100", run, 1.0, test={"accuracy_percent": accuracy, "confusion": [[1]]})
    _, out, _ = script("report.py")
    assert "| run | seed | subset NELBO | test accuracy, % |" in out
    assert "| mean of 2 | | 1.00 ± 0.00 | 93.50 ± 0.50 |" in out


def test_bits_are_the_nats_again_and_left_out(script, log):
    log("fsvae", 0, -600.0, test={"nelbo": {"mean": 1.0, "se": 1.0, "n": 9}, "nelbo_bits": {"mean": 7.7}})
    _, out, _ = script("report.py")
    assert "| run | seed | subset NELBO | test NELBO |" in out


def test_unfinished_and_damaged_runs_are_named_and_left_out(script, log):
    log("vae_z=10", 0, 1.0)
    (log("vae_z=10", 1, 2.0) / "results.json").write_text('{"name": "x", "results": {}}')
    (log("vae_z=10", 2, 2.0) / "results.json").write_text('{"na')
    (log("vae_z=10", 3, 2.0) / "results.json").write_text('{"name": 3, "step": 1, "results": {"a": 1}}')
    code, out, err = script("report.py")
    assert code == 0
    assert "mean of 1" in out
    assert "run=0001/results.json: not finished" in err
    assert "run=0002/results.json: cannot be read" in err
    assert "run=0003/results.json: cannot be read" in err


def test_nothing_there(script):
    code, _, err = script("report.py")
    assert code == 2
    assert "no finished run under logs/" in err
