"""What README and docs say: their commands, their numbers, and the model that they add."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from codebase.flags import parse_flags

FILL = runpy.run_path(str(ROOT / "docs" / "fill.py"))
DOCUMENTS = {path.name: path.read_text(encoding="utf-8") for path in FILL["DOCUMENTS"]}
IN_DOCSTRINGS = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("*.py")}
COMMAND = re.compile(r"python ((?:\w+/)?\w+\.py)([^\n`|;&#]*)")


def commands():
    found = set()
    for name, text in (DOCUMENTS | IN_DOCSTRINGS).items():
        for script, flags in COMMAND.findall(text):
            flags = flags.split("   ")[0] if name in IN_DOCSTRINGS else flags  # what follows says what it does
            found.add((script, flags.split(" > ")[0].strip()))
    return sorted(found)


@pytest.mark.parametrize(("script", "flags"), commands())
def test_every_command_is_understood(script, flags):
    if script == "run_vampvae.py":
        return  # of docs/vampprior.md, and tested below
    assert (ROOT / script).is_file()
    words = shlex.split(re.sub(r"(--(?:run|iter_max|replicates)) (?:\$r|N)\b", r"\1 1", flags))
    if script.startswith("run_"):
        own = runpy.run_path(str(ROOT / script))["FLAGS"]
        if words != ["--help"]:
            parse_flags("", own, words)
    else:
        text = (ROOT / script).read_text()
        assert all(f'"{word}"' in text for word in words if word.startswith("--"))


def test_there_are_commands():
    assert {"run_vae.py", "run_gmvae.py", "run_ssvae.py", "run_fsvae.py", "report.py"} <= {c[0] for c in commands()}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_numbers_are_those_of_the_stored_runs(name):
    """python docs/fill.py would change nothing."""
    assert FILL["filled"](DOCUMENTS[name]) == DOCUMENTS[name]


def test_documents_ask_for_numbers():
    for name in ("README.md", "results.md", "writeup.md", "speed.md"):
        assert FILL["BLANK"].search(DOCUMENTS[name])
    assert FILL["filled"]("a <!--= 1 + 1 -->3<!--/--> b") == "a <!--= 1 + 1 -->2<!--/--> b"


@pytest.mark.parametrize("name", ["results.json", "results-earlier.json"])
def test_stored_means_and_errors_are_of_the_stored_values(name):
    for configuration in json.loads((ROOT / "docs" / name).read_text())["configurations"]:
        n = len(configuration["runs"])
        assert len(set(configuration["seeds"])) == n
        for number in configuration["results"].values():
            values = [value for value in number["values"] if value is not None]
            assert number["mean"] == pytest.approx(sum(values) / len(values))
            assert len(values) < 2 or number["se"] == pytest.approx(statistics.stdev(values) / len(values) ** 0.5)


def test_links_lead_somewhere():
    for path in FILL["DOCUMENTS"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", DOCUMENTS[path.name]):
            assert target.startswith("https://") or (path.parent / target).is_file(), target


# The VampPrior of docs/vampprior.md


@pytest.fixture
def vampprior(tmp_path):
    """The code with the two files of docs/vampprior.md in it. Returns its folder."""
    blocks = re.findall(r"^`([\w/]+\.py)`.*?```python\n(.*?)```", DOCUMENTS["vampprior.md"], re.DOTALL | re.MULTILINE)
    assert [name for name, _ in blocks] == ["codebase/models/vampvae.py", "run_vampvae.py"]
    shutil.copytree(ROOT / "codebase", tmp_path / "codebase", ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    return tmp_path


def test_the_vampprior_is_the_mixture_of_its_posteriors(vampprior):
    """log p(z) is that of torch.distributions' mixture of q(z|u_k); samples are from it; the loss reaches u."""
    spec = importlib.util.spec_from_file_location("vampvae", vampprior / "codebase" / "models" / "vampvae.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.VampVAE(z_dim=3, k=5).double()
    m, v = model.posterior(model.u_pre.sigmoid())
    mixture = MixtureSameFamily(Categorical(torch.ones(5)), Independent(Normal(m, v.sqrt()), 1))
    z = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(model.log_prior(z), mixture.log_prob(z))
    torch.testing.assert_close(model.sample_z(200_000).mean(0), m.mean(0), atol=0.02, rtol=0)
    loss, _ = model.loss(torch.bernoulli(torch.full((4, 784), 0.3, dtype=torch.float64)))
    loss.backward()
    assert model.u_pre.grad.abs().sum() > 0
    assert "z_pre" not in model.state_dict()


def test_the_vampprior_trains_and_is_evaluated(vampprior, digits):
    command = [sys.executable, "run_vampvae.py", "--dataset", digits, "--iter_max", 30, "--k", 7, "--batch_size", 50]
    done = subprocess.run(
        [*map(str, command), "--replicates", "2", "--train", "2", "--iw_eval", "1,5"],
        cwd=vampprior,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(vampprior)},
    )
    assert done.returncode == 0, done.stderr
    assert "### vampvae" in done.stdout
    assert "| runs | 2 |" in done.stdout
