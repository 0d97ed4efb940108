"""The tables of runs."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from codebase.runs import tables

RECORD = {"data": {"name": "mnist", "train": 60_000, "test": 10_000}, "step": 20_000, "complete": True}


@pytest.fixture
def log(tmp_path):
    def write(name, run, nelbo, seed=None, flags=None, **more):
        folder = tmp_path / "logs" / f"model={name}_run={run:04d}"
        folder.mkdir(parents=True)
        record = RECORD | {
            "name": folder.name,
            "flags": {"run": run, "seed": run if seed is None else seed, "precision": "medium"} | (flags or {}),
            "results": {"subset": {"nelbo": {"mean": nelbo, "se": 9.0, "n": 100}}},
        }
        record["results"] |= more.pop("results", {})
        (folder / "results.json").write_text(json.dumps(record | more))
        return folder

    return write


def test_a_number_that_has_no_name_of_its_own_is_called_as_it_is(script, log):
    """Such as a new term of a loss."""
    log("vae_z=10", 0, 1.0, results={"test": {"total_correlation": {"mean": 2.5, "se": 0.1, "n": 3}}})
    assert "| test total_correlation | 2.50 |" in script("report.py")[1]


def test_mean_and_standard_error_over_the_runs_of_one_configuration(script, log):
    """1, 2, 6: mean 3, standard deviation sqrt(7), standard error sqrt(7 / 3) = 1.53."""
    for run, nelbo in enumerate((1.0, 2.0, 6.0)):
        log("vae_z=10", run, nelbo)
    log("vae_z=2", 5, 50.0)
    code, out, _ = script("report.py")
    assert code == 0
    assert out == (
        "### vae\n\n"
        "| mean ± standard error over the runs | vae_z=2 | vae_z=10 |\n"
        "|---|---|---|\n"
        "| runs | 1 | 3 |\n"
        "| seeds | 5 | 0, 1, 2 |\n"
        "| steps | 20,000 | 20,000 |\n"
        "| data | mnist (60,000 + 10,000 images) | mnist (60,000 + 10,000 images) |\n"
        "| precision | medium | medium |\n"
        "| subset NELBO | 50.00 | 3.00 ± 1.53 |\n"
    )


def test_runs_from_before_a_flag_existed_are_in_the_same_column(script, log):
    """They have the same name, so the new flag has its default. Another value of a flag that both know differs."""
    log("vae_z=10", 0, 1.0, experiment={"z": 10, "seed": 0})
    log("vae_z=10", 1, 2.0, experiment={"z": 10, "seed": 1, "hidden": 300})
    log("vae_z=10", 2, 6.0, experiment={"z": 10, "seed": 2, "hidden": 300, "validation": 0})
    _, out, _ = script("report.py")
    assert "| subset NELBO | 3.00 ± 1.53 |" in out
    log("vae_z=10", 3, 6.0, experiment={"z": 10, "seed": 3, "hidden": 200})
    _, out, _ = script("report.py")
    assert "| runs | 3 | 1 |" in out


def test_runs_of_different_code_are_named(script, log):
    """They are in one column, and the table says so; a column of one code alone does not."""
    for run, code in enumerate(("aaaa", "bbbb", "aaaa")):
        log("vae_z=10", run, 1.0, trained={"code": code, "torch": "2.9"})
    log("vae_z=2", 0, 1.0, trained={"code": "cccc", "torch": "2.9"})
    _, out, _ = script("report.py")
    assert "| code | cccc | aaaa, bbbb |" in out
    assert "| torch |" not in out
    by = script("report.py", "--by", "subset nelbo")[1]
    assert "| configuration | runs | code |" in by
    assert "| code |" not in script("report.py", "vae_z=2")[1]


def test_a_table_for_each_model(script, log):
    log("vae_z=10", 0, 1.0)
    log("gmvae_z=10_k=500", 0, 1.0)
    _, out, _ = script("report.py")
    assert "### vae\n" in out
    assert "### gmvae\n" in out


@pytest.mark.parametrize(
    "other",
    [
        {"step": 30_000},
        {"data": {"name": "glyphs", "train": 60_000, "test": 10_000}},
        {"data": {"name": "mnist", "train": 50_000, "test": 10_000}},
        {"flags": {"precision": "highest"}},
        {"experiment": {"lr": 0.1, "seed": 1}},
    ],
)
def test_configurations_are_never_mixed_even_where_their_names_agree(script, log, other):
    log("vae_z=10", 0, 1.0)
    log("vae_z=10", 1, 2.0, **other)
    _, out, _ = script("report.py")
    assert "| runs | 1 | 1 |" in out
    assert "| subset NELBO | 1.00 | 2.00 |" in out


def test_runs_of_other_seeds_are_of_one_configuration_and_one_seed_counts_once(script, log):
    log("vae_z=10", 0, 1.0)
    log("vae_z=10_seed=7", 1, 3.0, seed=7)
    log("vae_z=10_seed=7", 2, 3.0, seed=7)
    _, out, _ = script("report.py")
    assert "| runs | 2 |" in out
    assert "| seeds | 0, 7 |" in out
    assert "| subset NELBO | 2.00 ± 1.00 |" in out
    assert "run=0002/results.json: has the same seed as run 1" in out


def test_of_numbers_that_only_some_runs_have_it_says_how_many(script, log):
    for run in range(3):
        there = {"test": {"nelbo": {"mean": 5.0 + run, "se": 1.0, "n": 3}}} if run else {}
        log("vae_z=10", run, 1.0, results=there)
    _, out, _ = script("report.py")
    assert "| test NELBO | 6.50 ± 0.50 (2 of 3 runs) |" in out


def test_accuracies_are_in_percent_and_bits_are_the_nats_again_and_left_out(script, log):
    for run, percent in enumerate((93.0, 94.0)):
        test = {"accuracy_percent": {"mean": percent}, "confusion": [[1]], "nelbo_bits": {"mean": 7.7}}
        log("ssvae_gw=001_cw=100", run, 1.0, results={"test": test | {"ess": {"mean": 0.1}, "latent_units": {}}})
    _, out, _ = script("report.py")
    assert out.splitlines()[-2:] == ["| subset NELBO | 1.00 ± 0.00 |", "| test accuracy, % | 93.50 ± 0.50 |"]


def test_unfinished_and_damaged_runs_are_named_and_left_out(script, log, tmp_path):
    log("vae_z=10", 0, 1.0)
    log("vae_z=10", 1, 2.0, complete=False)
    (log("vae_z=10", 2, 2.0) / "results.json").write_text('{"na')
    (log("vae_z=10", 3, 2.0) / "results.json").write_text('{"complete": true, "step": 1, "results": {"a": 1}}')
    (log("vae_z=10", 4, 2.0) / "results.json").write_text("[" * 100_000)
    log("vae_z=10", 5, float("nan"))
    (log("vae_z=10", 6, 2.0) / "results.json").unlink()
    log("vae_z=10", 7, 1e300)
    code, out, _ = script("report.py")
    assert code == 0
    assert "| runs | 1 |" in out
    table, left_out = out.split("### Left out")
    assert "run=" not in table
    for run, why in enumerate(["not finished", *["cannot be read"] * 4, "not finished", "cannot be read"], start=1):
        assert f"run={run:04d}/results.json: {why}" in left_out


def test_configurations_have_every_number(log, tmp_path):
    for run, nelbo in enumerate((1.0, 2.0, 6.0)):
        log("vae_z=10", run, nelbo, trained={"seconds": 3.0, "device": "cpu", "date": "2026-01-02T03:04:05"})
    (configuration,), _ = tables.read((tmp_path / "logs").iterdir())
    assert configuration["configuration"] == "vae_z=10"
    assert configuration["seeds"] == [0, 1, 2]
    assert configuration["seconds"] == [3.0, 3.0, 3.0]
    assert configuration["made"]["device"] == ["cpu"]
    assert configuration["made"]["commit"] == []  # not known
    assert configuration["made"]["day"] == ["2026-01-02"]
    number = configuration["results"]["subset nelbo"]
    assert number["values"] == [1.0, 2.0, 6.0]
    assert number["mean"] == pytest.approx(3)
    assert number["se"] == pytest.approx((7 / 3) ** 0.5)


def test_nothing_there_and_nowhere_to_write(script, log):
    code, _, err = script("report.py")
    assert code == 2
    assert "no finished run under logs/" in err
    log("vae_z=10", 0, 1.0)
    code, _, err = script("report.py", "--csv", "no/such/folder.csv")
    assert code == 2
    assert len(err.splitlines()) == 1


def rows(text):
    """The cells of a Markdown table's rows, without its head: {first cell: other cells}."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in lines[1:]}


