"""The README and the docs: their commands, flags, numbers, links and names, and their examples."""

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import COMPILED, ROOT, curves, needs_compiler, same, save_digits, weights
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal

from codebase import data, load, runs
from codebase.models.vae import VAE
from codebase.runs.flags import parse_flags

FILL = runpy.run_path(str(ROOT / "docs" / "fill.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pretrained" / "README.md", *ROOT.glob("docs/*.md")]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
README, EXTENDING = TEXTS[ROOT / "README.md"], TEXTS[ROOT / "docs" / "extending.md"]
BLOCK = re.compile(r"^`([\w/]+\.py)`[^`]*?```python\n(.*?)```", re.DOTALL | re.MULTILINE)
EXAMPLES = dict(BLOCK.findall(EXTENDING))
# "is `run_x.py` with this model: copy it to `run_y.py`, replace `a` by `b`, `c` by `d`."
COPIES = re.compile(r"is `(run_\w+\.py)` with this model: copy it to `(run_\w+\.py)`, replace (.*?)\.[\s]", re.DOTALL)
(LAPLACE,) = re.findall(r"## Change it\n.*?```python\n(.*?)```", README, re.DOTALL)
SCRIPTS = ("run_vae", "run_gmvae", "run_ssvae", "run_fsvae")
COMMAND = re.compile(r"python ((?:\w+/)?\w+\.py)([^\n`|;&#]*)")


def parsed(script, words=()):
    """The flags of a run script, with these words on its command line."""
    called = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "run_main", lambda *args, usual_data="", **defaults: called.append((args[2], defaults)))
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    own_flags, defaults = called[0]
    return parse_flags("", own_flags, list(words), **defaults)


def commands():
    found = set()
    for path, text in (TEXTS | {path: path.read_text(encoding="utf-8") for path in ROOT.glob("*.py")}).items():
        for script, flags in COMMAND.findall(text):
            in_code = path.suffix == ".py" or path.name == "extending.md"
            flags = flags.split("  ")[0] if in_code else flags  # the text after two spaces describes the command
            found.add((script, flags.split(" > ")[0].strip(" ,")))
    return sorted(found)


@pytest.mark.parametrize(("script", "flags"), commands())
def test_every_command_is_understood(script, flags):
    if script in EXAMPLES or script in (copy for _, copy, _ in COPIES.findall(EXTENDING)):
        return  # tested below
    assert (ROOT / script).is_file()
    words = shlex.split(re.sub(r"(--(?:run|iter_max|replicates|z|lr)) (?:\$\w+|N)\b", r"\1 1", flags))
    if not script.startswith("run_"):
        assert all(f'"{word}"' in (ROOT / script).read_text() for word in words if word.startswith("--"))
    elif words != ["--help"]:
        parsed(script.removesuffix(".py"), words)


