"""The weights in pretrained/: their files, and their numbers on MNIST, which pretrained/README.md lists."""

import json
import re

import pytest
import torch
from conftest import ROOT

import codebase
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.runs.tables import printed_name

MODELS = {"vae": VAE, "gmvae": GMVAE, "ssvae": SSVAE}
FOLDER = ROOT / "pretrained"


def table(name):
    """The numbers of a model in the table of pretrained/README.md: {'subset NELBO': '101.29'}."""
    rows = re.findall(r"^\|(.*)\|$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    head, _, *rows = ([cell.strip() for cell in row.split("|")] for row in rows)
    column = head.index(f"`{name}.pt`")
    return {row[0]: row[column] for row in rows if row[column]}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_small_and_a_bare_state_dict_that_the_model_can_load(name):
    path = FOLDER / f"{name}.pt"
    assert torch.load(path, weights_only=True).keys() == MODELS[name]().state_dict().keys()
    assert type(codebase.load(path)) is MODELS[name]
    assert path.stat().st_size < 5 * 2**20
    assert len(table(name)) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_on_mnist(script, mnist_dir, tmp_path, name):
    flags = ["--data_dir", mnist_dir, "--device", "cpu", "--train", 0, "--checkpoint", FOLDER / f"{name}.pt"]
    code, _, err = script(f"run_{name}.py", *flags)
    assert code == 0, err
    (path,) = tmp_path.glob("logs/*/results.json")
    results = json.loads(path.read_text())["results"]
    found = {
        printed_name(f"{split} {number}"): value["mean"]
        for split, numbers in results.items()
        for number, value in numbers.items()
        if isinstance(value, dict) and "mean" in value
    }
    for number, expected in table(name).items():
        assert abs(found[number] - float(expected)) < (1e-9 if "accuracy" in number else 0.05), number