def numbers(**of_test):
    """The results of a test set."""
    return {"test": {name: {"mean": value} for name, value in of_test.items()}}


# The order of configurations


def test_numbers_in_names_are_sorted_by_value(script, log):
    """z=2 before z=10; lr=3e-05 before lr=0.0003 before lr=0.001; a name before its continuations."""
    names = ["vae_z=2", "vae_z=10", "vae_z=10_lr=3e-05", "vae_z=10_lr=0.0003", "vae_z=10_lr=0.001", "vae_z=100"]
    for name in reversed(names):
        log(name, 0, 1.0)
    log("gmvae_z=10_k=500", 0, 1.0)
    assert f"| mean ± standard error over the runs | {' | '.join(names)} |" in script("report.py")[1]


def test_configurations_of_one_name_are_sorted_by_steps(script, log):
    for run, step in enumerate((10_000, 500, 20_000)):
        log("vae_z=10", run, 1.0, step=step)
    assert "| steps | 500 | 10,000 | 20,000 |" in script("report.py")[1]


# PATTERN


@pytest.mark.parametrize("pattern", ["vae_*", "model=vae_*", "*z=[0-9]*"])
def test_a_pattern_selects_configurations_and_what_is_said_of_left_out_runs(script, log, pattern):
    log("vae_z=2", 0, 1.0)
    log("vae_z=10", 0, 1.0)
    log("gmvae_k=500", 0, 1.0)
    log("vae_z=2", 1, 1.0, complete=False)
    log("gmvae_k=500", 1, 1.0, complete=False)
    code, out, _ = script("report.py", pattern)
    assert code == 0
    assert "| vae_z=2 | vae_z=10 |" in out
    assert "model=vae_z=2_run=0001/results.json: not finished" in out
    assert "gmvae" not in out
    assert "gmvae" not in script("report.py", pattern, "--csv", "-")[1]


