"""The tables of runs."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from codebase.runs import tables


@pytest.fixture
def log(tmp_path):
    def write(name, run, nelbo, seed=None, precision="float32", test=(), experiment=(), **more):
        """A finished run's results.json. test: {number: mean} of the test set."""
        folder = tmp_path / "logs" / f"model={name}_run={run:04d}"
        folder.mkdir(parents=True)
        seed = run if seed is None else seed
        record = {
            "name": folder.name,
            "flags": {"run": run, "seed": seed, "precision": precision},
            "experiment": {"precision": precision, "seed": seed} | dict(experiment),
            "data": {"name": "mnist", "train": 60_000, "test": 10_000},
            "evaluated": {},
            "step": 20_000,
            "complete": True,
            "results": {"subset": {"nelbo": {"mean": nelbo, "se": 9.0, "n": 100}}},
        }
        if test:
            record["results"]["test"] = {number: {"mean": mean} for number, mean in test.items()}
        (folder / "results.json").write_text(json.dumps(record | more))
        return folder

    return write


@pytest.fixture
def report(script):
    """report(*args): the standard output of report.py, which succeeds."""

    def call(*args):
        code, out, err = script("report.py", *args)
        assert code == 0, err
        return out

    return call


@pytest.fixture
def error(script):
    """error(*args): the last line of the error with which report.py ends, without output."""

    def call(*args):
        code, out, err = script("report.py", *args)
        assert (code, out) == (2, "")
        return err.splitlines()[-1].removeprefix("report.py: error: ")

    return call