def test_the_page_of_flags_is_that_of_the_scripts():
    """Every flag of every script, with its default; no other flag."""
    found = {script: {} for script in SCRIPTS}
    for name, *cells in re.findall(r"^\| `--(\w+)` \|(.*)\|$", TEXTS[ROOT / "docs" / "flags.md"], re.MULTILINE):
        *defaults, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", cells[0]))
        assert meaning
        for script, default in zip(SCRIPTS, defaults * (4 // len(defaults)), strict=True):
            if default:
                assert name not in found[script]
                found[script][name] = default if "," in default and name == "iw_eval" else default.replace(",", "")
    for script in SCRIPTS:
        table = {flag.name: flag.default for flag in parsed(script).table}
        table["iw_eval"] = ",".join(map(str, table["iw_eval"]))
        assert found[script] == {name: "–" if value is None else str(value) for name, value in table.items()}


def test_every_flag_that_is_named_exists():
    known = {flag.name for script in SCRIPTS for flag in parsed(script).table} | {"help"}
    for text in (
        *EXAMPLES.values(),
        *(path.read_text() for path in (ROOT / "report.py", *ROOT.glob("benchmarks/*.py"))),
    ):
        known |= set(re.findall(r'(?:Flag\("|"--)(\w+)"', text))
    known |= {"logdir", "samples_per_plugin", "nproc-per-node", "array", "signal", "check"}  # of other programs
    for path, text in TEXTS.items():
        assert set(re.findall(r"(?<![-\w])--([a-z][\w-]*)", text)) <= known, path


# The numbers


def test_numbers_are_those_of_the_stored_runs():
    """Each stands in its page, once."""
    assert FILL["fill"]([FILL["with_values"](piece) for _, piece in FILL["pieces"]()]) == []


def test_every_number_of_the_readme_and_the_writeup_with_an_error_is_listed():
    listed = [("".join(FILL["with_values"](piece)), page) for page, piece in FILL["pieces"]()]
    for path in (ROOT / "README.md", ROOT / "docs" / "writeup.md"):
        values = [text for text, page in listed if page == path]
        for number in re.findall(r"-?\d[\d.]* (?:±|to) \d[\d.]*\.\d+|-?\d+\.\d\d ± \d+\.\d\d", TEXTS[path]):
            assert any(number in value for value in values), number


def test_new_runs_change_the_pages(tmp_path, monkeypatch):
    """Their numbers take the places of the old ones, and only theirs; a piece that is not there is named."""
    of_fill = FILL["main"].__globals__
    stored = {"configurations": [{"configuration": "a", "step": 2, "runs": [0], "seeds": [0], "results": {}}]}
    new = {**stored["configurations"][0], "runs": [0, 1, 2]}
    page, numbers, results = (tmp_path / name for name in ("page.md", "numbers.txt", "results.json"))
    page.write_text("Here are 1\nruns of 1 model, 1 in all.\n")
    numbers.write_text('# page.md\nare {count("a")} runs\n, {count("a")} in all.\n')
    results.write_text(json.dumps(stored))
    monkeypatch.setitem(of_fill, "ROOT", tmp_path)
    monkeypatch.setitem(of_fill, "NUMBERS", numbers)
    monkeypatch.setitem(of_fill, "STORED", results)
    monkeypatch.setitem(of_fill, "RUNS", FILL["by_name"](stored["configurations"]))
    monkeypatch.setattr(of_fill["tables"], "read", lambda folders: ([new], []))
    monkeypatch.setattr(sys, "argv", ["fill.py", "logs"])
    with pytest.raises(SystemExit) as end:
        FILL["main"]()
    assert end.value.code is None
    assert page.read_text() == "Here are 3\nruns of 1 model, 3 in all.\n"
    assert json.loads(results.read_text())["configurations"] == [new]
    page.write_text("Here are 3 runs, 4 in all.\n")
    monkeypatch.setattr(sys, "argv", ["fill.py"])
    with pytest.raises(SystemExit, match=r"^page.md must have this once, and has it 0 times: , 3 in all.$"):
        FILL["main"]()


def test_stored_means_and_errors_are_of_the_stored_values():
    for configuration in json.loads(FILL["STORED"].read_text())["configurations"]:
        n = len(configuration["runs"])
        assert len(set(configuration["seeds"])) == n
        for number in configuration["results"].values():
            values = [value for value in number["values"] if value is not None]
            assert number["mean"] == pytest.approx(sum(values) / len(values))
            assert len(values) < 2 or number["se"] == pytest.approx(statistics.stdev(values) / len(values) ** 0.5)


def test_names_of_the_stored_runs():
    """A name stands for the most steps, unless the step is given."""
    first, second = ({"configuration": "a", "step": step} for step in (2, 10))
    assert FILL["by_name"]([second, first]) == {"a": second, "a step=2": first, "a step=10": second}
    with pytest.raises(SystemExit, match="several configurations are called a step=2"):
        FILL["by_name"]([first, first])


# Links and names


def headings(path):
    """The anchors of a page's headings, as GitHub makes them."""
    for title in re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[path]):
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.is_file(), target
        assert not anchor or anchor in headings(linked), target
    assert "<!--" not in TEXTS[path]


# `name`, `Class.method` (`codebase/file.py` or `run_x.py`), with words, but no names, between the names and the file
WHERE = re.compile(r"((?:`[\w.]+`[^`|;().:]*)+)\(`(?:codebase/)?(?!tests/)((?:\w+/)?\w+\.py)`\)")


def definitions(file):
    """The functions, classes and methods of a file, methods also with their class: {'VAE', 'VAE.kl', 'kl', ...}.

    Also the functions in a function, such as `look` in the `main` of a run script.
    """
    path = ROOT / file if (ROOT / file).is_file() else ROOT / "codebase" / file
    top = ast.parse(path.read_text(encoding="utf-8")).body
    for node in (node for node in top if isinstance(node, ast.ClassDef | ast.FunctionDef)):
        yield node.name
        for each in node.body:
            if isinstance(each, ast.FunctionDef):
                yield from (each.name, f"{node.name}.{each.name}")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_and_files_that_are_named_exist(path):
    for names, file in WHERE.findall(TEXTS[path]):
        for name in re.findall(r"`([\w.]+)`", names):
            assert name in set(definitions(file)), (name, file)
    files = [f"/{each.relative_to(ROOT).as_posix()}" for each in ROOT.glob("**/*.py")]
    files += [f"/{name}" for name in (*EXAMPLES, *re.findall(r"to\s+`(run_\w+\.py)`", README + EXTENDING))]
    for name in re.findall(r"`((?:\w+/)*\w+\.py)`", TEXTS[path]):
        assert any(file.endswith(f"/{name}") for file in files), name


def test_the_writeup_says_where_each_item_is():
    """Every item of the handout has a row in the table, with a function in the file that the handout names."""
    text = TEXTS[ROOT / "docs" / "writeup.md"]
    rows = dict(re.findall(r"^\| (\w\.\d) \| (.*) \|$", text, re.MULTILINE))
    named = {"1.1": "utils", "1.2": "models/vae", "2.1": "models/gmvae", "3.2": "models/vae", "3.4": "models/gmvae"}
    named |= {"4.2": "models/ssvae", "B.2": "models/fsvae"}  # the files that the handout names
    assert list(rows) == re.findall(r"\w\.\d", "1.1 1.2 1.3 1.4 2.1 2.2 2.3 3.1 3.2 3.3 3.4 4.1 4.2 4.3 B.1 B.2")
    for item, row in rows.items():
        assert f"**{item}" in text
        assert f"codebase/{named.get(item, '')}" in row or item not in named
        assert WHERE.search(row) or re.fullmatch(r"as \d\.\d|a proof|a derivation", row)


# The examples of docs/extending.md, and that of the README


@pytest.fixture
def extended(tmp_path):
    """The code with the examples in it. Returns its folder."""
    assert list(EXAMPLES) == [
        *("codebase/models/vampvae.py", "codebase/models/twolayervae.py"),
        *("codebase/models/betavae.py", "run_betavae.py", "codebase/models/dregvae.py", "run_convvae.py"),
        *("codebase/models/logisticfsvae.py", "codebase/models/m1m2.py", "run_m1m2.py", "judge.py"),
    ]
    shutil.copytree(ROOT / "codebase", tmp_path / "codebase", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_vae.py", tmp_path)
    for name, code in EXAMPLES.items():
        (tmp_path / name).write_text(code)
    copies = COPIES.findall(EXTENDING)
    names = [f"run_{name}.py" for name in ("vampvae", "twolayervae", "dregvae", "logisticfsvae", "m1")]
    assert [name for _, name, _ in copies] == names
    for like, name, changes in copies:
        (tmp_path / name).write_text(edited(like, *re.findall(r"`([^`]+)`\s+by\s+`([^`]+)`", changes)))
    above = ("def main(run):", f"{LAPLACE}\n\ndef main(run):")
    laplace = edited("run_vae.py", ("VAE(", "LaplaceVAE("), ('"vae"', '"laplacevae"'), above)
    (tmp_path / "run_laplacevae.py").write_text(laplace)
    return tmp_path


def edited(name, *changes):
    """The text of a run script with these changes, (old, new)."""
    text = (ROOT / name).read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def example(extended, digits):
    """example('run_convvae.py', ...) runs it for 30 steps on small digits. Returns what it printed."""

    def call(name, *args):
        usual = ("--dataset", digits, "--iter_max", 30, "--batch_size", 50, "--device", "cpu")
        command = [sys.executable, name, *map(str, usual + args)]
        environment = os.environ | {"PYTHONPATH": str(extended), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=extended, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def names_in(code):
    """What this Python code defines: {name: value}."""
    names = {"__name__": "example", "VAE": VAE, "np": np, "torch": torch, "data": data}
    exec(code, names)
    return names


def assert_prior(model, prior):
    """log p(z) is that of torch.distributions, and so is the KL; samples are from it."""
    qm, qv = torch.randn(5, 3).double(), torch.rand(5, 3).double()
    q = Independent(Normal(qm, qv.sqrt()), 1)
    z = q.sample((4,))
    torch.testing.assert_close(model.log_prior(z), prior.log_prob(z))
    torch.testing.assert_close(model.kl(z, qm, qv), q.log_prob(z) - prior.log_prob(z))
    z, expected = model.sample_z(20_000).double(), prior.sample((20_000,))
    torch.testing.assert_close(z.mean(0), expected.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(z.abs().mean(0), expected.abs().mean(0), atol=0.06, rtol=0)


def test_the_vampprior_is_the_mixture_of_its_posteriors():
    """And the loss reaches the pseudo-inputs u."""
    model = names_in(EXAMPLES["codebase/models/vampvae.py"])["VampVAE"](z_dim=3, k=5).double()
    m, v = (each.detach() for each in model.posterior(model.u_pre.sigmoid()))
    assert_prior(model, MixtureSameFamily(Categorical(torch.ones(5)), Independent(Normal(m, v.sqrt()), 1)))
    loss, _ = model.loss(torch.bernoulli(torch.full((4, 784), 0.3, dtype=torch.float64)))
    loss.backward()
    assert model.u_pre.grad.abs().sum() > 0


def test_the_laplace_prior_of_the_readme():
    model = names_in(LAPLACE)["LaplaceVAE"](z_dim=3).double()
    assert_prior(model, Independent(Laplace(torch.zeros(3).double(), 1), 1))


def test_the_beta_vae_warms_up():
    """Its loss is rec + beta t / 2000 KL up to step 2,000, and rec + beta KL from there on."""
    model = names_in(EXAMPLES["codebase/models/betavae.py"])["BetaVAE"](beta=4)
    x = torch.bernoulli(torch.full((4, 784), 0.3))
    for step, beta in ((0, 0), (500, 1), (2000, 4), (3000, 4)):
        model.step.fill_(step)
        loss, curves = model.loss(x)
        assert curves["train/beta"] == beta
        torch.testing.assert_close(loss, curves["gen/rec"] + beta * curves["gen/kl_z"])


def test_m2_is_of_real_vectors():
    """Its likelihood is a normal whose mean and variance the decoder gives."""
    model = names_in(EXAMPLES["codebase/models/m1m2.py"])["M2"](1, 10, 0, 4, classes=3, x_dim=5).double()
    h, z, y = torch.randn(6, 5).double(), torch.randn(2, 6, 4).double(), torch.eye(3)[[0, 1, 2, 2, 1, 0]].double()
    m, s = model.dec.net(torch.cat([z, y.expand(2, 6, 3)], -1)).chunk(2, -1)
    oracle = Normal(m, torch.nn.functional.softplus(s).add(1e-8).sqrt())
    torch.testing.assert_close(model.log_likelihood(h, z, y), oracle.log_prob(h).sum(-1))
    torch.testing.assert_close(model.mean_x(z, y), m)


def test_the_edits_of_the_run_scripts_can_be_made(extended):
    for path in extended.glob("run_*.py"):
        ast.parse(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["twolayervae", "vampvae", "betavae", "dregvae", "convvae", "laplacevae"])
def test_examples_train_and_are_evaluated(example, name):
    small = ("--k", 7) if name == "vampvae" else ()
    out = example(f"run_{name}.py", "--iter_max", 5, "--replicates", 2, "--train", 2, "--iw_eval", "1,5", *small)
    assert f"### {name}" in out
    assert "| runs | 2 |" in out
    assert "| test NELBO | " in out


@pytest.mark.slow
def test_a_judge_of_generated_images(tmp_path):
    """A model that draws real images of a label is right, one that draws those of the next label never."""
    names = names_in(EXAMPLES["judge.py"])
    names["judge"].__globals__["TRAINING_STEPS"] = 60
    images = data.load(save_digits(tmp_path / "colour.npz", colour=True))

    class Copies(names["Classifier"]):
        def __init__(self, shift):
            super().__init__(images.shape, 10)
            self.shift = shift

        def sample_z(self, n):
            return torch.zeros(n, 1)

        def mean_x(self, z, y):
            first = int((images.y_test == (y.argmax() + self.shift) % 10).nonzero()[0])
            return data.scaled(images.x_test[first]).expand(len(z), -1)

    generated, real = names["judge"](Copies(0), images)
    assert (generated.n, real.n) == (2000, 120)
    assert real.mean > 95
    assert generated.mean > 85
    assert names["judge"](Copies(1), images)[0].mean < 15
    some = torch.isin(images.y_train, torch.tensor([0, 3, 9]))  # the model has not seen the other labels
    three = images._replace(x_train=images.x_train[some], y_train=images.y_train[some])
    assert names["judge"](Copies(0), three)[0].n == 600


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run_fsvae.py", "run_ssvae.py"])
def test_the_judge_of_a_run(on_digits, extended, tmp_path, monkeypatch, capsys, name):
    """By its folder alone, from any folder; with a progress bar."""
    monkeypatch.delenv("DATA_DIR", raising=False)  # the recorded data_dir is then None
    assert on_digits(name, "--z", 3, "--iter_max", 5)[0] == 0
    (folder,) = tmp_path.glob("checkpoints/*")
    path = extended / "judge.py"
    path.write_text(path.read_text().replace("TRAINING_STEPS = 2000", "TRAINING_STEPS = 5"))
    monkeypatch.setattr(sys, "argv", ["judge.py", str(folder)])
    monkeypatch.chdir(extended / "codebase")
    runpy.run_path(str(path), run_name="__main__")
    number, (out, err) = r"\d+\.\d\d ± \d+\.\d\d %", capsys.readouterr()
    assert re.search(rf"show their label: {number} of 2,000\n.*finds: {number} of 120\n", out)
    assert "5/5" in err


def results_of(logs):
    """The numbers of a run that has ended: {split: {name: its record}}."""
    record = json.loads((logs / "results.json").read_text())
    assert record["complete"]
    return record["results"]


@pytest.mark.slow
def test_m1_then_m2(example, extended, digits):
    """The reported accuracy, and its curve, are those of the saved weights of both models; there is a picture."""
    for run in (0, 1):
        example("run_m1.py", "--z", 50, "--hidden", 600, "--run", run)
    models, images = names_in(EXAMPLES["codebase/models/m1m2.py"]), data.load(digits)
    m1, m2 = models["M1"](), models["M2"](1, 10, 0.00167, 3, classes=10, x_dim=50)
    for run in (1, 0):
        out = example("run_m1m2.py", "--z", 3, "--run", run)
        (logs,) = extended.glob(f"logs/model=m1m2_gw=1_cw=10_lw=0.00167_z=3_data=*_run=000{run}")
        (path,) = extended.glob(f"checkpoints/model=m1_z=50_hidden=600_*_run=000{run}")
        h = load(path, m1).mean_z(data.scaled(images.x_test)).detach()
        right = load(extended / "checkpoints" / logs.name, m2).log_q_y(h).argmax(1) == images.y_test
        number = results_of(logs)["test"]["accuracy_percent"]
        assert number["mean"] == pytest.approx(100 * right.float().mean().item())
        assert curves(logs)["test/accuracy_percent"][-1] == (30, pytest.approx(number["mean"]))
        assert f"\ntest accuracy, %: {number['mean']:.2f} ± {number['se']:.2f}\n" in out
        assert (logs / "samples.png").is_file()
    assert "loaded" in example("run_m1m2.py", "--z", 3, "--train", 0)
    assert results_of(logs)["test"]["accuracy_percent"] == number


def python_of(section):
    """The Python of a section of docs/extending.md, block by block."""
    text = EXTENDING.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_batches_from_a_memory_mapped_file(tmp_path):
    """They are those of the same images in memory."""
    (code,) = python_of("Data larger than memory")
    x = np.random.RandomState(0).randint(0, 256, (50, 12)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    batches = names_in(code)["MappedBatches"](tmp_path / "x.npy", 20, 3, "cpu")
    expected = data.binary_batches(torch.tensor(x), 20, 3)
    for t in (0, 7, 1):
        torch.manual_seed(t)
        found = batches[t]
        torch.manual_seed(t)
        assert same(found, expected[t])


MAIN = re.search(r"^def main\(run\):\n(?:(?: .*)?\n)*?(?=\n\n)", (ROOT / "run_vae.py").read_text(), re.MULTILINE)[0]


def test_active_units_are_a_curve_and_a_number(on_digits, script, folders, tmp_path):
    """Those of each checkpoint's weights; and the weights are those of run_vae.py."""
    (main,) = python_of("A curve and a number of the report")
    (tmp_path / "run_active.py").write_text(
        edited("run_vae.py", (MAIN, main), ("import data,", "import data, evaluate,"))
    )
    args = ("--z", 100, "--iw", 3, "--lr", 0.002)
    code, out, err = on_digits(tmp_path / "run_active.py", *args)
    assert code == 0, err
    saved, logs = folders()
    x = data.binary_splits(data.load(tmp_path / "digits.npz"))["test"][0]
    torch.manual_seed(0)
    models = {0: VAE(z_dim=100)} | {step: load(saved / f"model-{step:05d}.pt") for step in (20, 30)}
    active = {step: (model.mean_z(x).var(0, correction=0) > 0.01).sum().item() for step, model in models.items()}
    assert len(set(active.values())) == 3
    assert dict(curves(logs)["test/active_units"]) == active
    assert results_of(logs)["test"]["active_units"]["mean"] == active[30]
    assert f"\ntest active_units: {active[30]}" in out
    assert f"| test active_units | {active[30]}.00 |" in script("report.py")[1]
    own = weights(saved, 30)
    assert on_digits("run_vae.py", *args, "--overwrite", 1)[0] == 0
    assert same(own, weights(saved, 30))


@pytest.mark.parametrize("fast", [0, pytest.param(1, marks=[needs_compiler, pytest.mark.slow])])
def test_another_step_and_optimizer_in_a_run_script(script, digits, tmp_path, fast):
    """The lines of docs/extending.md in a copy of run_vae.py: its weights are those of clipping and AdamW."""
    step, lines = python_of("Another training step")
    above = re.search(r"\nwith (`import torch`.*?)\s+above it", EXTENDING, re.DOTALL)[1]
    imports = "\n".join(re.findall(r"`([^`]+)`", above))
    (last,) = re.findall(r'`(run_main\("clipped_vae".*?\))`', EXTENDING)
    text = edited(
        "run_vae.py",
        ("def main(run):", f"{imports}\n\n{step}\n\ndef main(run):"),
        ("    train_or_load(", f"{textwrap.indent(lines, '    ')}    train_or_load("),
        (re.search(r"run_main\(\"vae\".*\)", (ROOT / "run_vae.py").read_text())[0], last),
    )
    (tmp_path / "run_clipped.py").write_text(text)
    args = ("--dataset", digits, "--z", 3, "--batch_size", 50, "--device", "cpu", "--iter_max", 5, "--fast", fast)
    code, out, err = script(tmp_path / "run_clipped.py", *args)
    assert code == 0, err
    assert (f"update       {COMPILED}" in out) == fast, out
    (path,) = tmp_path.glob("checkpoints/model=clipped_vae_*/model-00005.pt")
    torch.manual_seed(0)
    model, images = VAE(z_dim=3), data.load(digits)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    batches = data.binary_batches(images.x_train, 50, 0)
    for t in range(5):
        optimizer.zero_grad()
        model.loss(*batches[t])[0].backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1) > 1
        optimizer.step()
    for key, value in torch.load(path, weights_only=True).items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=1e-4, atol=1e-5)