def test_a_pattern_without_special_characters_is_a_whole_name(script, log):
    log("vae_z=1", 0, 1.0)
    log("vae_z=10", 0, 1.0)
    _, out, _ = script("report.py", "vae_z=1")
    assert "| mean ± standard error over the runs | vae_z=1 |\n" in out


def test_a_pattern_that_matches_nothing(script, log):
    """The message has the names there are. Of a configuration without a finished run the pattern is named."""
    log("vae_z=10", 0, 1.0)
    log("vae_z=2_seed=7", 0, 1.0)
    log("gmvae_k=500", 0, 1.0, complete=False)
    code, out, err = script("report.py", "ssvae*")
    assert (code, out) == (2, "")
    assert err == "report.py: error: no configuration matches 'ssvae*'; there are gmvae_k=500, vae_z=2, vae_z=10.\n"
    code, out, err = script("report.py", "gmvae*")
    assert code == 2
    assert "run=0000/results.json: not finished" in out
    assert "no finished run under logs/ that matches 'gmvae*'" in err


# --by


def log_three(log):
    """Three configurations. The best NELBO has the worst accuracy; one has neither."""
    for run, nelbo in enumerate((99.0, 101.0)):
        log("vae_z=10", run, nelbo, results=numbers(nelbo=nelbo + 1, accuracy_percent=80.0))
    log("vae_z=2", 0, 120.0, results=numbers(nelbo=121.0, accuracy_percent=90.0))
    log("vae_z=1", 0, 150.0)


