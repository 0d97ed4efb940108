"""The tables of runs."""

import json

import pytest

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
        "| mean ± standard error over the runs | vae_z=10 | vae_z=2 |\n"
        "|---|---|---|\n"
        "| runs | 3 | 1 |\n"
        "| seeds | 0, 1, 2 | 5 |\n"
        "| steps | 20,000 | 20,000 |\n"
        "| data | mnist (60,000 + 10,000 images) | mnist (60,000 + 10,000 images) |\n"
        "| precision | medium | medium |\n"
        "| subset NELBO | 3.00 ± 1.53 | 50.00 |\n"
    )


def test_a_table_for_each_model(script, log):
    log("vae_z=10", 0, 1.0)
    log("gmvae_z=10_k=500", 0, 1.0)
    _, out, _ = script("report.py")
    assert "### vae\n" in out
    assert "### gmvae\n" in out


@pytest.mark.parametrize(
    "other",
    [
        {"step": 10_000},
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
    code, out, _ = script("report.py", "--out", "tables.md")
    assert code == 0
    assert "| runs | 1 |" in out
    table, left_out = out.split("### Left out")
    assert "run=" not in table
    for run, why in enumerate(["not finished", *["cannot be read"] * 4, "not finished", "cannot be read"], start=1):
        assert f"run={run:04d}/results.json: {why}" in left_out
    assert (tmp_path / "tables.md").read_text() == out


def test_json_has_every_number(script, log, tmp_path):
    for run, nelbo in enumerate((1.0, 2.0, 6.0)):
        log("vae_z=10", run, nelbo, trained={"seconds": 3.0, "device": "cpu", "date": "2026-01-02T03:04:05"})
    _, out, _ = script("report.py", "--json", "--out", "tables.json")
    assert json.loads(out) == json.loads((tmp_path / "tables.json").read_text())
    (configuration,) = json.loads(out)["configurations"]
    assert configuration["configuration"] == "vae_z=10"
    assert configuration["seeds"] == [0, 1, 2]
    assert configuration["seconds"] == [3.0, 3.0, 3.0]
    assert configuration["made"]["device"] == ["cpu"]
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
    code, _, err = script("report.py", "--out", "no/such/folder.md")
    assert code == 2
    assert len(err.splitlines()) == 1


def test_differences_are_between_runs_of_the_same_seed(script, log, tmp_path):
    """1, 2, 9 and 4, 5, 1 with the seeds 0, 1, 2 and 1, 0, 5: seed 0 differs by 4, seed 1 by 2."""
    for run, nelbo in enumerate((1.0, 2.0, 9.0)):
        log("vae_z=10", run, nelbo)
    for run, (seed, nelbo) in enumerate(((1, 4.0), (0, 5.0), (5, 1.0))):
        log("vae_z=2", run, nelbo, seed=seed)
    script("report.py", "--json", "--out", "tables.json")
    a, b = json.loads((tmp_path / "tables.json").read_text())["configurations"]
    assert tables.difference(b, a, "subset nelbo") == {"mean": 3.0, "se": 1.0, "n": 2}
    code, out, _ = script("benchmarks/compare_runs.py", "model=vae_z=10", "model=vae_z=2")
    assert code == 0
    assert out.splitlines()[-1].endswith("| 3.000 ± 1.000 | 2 |")
