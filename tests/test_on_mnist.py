"""Long runs, on real MNIST and on the glyphs, against the numbers in docs/results.json. All are slow."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


def results_of(folder, name, *flags):
    """Run a script there, in a process of its own. Returns the results that it has written."""
    subprocess.run([sys.executable, str(ROOT / name), *map(str, flags)], cwd=folder, check=True)
    (path,) = folder.glob("logs/*/results.json")
    return json.loads(path.read_text())["results"]


def assert_as_stored(results, configuration, *names):
    """A run's numbers are within four standard deviations of single runs around the means in docs/results.json."""
    stored = json.loads((ROOT / "docs" / "results.json").read_text())["configurations"]
    numbers = max((of for of in stored if of["configuration"] == configuration), key=lambda of: of["step"])["results"]
    for name in names:
        split, quantity = name.split()
        value, values = results[split][quantity]["mean"], numbers[name]["values"]
        assert abs(value - np.mean(values)) < 4 * np.std(values, ddof=1), (name, value)


@pytest.mark.parametrize(("name", "configuration"), [("run_vae.py", "vae_z=10"), ("run_gmvae.py", "gmvae_z=10_k=500")])
def test_the_homeworks_numbers_on_mnist(mnist_dir, tmp_path, name, configuration):
    results = results_of(tmp_path, name, "--data_dir", mnist_dir, "--train", 2)
    subset = {name: results["subset"][name]["mean"] for name in results["subset"] if name != "latent_units"}
    assert_as_stored(results, configuration, "test nelbo", "subset nelbo", "subset kl")
    assert_as_stored(results, f"{configuration}_precision=medium", "subset iwae_1000")  # today's bfloat16
    assert abs(subset["iwae_1"] - subset["nelbo"]) < 0.3
    assert subset["iwae_1"] > subset["iwae_10"] > subset["iwae_100"] > subset["iwae_1000"]
    assert results["test"]["latent_units"]["active"] == 10


def test_the_supervised_baseline_on_mnist(mnist_dir, tmp_path):
    results = results_of(tmp_path, "run_ssvae.py", "--data_dir", mnist_dir, "--gw", 0)
    assert_as_stored(results, "ssvae_gw=000_cw=100", "test accuracy_percent")


def test_the_ssvae_on_mnist(mnist_dir, tmp_path):
    """The first steps of the semi-supervised training: two runs of 2,000 steps had 107.5 nats, and 78 and 82 %."""
    results = results_of(tmp_path, "run_ssvae.py", "--data_dir", mnist_dir, "--iter_max", 1500)
    assert 70 < results["test"]["accuracy_percent"]["mean"] < 90
    assert 100 < results["test"]["nelbo"]["mean"] < 125


def test_the_fsvae_on_glyphs(tmp_path):
    """2,000 steps: two runs reached -546 and -516 nats; after 20 steps it is -255."""
    results = results_of(tmp_path, "run_fsvae.py", "--dataset", "glyphs", "--iter_max", 2000)
    assert -600 < results["test"]["nelbo"]["mean"] < -450