def test_configurations_in_rows_best_first(script, log):
    """Means 101 ± 1 (of 100 and 102) and 121. The columns: the chosen number, then the others."""
    log_three(log)
    code, out, _ = script("report.py", "--by", "test nelbo")
    assert code == 0
    assert out == (
        "### By test NELBO, best first: mean ± standard error over the runs\n\n"
        "| configuration | runs | test NELBO | subset NELBO | test accuracy, % |\n"
        "|---|---|---|---|---|\n"
        "| vae_z=10 | 2 | 101.00 ± 1.00 | 100.00 ± 1.00 | 80.00 ± 0.00 |\n"
        "| vae_z=2 | 1 | 121.00 | 120.00 | 90.00 |\n"
        "| vae_z=1 | 1 |  | 150.00 |  |\n"
    )


@pytest.mark.parametrize("name", ["test accuracy_percent", "test accuracy, %", "Test Accuracy, %"])
def test_a_larger_accuracy_is_better(script, log, name):
    log_three(log)
    _, out, _ = script("report.py", "--by", name)
    assert list(rows(out)) == ["vae_z=2", "vae_z=10", "vae_z=1"]


def test_a_classifiers_accuracy_is_an_accuracy_too(script, log):
    for z, percent in ((1, 50.0), (2, 70.0), (3, 60.0)):
        log(f"fsvae_z={z}", 0, 1.0, results=numbers(classifier_percent=percent))
    assert list(rows(script("report.py", "--by", "test classifier_percent")[1])) == [
        "fsvae_z=2",
        "fsvae_z=3",
        "fsvae_z=1",
    ]


@pytest.mark.parametrize("name", ["subset iwae_1000", "subset IWAE-1000", "SUBSET iwae-1000"])
def test_the_number_can_be_given_as_key_or_as_printed(script, log, name):
    for z, bound in ((1, 3.0), (2, 1.0), (3, 2.0)):
        log(f"vae_z={z}", 0, 9.0, results={"subset": {"nelbo": {"mean": 5.0}, "iwae_1000": {"mean": bound}}})
    assert list(rows(script("report.py", "--by", name)[1])) == ["vae_z=2", "vae_z=3", "vae_z=1"]


def test_equal_numbers_stay_in_natural_order(script, log):
    for z in (10, 2, 1):
        log(f"vae_z={z}", 0, 5.0)
    assert list(rows(script("report.py", "--by", "subset nelbo")[1])) == ["vae_z=1", "vae_z=2", "vae_z=10"]


def test_steps_and_data_have_columns_if_they_differ(script, log):
    log("vae_z=2", 0, 1.0)
    log("vae_z=10", 0, 2.0, step=500)
    log("vae_z=20", 0, 3.0, step=500, data={"name": "glyphs", "train": 5, "test": 4})
    _, out, _ = script("report.py", "--by", "subset nelbo")
    assert "| configuration | runs | steps | data | subset NELBO |" in out
    assert "| vae_z=20 | 1 | 500 | glyphs (5 + 4 images) | 3.00 |" in out
    _, out, _ = script("report.py", "vae_z=?", "--by", "subset nelbo")
    assert "| configuration | runs | subset NELBO |" in out
    _, out, _ = script("report.py", "vae_z=*0", "--by", "subset nelbo")
    assert "| configuration | runs | data | subset NELBO |" in out


def test_left_out_runs_are_named_below_the_sorted_table_too(script, log):
    log("vae_z=2", 0, 1.0)
    log("vae_z=2", 1, 1.0, complete=False)
    assert "### Left out\n\n* " in script("report.py", "--by", "subset nelbo")[1]


def test_an_unknown_number(script, log):
    log_three(log)
    code, out, err = script("report.py", "--by", "nelbo")
    assert (code, out) == (2, "")
    assert err == (
        "report.py: error: there is no number 'nelbo'; there are subset nelbo, test nelbo, test accuracy_percent.\n"
    )