def rows(text):
    """The cells of a Markdown table's rows, without its head: {first cell: other cells}."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in lines[1:]}


GLYPHS = {"name": "glyphs", "train": 5, "test": 4}


# A table for each model


def test_mean_and_standard_error_over_the_runs_of_one_configuration(report, log):
    """1, 2, 6: mean 3, standard deviation sqrt(7), standard error sqrt(7 / 3) = 1.53. Each model has its table."""
    for run, nelbo in enumerate((1.0, 2.0, 6.0)):
        log("vae_z=10", run, nelbo)
    log("vae_z=2", 5, 50.0)
    log("gmvae_k=500", 0, 7.0)
    gmvae, vae = report().split("\n\n### vae\n\n")
    assert gmvae.startswith("### gmvae\n\n")
    assert rows(gmvae)["subset NELBO"] == ["7.00"]
    assert vae == (
        "| mean ± standard error over the runs | vae_z=2 | vae_z=10 |\n"
        "|---|---|---|\n"
        "| runs | 1 | 3 |\n"
        "| seeds | 5 | 0, 1, 2 |\n"
        "| steps | 20,000 | 20,000 |\n"
        "| data | mnist (60,000 + 10,000 images) | mnist (60,000 + 10,000 images) |\n"
        "| precision | float32 | float32 |\n"
        "| subset NELBO | 50.00 | 3.00 ± 1.53 |\n"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"step": 30_000},
        {"data": GLYPHS},
        {"data": {"name": "mnist", "train": 70_000, "test": 10_000}},
        {"data": GLYPHS | {"name": "\ud800"}},  # a character that cannot be printed
        {"precision": "high"},
        {"experiment": {"lr": 0.1}},
    ],
)
def test_configurations_are_never_mixed_even_where_their_names_agree(report, error, log, other):
    log("vae_z=10", 0, 1.0)
    log("vae_z=10", 1, 2.0, **other)
    log("vae_z=2", 0, 2.0)
    table = rows(report("vae_z=10"))
    assert table["runs"] == ["1", "1"]
    assert sorted(table["subset NELBO"]) == ["1.00", "2.00"]
    assert "with one number of steps; there are vae_z=2 (20,000 steps), vae_z=10 (" in error(
        "--difference", "vae_z=10", "vae_z=2"
    )


def test_runs_of_other_seeds_are_of_one_configuration_and_one_seed_counts_once(script, log):
    log("vae_z=10", 0, 1.0)
    log("vae_z=10_seed=7", 1, 3.0, seed=7)
    log("vae_z=10_seed=7", 2, 3.0, seed=7)
    _, out, err = script("report.py")
    assert rows(out)["seeds"] == ["0, 7"]
    assert rows(out)["subset NELBO"] == ["2.00 ± 1.00"]
    assert "run=0002/results.json: has the same seed as run 1" in err


def test_of_numbers_that_only_some_runs_have_it_says_how_many(report, log):
    for run in range(3):
        log("vae_z=10", run, 1.0, test={"nelbo": 5.0 + run} if run else {})
    assert rows(report())["test NELBO"] == ["6.50 ± 0.50 (2 of 3 runs)"]


def test_which_numbers_there_are_and_how_they_are_called(report, log):
    """Bits are the nats again. A number without a printed name is called as it is, such as a new term of a loss."""
    test = {"accuracy_percent": 93.0, "nelbo_bits": 7.7, "ess": 0.1, "iwae_10": 4.0, "total_correlation": 2.5}
    results = {"test": {name: {"mean": mean} for name, mean in test.items()} | {"confusion": [[1]], "latent_units": {}}}
    log("ssvae_gw=001", 0, 1.0, results=results | {"": {"mi": {"mean": 0.5}}})
    assert list(rows(report()).items())[5:] == [
        ("test accuracy, %", ["93.00"]),
        ("test IWAE-10", ["4.00"]),
        ("test total_correlation", ["2.50"]),
        ("mi", ["0.50"]),
    ]


def test_unfinished_and_damaged_runs_are_named_and_left_out(script, log, tmp_path):
    log("vae_z=10", 0, 1.0)
    log("vae_z=10", 1, 2.0, complete=False)
    (log("vae_z=10", 2, 2.0) / "results.json").write_text('{"na')
    (log("vae_z=10", 3, 2.0) / "results.json").write_text('{"complete": true, "step": 1, "results": {"a": 1}}')
    (log("vae_z=10", 4, 2.0) / "results.json").write_text("[" * 100_000)
    log("vae_z=10", 5, float("nan"))
    (log("vae_z=10", 6, 2.0) / "results.json").unlink()
    log("vae_z=10", 7, 1e300)
    whys = ["not finished", *["cannot be read"] * 4, "not finished", "cannot be read"]
    left_out = [f"run={run:04d}/results.json: {why}" for run, why in enumerate(whys, start=1)]
    for args in ((), ("--by", "subset nelbo"), ("--csv", "-")):
        code, out, err = script("report.py", *args)
        assert code == 0
        assert "run=" not in out
        assert all(sentence in line for sentence, line in zip(left_out, err.splitlines(), strict=True))
    assert rows(script("report.py")[1])["runs"] == ["1"]
    after_a_series = tables.report(*tables.read((tmp_path / "logs").iterdir()))
    assert all(sentence in after_a_series.split("### Left out")[1] for sentence in left_out)


def test_configurations_have_every_number(log, tmp_path):
    for run, nelbo in enumerate((1.0, 2.0, 6.0)):
        trained = {"seconds": 3.0, "device": "cpu", "date": "2026-01-02T03:04:05"}
        log("vae_z=10", run, nelbo, trained=trained, experiment={"z": 10})
    (configuration,), _ = tables.read((tmp_path / "logs").iterdir())
    number = configuration["results"]["subset nelbo"]
    assert number["mean"] == pytest.approx(3)
    assert number.pop("se") == pytest.approx((7 / 3) ** 0.5)
    assert configuration == {
        "model": "vae",
        "configuration": "vae_z=10",
        "step": 20_000,
        "data": "mnist (60,000 + 10,000 images)",
        "precision": "float32",
        "experiment": {"precision": "float32", "z": 10},
        "runs": [0, 1, 2],
        "seeds": [0, 1, 2],
        "seconds": [3.0, 3.0, 3.0],
        "made": {"device": ["cpu"], "torch": [], "commit": [], "day": ["2026-01-02"]},
        "results": {"subset nelbo": {"mean": 3.0, "values": [1.0, 2.0, 6.0]}},
    }


def test_configurations_are_sorted_by_the_numbers_in_their_names_then_by_steps(report, log):
    """z=2 before z=10; lr=3e-05 before lr=0.0003 before lr=0.001; a name before its continuations."""
    names = ["vae_z=2", "vae_z=10", "vae_z=10_lr=3e-05", "vae_z=10_lr=0.0003", "vae_z=10_lr=0.001", "vae_z=100"]
    for name in reversed(names):
        log(name, 0, 1.0)
    assert f"| mean ± standard error over the runs | {' | '.join(names)} |" in report()
    for run, step in enumerate((10_000, 500, 30_000), start=1):
        log("vae_z=2", run, 1.0, step=step)
    assert rows(report("vae_z=2"))["steps"] == ["500", "10,000", "20,000", "30,000"]


# PATTERN


def test_a_pattern_selects_configurations_and_what_is_said_of_left_out_runs(script, log):
    for name in ("vae_z=2", "vae_z=10", "gmvae_k=500"):
        log(name, 0, 1.0)
        log(name, 1, 1.0, complete=False)
    code, out, err = script("report.py", "vae_*")
    assert code == 0
    assert "| vae_z=2 | vae_z=10 |" in out
    assert "model=vae_z=2_run=0001/results.json: not finished" in err
    assert "gmvae" not in out + err + script("report.py", "vae_*", "--csv", "-")[1]
    assert "| mean ± standard error over the runs | vae_z=2 |\n" in script("report.py", "vae_z=2")[1]


def test_nothing_there_or_no_match_and_nowhere_to_write(error, log):
    assert error() == "no finished run under logs/ has a configuration that matches *."
    log("vae_z=10", 0, 1.0)
    log("gmvae_k=500", 0, 1.0, complete=False)
    for pattern in ("ssvae*", "gmvae*"):
        assert error(pattern) == f"no finished run under logs/ has a configuration that matches {pattern}."
    assert "folder.csv" in error("--csv", "no/such/folder.csv")


# --by


def log_three(log):
    """Three configurations. The best NELBO has the worst accuracy; one has neither."""
    for run, nelbo in enumerate((99.0, 101.0)):
        log("vae_z=10", run, nelbo, test={"nelbo": nelbo + 1, "accuracy_percent": 80.0, "classifier_percent": 3.0})
    log("vae_z=2", 0, 120.0, test={"nelbo": 121.0, "accuracy_percent": 90.0, "classifier_percent": 4.0})
    log("vae_z=1", 0, 150.0)


def test_configurations_in_rows_best_first(report, log):
    """Means 101 ± 1 (of 100 and 102) and 121. The columns: the chosen number, then the others."""
    log_three(log)
    best_first = (
        "| configuration | runs | test NELBO | subset NELBO | test accuracy, % | test classifier's accuracy, % |\n"
        "|---|---|---|---|---|---|\n"
        "| vae_z=10 | 2 | 101.00 ± 1.00 | 100.00 ± 1.00 | 80.00 ± 0.00 | 3.00 ± 0.00 |\n"
        "| vae_z=2 | 1 | 121.00 | 120.00 | 90.00 | 4.00 |\n"
    )
    assert report("--by", "test nelbo") == best_first
    head, line, *others = best_first.splitlines()
    assert report("--by", "test nelbo", "--reverse").splitlines() == [head, line, *reversed(others)]
    assert list(rows(report("--by", "subset nelbo"))) == ["vae_z=10", "vae_z=2", "vae_z=1"]


@pytest.mark.parametrize("name", ["test accuracy_percent", "Test Accuracy, %", "test classifier_percent"])
def test_a_larger_accuracy_is_better(report, log, name):
    """And a number is given as in results.json or as printed."""
    log_three(log)
    assert list(rows(report("--by", name))) == ["vae_z=2", "vae_z=10"]
    assert list(rows(report("--by", name, "--reverse"))) == ["vae_z=10", "vae_z=2"]


def test_steps_and_data_have_columns_if_they_differ(report, log):
    log("vae_z=2", 0, 1.0)
    log("vae_z=10", 0, 2.0, step=500)
    log("vae_z=20", 0, 3.0, step=500, data=GLYPHS)
    out = report("--by", "subset nelbo")
    assert "| configuration | runs | steps | data | subset NELBO |" in out
    assert rows(out)["vae_z=20"] == ["1", "500", "glyphs (5 + 4 images)", "3.00"]
    assert "| configuration | runs | subset NELBO |" in report("vae_z=?", "--by", "subset nelbo")
    assert "| configuration | runs | data | subset NELBO |" in report("vae_z=*0", "--by", "subset nelbo")


def test_an_unknown_number(error, log):
    log("vae_z=1", 0, 1.0, test={"nelbo": 1.0})
    assert error("--by", "nelbo") == "there is no number 'nelbo'; there are subset nelbo, test nelbo."


# --difference


def test_differences_are_between_runs_of_the_same_seed(report, error, log, tmp_path):
    """1, 2, 9 and 4, 5, 1 with the seeds 0, 1, 2 and 1, 0, 5: seed 0 differs by 4, seed 1 by 2.

    The columns are means over the same seeds: (1 + 2) / 2 and (4 + 5) / 2. No seed has the test NELBO in both.
    """
    for run, nelbo in enumerate((1.0, 2.0, 9.0)):
        log("vae_z=10", run, nelbo, test={"nelbo": 7.0} if run == 0 else {})
    for run, (seed, nelbo) in enumerate(((1, 4.0), (0, 5.0), (5, 1.0))):
        log("vae_z=2", run, nelbo, seed=seed, step=500, test={"nelbo": 8.0} if seed == 1 else {})
    log("vae_z=3", 9, 1.0)
    log("vae_z=4", 9, 1.0, complete=False)

    a, b = tables.read((tmp_path / "logs").glob("model=vae_z=[12]*"))[0]
    assert tables.difference(a, b, "subset nelbo") == {"mean": 3.0, "se": 1.0, "n": 2}
    out = report("--difference", "vae_z=10", "vae_z=2")
    assert "| vae_z=10 | vae_z=2 | difference | seeds in both |" in out
    assert rows(out)["steps"][:2] == ["20,000", "500"]
    assert rows(out)["subset NELBO"] == ["1.50 ± 0.50", "4.50 ± 0.50", "3.000 ± 1.000", "2"]
    assert rows(out)["seeds"][:2] == ["0, 1", "1, 0"]
    assert rows(out)["test NELBO"][:2] == ["7.00 (1 of 2 runs)", "8.00 (1 of 2 runs)"]
    assert not any("".join(rows(out)["test NELBO"][2:]).strip(" |"))
    assert rows(report("--difference", "vae_z=2", "vae_z=10"))["subset NELBO"][2:] == ["-3.000 ± 1.000", "2"]

    assert error("--difference", "vae_z=3", "vae_z=10") == "vae_z=3 and vae_z=10 have no seed in common."
    for unknown in ("vae_z=4", "vae_z=5"):  # not finished, and absent
        assert "one configuration of each name, with one number of steps; there are vae_z=10 (20,000 steps); " in error(
            "--difference", unknown, "vae_z=10"
        )


# --csv


def test_csv_has_a_line_for_each_run_and_a_column_for_each_flag_and_number(report, log, tmp_path):
    third = 1 / 3  # needs all 16 digits
    log("vae_z=10", 0, third, test={"nelbo": 2.5e-10}, experiment={"z": 10, "lr": 0.001})
    log("vae_z=10_seed=7", 1, 3.0, seed=7, experiment={"z": 10, "lr": 0.001})
    log("gmvae_k=500", 0, 4.0, step=500, experiment={"k": 500, "lr": 0.01})
    text = report("--csv", "-")
    gmvae, first, second = csv.DictReader(io.StringIO(text))
    data = "mnist (60,000 + 10,000 images)"
    about = {"configuration": "vae_z=10", "step": "20000", "data": data, "run": "0", "seed": "0"}
    flags = {"precision": "float32", "z": "10", "lr": "0.001", "k": ""}
    assert first == about | flags | {"subset nelbo": str(third), "test nelbo": "2.5e-10"}
    assert second == first | {"run": "1", "seed": "7", "subset nelbo": "3.0", "test nelbo": ""}
    assert (gmvae["configuration"], gmvae["step"], gmvae["k"], gmvae["z"]) == ("gmvae_k=500", "500", "500", "")
    assert report("--csv", "runs.csv") == ""
    assert (tmp_path / "runs.csv").read_text() == text


@pytest.mark.parametrize("configurations", [1, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_closed_pipe_is_no_error(log, tmp_path, configurations):
    """As in `| head -1`, for an output that a pipe holds, and for one that is more."""
    for i in range(configurations):
        log(f"vae_z={i}", 0, float(i))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, ROOT / "report.py"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        if configurations > 1:
            assert process.stdout.readline() == b"### vae\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