# --difference


@pytest.fixture
def two(log):
    """1, 2, 9 and 4, 5, 1 with the seeds 0, 1, 2 and 1, 0, 5: seed 0 differs by 4, seed 1 by 2."""
    for run, nelbo in enumerate((1.0, 2.0, 9.0)):
        log("vae_z=10", run, nelbo)
    for run, (seed, nelbo) in enumerate(((1, 4.0), (0, 5.0), (5, 1.0))):
        log("vae_z=2", run, nelbo, seed=seed)


def test_differences_are_between_runs_of_the_same_seed(script, two, tmp_path):
    """Means (1 + 2 + 9) / 3 and (4 + 5 + 1) / 3; their standard errors sqrt(19 / 3) and sqrt(13 / 9)."""
    a, b = tables.read((tmp_path / "logs").iterdir())[0]
    assert tables.difference(a, b, "subset nelbo") == {"mean": 3.0, "se": 1.0, "n": 2}
    code, out, _ = script("report.py", "--difference", "vae_z=10", "vae_z=2")
    assert code == 0
    assert out == (
        "|  | vae_z=10 | vae_z=2 | difference | seeds in both |\n"
        "|---|---|---|---|---|\n"
        "| subset NELBO | 4.000 ± 2.517 | 3.333 ± 1.202 | 3.000 ± 1.000 | 2 |\n"
    )
    assert script("report.py", "--difference", "model=vae_z=10", "model=vae_z=2")[1] == out
    assert "| -3.000 ± 1.000 | 2 |" in script("report.py", "--difference", "vae_z=2", "vae_z=10")[1]


def test_a_comparison_says_what_else_differs(script, log):
    """Steps, data and precision, and the code if the runs of one of them were made by different code."""
    log("vae_z=10", 0, 1.0, step=500, trained={"code": ["aa"]})
    log("vae_z=10", 1, 1.0, step=500, trained={"code": ["bb"]})
    for number in (0, 1):
        log("vae_z=2", number, 2.0, data={"name": "glyphs", "train": 5, "test": 4}, trained={"code": ["aa"]})
    code, out, _ = script("report.py", "--difference", "vae_z=10", "vae_z=2")
    assert code == 0
    assert rows(out) == {
        "steps": ["500", "20,000"],
        "data": ["mnist (60,000 + 10,000 images)", "glyphs (5 + 4 images)"],
        "code": ["aa, bb", "aa"],
        "subset NELBO": ["1.000 ± 0.000", "2.000 ± 0.000", "1.000 ± 0.000", "2"],
    }


def test_a_number_that_no_seed_has_in_both(script, log):
    """Then it has no difference; the other numbers have."""
    for name, run in (("vae_z=10", 0), ("vae_z=2", 1)):
        log(name, run, 1.0, results=numbers(nelbo=7.0))
        log(name, 1 - run, 1.0)
    code, out, _ = script("report.py", "--difference", "vae_z=10", "vae_z=2")
    assert code == 0
    assert rows(out) == {
        "subset NELBO": ["1.000 ± 0.000", "1.000 ± 0.000", "0.000 ± 0.000", "2"],
        "test NELBO": ["7.000", "7.000", "", "0"],
    }


def test_left_out_runs_of_the_two_configurations_are_named(script, two, log):
    log("vae_z=2", 7, 1.0, complete=False)
    log("vae_z=3", 7, 1.0, complete=False)
    code, _, err = script("report.py", "--difference", "vae_z=10", "vae_z=2")
    assert code == 0
    assert err == f"report.py: left out: {Path('logs/model=vae_z=2_run=0007/results.json')}: not finished\n"


def test_two_configurations_that_cannot_be_compared(script, two, log):
    log("vae_z=3", 9, 1.0)
    log("vae_z=4", 9, 1.0, complete=False)

    def error(*args):
        code, out, err = script("report.py", *args)
        assert (code, out) == (2, "")
        return err.splitlines()[-1].removeprefix("report.py: error: ")

    there = "there are vae_z=2, vae_z=3, vae_z=4, vae_z=10."
    assert error("--difference", "vae_z=10", "vae_z=5") == f"there is no configuration 'vae_z=5'; {there}"
    assert error("--difference", "vae_z=3", "vae_z=10") == "vae_z=3 and vae_z=10 have no seed in common."
    assert error("--difference", "vae_z=4", "vae_z=10") == "vae_z=4 has no finished run."
    assert "give one of them" in error("--difference", "vae_z=4", "vae_z=10", "--by", "subset nelbo")


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"step": 500}, ": runs 3 with steps 500; runs 0, 1, 2 with steps 20,000."),
        (
            {"data": {"name": "glyphs", "train": 5, "test": 4}},
            ": runs 0, 1, 2 with data mnist (60,000 + 10,000 images); runs 3 with data glyphs (5 + 4 images).",
        ),
        ({"flags": {"precision": "high"}}, ": runs 0, 1, 2 with precision medium; runs 3 with precision high."),
        (
            {"experiment": {"lr": 0.1}},
            ": runs 0, 1, 2; runs 3; they differ in the flags that results.json holds under 'experiment'.",
        ),
    ],
)
def test_a_name_of_several_configurations_cannot_be_compared(script, two, log, other, what):
    log("vae_z=10", 3, 1.0, **other)
    code, _, err = script("report.py", "--difference", "vae_z=10", "vae_z=2")
    assert code == 2
    assert err == f"report.py: error: 2 configurations are called vae_z=10{what}\n"


# --csv


def test_csv_has_a_line_for_each_number_of_each_run(script, log, tmp_path):
    third = 1 / 3  # needs all 16 digits
    log("vae_z=10", 0, third, results=numbers(nelbo=2.5e-10, accuracy_percent=80.0))
    log("vae_z=10_seed=7", 1, 3.0, seed=7)
    log("gmvae_k=500", 0, 4.0, step=500)
    log("vae_z=10", 2, 3.0, complete=False)
    code, out, err = script("report.py", "--csv", "-")
    assert code == 0
    head, *lines = list(csv.reader(io.StringIO(out)))
    assert head == ["configuration", "step", "data", "run", "seed", "split", "number", "value"]
    mnist = "mnist (60,000 + 10,000 images)"
    assert [(*line[:-1], float(line[-1])) for line in lines] == [
        ("gmvae_k=500", "500", mnist, "0", "0", "subset", "nelbo", 4.0),
        ("vae_z=10", "20000", mnist, "0", "0", "subset", "nelbo", third),
        ("vae_z=10", "20000", mnist, "0", "0", "test", "nelbo", 2.5e-10),
        ("vae_z=10", "20000", mnist, "0", "0", "test", "accuracy_percent", 80.0),
        ("vae_z=10", "20000", mnist, "1", "7", "subset", "nelbo", 3.0),
    ]
    assert "run=0002/results.json: not finished" in err

    code, tables_too, _ = script("report.py", "--csv", "runs.csv")
    assert code == 0
    assert tables_too == script("report.py")[1]
    assert (tmp_path / "runs.csv").read_text() == out
    assert script("report.py", "vae_*", "--csv", "-")[1] == "".join(
        line for line in out.splitlines(keepends=True) if not line.startswith("gmvae")
    )
    code, _, err = script("report.py", "--csv", "no/such/folder.csv")
    assert code == 2
    assert len(err.splitlines()) == 1


# A reader that closes the pipe


@pytest.mark.parametrize("configurations", [1, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_closed_pipe_is_no_error(log, tmp_path, configurations):
    """As in `| head -1`, for an output that a pipe holds, and for one that is more. The file is complete."""
    for i in range(configurations):
        log(f"vae_z={i}", 0, float(i))
    command = [sys.executable, ROOT / "report.py", "--csv", "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        if configurations > 1:
            assert process.stdout.readline() == b"### vae\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert len((tmp_path / "out").read_text().splitlines()) == 1 + configurations
