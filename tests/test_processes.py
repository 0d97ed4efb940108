"""One run on several processes: together they compute what one process does."""

import json
import os
import signal
import subprocess
import sys
import time

import killed_run
import pytest
import torch
import torch.distributed as dist
from conftest import COMPILED, ROOT, contents, same, save_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_fast import traced

from codebase import data, evaluate, fast, processes
from codebase.errors import InputError
from codebase.models import ssvae, vae
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.runs import checkpoints
from codebase.train import Adam, training_step, updates, values_of


def together(folder, n, function, *args):
    """[function(*args) of each of n processes that work on one run]"""
    folder.mkdir()
    started = []
    for rank in range(n):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the process that they are forked from
            started.append(killed_run.FORKS.Process(target=work, args=(rank, n, folder, function, args), daemon=True))
            started[-1].start()
    assert [killed_run.finish(process) for process in started] == [0] * n
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(n)]


def work(rank, n, folder, function, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=n)
    torch.save(function(*args), folder / f"{rank}.pt")


# What processes exchange


def exchange(folder):
    rank = processes.rank()
    checkpoints.write_atomically(folder / f"by {rank}", lambda file: file.write(b"text"))
    a, b, c = torch.full((2, 3), float(rank)), torch.tensor(10.0 * rank), torch.tensor(7.0 + rank)
    processes.average([a, b])
    processes.copy_from_first([c])
    return a.tolist(), b.item(), c.item(), processes.gather([f"{i} by {rank}" for i in range(rank, 8, 3)])


def rows(seed, batch_size=12):
    """The process's rows of the batches 5 and 6, and a random number after each; or what is wrong."""
    x = torch.arange(12, dtype=torch.uint8).unsqueeze(1) * 20
    torch.manual_seed(seed)
    shared = processes.OwnRows(data.binary_batches(x, batch_size, 0), 0)
    try:
        return [tensor for t in (5, 6) for tensor in (shared[t][0], torch.rand(2))]
    except InputError as error:
        return str(error)


@pytest.mark.slow
def test_messages_and_the_rows_and_random_numbers_of_each_process(tmp_path):
    def of_all(*args):
        return together(tmp_path / f"{len(list(tmp_path.iterdir()))}", 3, *args)

    for found in of_all(exchange, tmp_path):
        assert found == ([[1.0] * 3] * 2, 10, 7, [f"{i} by {i % 3}" for i in range(8)])
    assert [path.name for path in tmp_path.glob("by *")] == ["by 0"]  # only the first one writes
    first, *others = of_all(rows, 0)
    assert [len(each[0]) for each in (first, *others)] == [4, 4, 4]
    alone = rows(0)  # the first process has the random numbers of a single process
    assert same(first, [alone[0][:4], alone[1], alone[2][:4], alone[3]])
    drawn = [numbers for each in (first, *others) for numbers in each[1::2]]
    assert not any(a.equal(b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert same(others, of_all(rows, 1)[1:])  # their numbers depend only on the step, as after a resume
    assert all("3 processes cannot share the images" in error for error in of_all(rows, 0, 10))


def test_a_pytorch_without_distributed_has_one_process(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    for name in ("is_torchelastic_launched", "is_initialized", "get_rank", "get_world_size"):
        monkeypatch.delattr(dist, name)
    with processes.on_one_run("auto"):
        assert (processes.launched(), processes.rank(), processes.size()) == (0, 0, 1)


def test_processes_without_a_gpu_for_each_are_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="each process needs its own GPU"), processes.on_one_run("auto"):
        pass
    assert (processes.launched(), processes.rank(), processes.size()) == (1, 0, 1)


# Steps and bounds

MODELS = {
    "vae": lambda: VAE(z_dim=3, x_dim=12, n_hidden=8),
    "iwae": lambda: VAE(z_dim=3, iw=4, x_dim=12, n_hidden=8),
    "gmvae": lambda: GMVAE(z_dim=3, k=5, x_dim=12, n_hidden=8),
    "ssvae": lambda: SSVAE(z_dim=3, x_dim=12, n_hidden=8),
    "fsvae": lambda: FSVAE(z_dim=3, x_dim=12, n_hidden=8),
}


def batch_of(model, n=8):
    random = torch.Generator().manual_seed(2)
    x = torch.bernoulli(torch.full((n, 12), 0.5), generator=random)
    y = data.one_hot(torch.arange(n) % 10, 10)
    return (x, x[:4], y[:4]) if isinstance(model, SSVAE) else (x, y) if isinstance(model, FSVAE) else (x,)


def steps(names, faster=False):
    """The curves and the weights of three steps of each model, whose noise depends only on the image."""
    vae.sample_gaussian = ssvae.sample_gaussian = lambda m, v: m + v.sqrt() * torch.cos(3 * m)
    found = {}
    for name in names:
        torch.manual_seed(1)
        model = MODELS[name]()
        optimizer = Adam(model.parameters(), 0.01) if faster else torch.optim.SGD(model.parameters(), 0.01, 0.9)
        batches, step = processes.OwnRows([batch_of(model)] * 4, 0), training_step
        if faster and processes.size() > 1:
            torch.compile = traced
            step, words = fast.faster(training_step, model, optimizer, batches[0])
            assert words.startswith(COMPILED), words
        points = [point for _, point in updates(model, batches, range(3), optimizer, step)]
        found[name] = values_of(points, 3), dict(model.state_dict())
    return found


@pytest.mark.parametrize(
    ("names", "faster"),
    [(list(MODELS), False), pytest.param(["vae"], True, marks=pytest.mark.slow)],
)
def test_a_step_of_two_processes_is_that_of_one(tmp_path, names, faster, monkeypatch):
    for module in (vae, ssvae):  # `steps` changes them
        monkeypatch.setattr(module, "sample_gaussian", module.sample_gaussian)
    expected = steps(names, faster)
    for found in together(tmp_path / "2", 2, steps, names, faster):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def steps_after_a_failure():
    """What `faster` says if the step cannot be compiled in the second process, and the weights after a step."""
    fast.compiled = (lambda step, *_: step) if processes.rank() == 0 else None
    torch.manual_seed(1)
    model = MODELS["vae"]()
    batches = processes.OwnRows([batch_of(model)] * 2, 0)
    optimizer = Adam(model.parameters())
    step, how = fast.faster(training_step, model, optimizer, batches[0])
    step(model, optimizer, batches[1])
    return how, dict(model.state_dict())


@pytest.mark.slow
def test_a_step_that_one_process_cannot_compile_is_compiled_by_none(tmp_path):
    (how, weights), (how_too, weights_too) = together(tmp_path / "2", 2, steps_after_a_failure)
    assert how == "not compiled: the plain step (it fails in another process)"
    assert how_too.startswith("not compiled: the plain step (TypeError")
    assert same(weights, weights_too)


def bounds():
    """All that is evaluated, of some models on 50 images in chunks of at most 7; and a random number after it."""
    evaluate.MAX_IMAGES, found = 7, []
    for name in ("gmvae", "ssvae", "fsvae"):
        evaluate.MAX_ROWS = 7 if name != "ssvae" else 70
        torch.manual_seed(1)
        model = MODELS[name]()
        split = batch_of(model, 50)[: 2 if name == "fsvae" else 1]
        found += evaluate.elbo(model, split), *evaluate.iwae(model, split, (1, 5)), evaluate.latent_units(model, split)
        if name == "ssvae":
            found.append(evaluate.classify(model, split[0]))
        found.append(torch.rand(2))
    return found


@pytest.mark.slow
def test_bounds_are_the_same_bit_for_bit_however_many_processes_there_are(tmp_path):
    (alone,) = together(tmp_path / "1", 1, bounds)
    for n in (2, 3):
        for found in together(tmp_path / str(n), n, bounds):
            assert same(found, alone)


# Whole runs, by processes that have torchrun's environment, or by torchrun


def torchrun(folder, n, *args):
    """Start torchrun of a run script in a folder. Returns the process; its output: folder/output.txt."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", n, ROOT / args[0], *args[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder.mkdir(exist_ok=True)
    with open(folder / "output.txt", "w") as output:
        return subprocess.Popen([*map(str, command)], cwd=folder, env=environment, stdout=output, stderr=output)


def printed(folder, name="output.txt"):
    return (folder / name).read_text()


def state_and_results(folder, run):
    """The last state of a run that is complete, and its results."""
    state = torch.load(folder / "checkpoints" / run / "training.pt")
    record = json.loads((folder / "logs" / run / "results.json").read_text())
    assert record["complete"]
    return {key: state[key] for key in ("step", "weights", "optimizer", "random")}, record["results"]


def wait_for(*paths):
    """Until these files exist."""
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def by(n, folder, *args, codes=0):
    """Run a script by n processes. Returns what the first one has printed."""
    folder.mkdir(exist_ok=True)
    assert [killed_run.finish(process) for process in killed_run.start_together(folder, n, args)] == [codes] * n
    return printed(folder)


@pytest.fixture
def flags(tmp_path):
    """The command line of a small run, without its number of steps, and the run's name."""
    digits = save_digits(tmp_path / "digits.npz")
    flags = ["run_vae.py", "--dataset", digits, "--z", 3, "--hidden", 8, "--batch_size", 10, "--iter_save", 20]
    name = f"model=vae_z=3_hidden=8_data={data.load(digits).name}_batch=10_run=0000"
    return [*flags, "--device", "cpu", "--fast", 0], name


@pytest.mark.slow
def test_one_run_of_two_processes(tmp_path, flags):
    """Its files are those of one process; stopped and resumed it ends the same; one process can resume it."""
    flags, run = flags
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    out = by(2, whole, *flags, "--iter_max", 50)
    assert out.count("trained 50 steps") == 1
    assert "2 processes" in out
    assert printed(whole, "output-1.txt") == ""
    by(2, parts, *flags, "--iter_max", 30)
    assert "resuming after step 30" in by(2, parts, *flags, "--iter_max", 50, "--resume", 1)
    assert same(state_and_results(whole, run), state_and_results(parts, run))
    found = EventAccumulator(str(parts / "logs" / run), size_guidance={"images": 0}).Reload()
    assert [event.step for event in found.Scalars("eval/nelbo_test")][-1] == 50
    assert [event.step for event in found.Images("gen/samples")] == [0, 20, 30, 40, 50]
    # A run that is there already, and a batch that cannot be shared, are sentences.
    before = contents(parts / "checkpoints")
    assert "already holds a run at step 50. --resume 1 resumes" in by(2, parts, *flags, "--iter_max", 50, codes=2)
    assert printed(parts, "output-1.txt").count("\n") == 1
    assert "3 processes cannot share" in by(3, parts, *flags, "--iter_max", 60, "--resume", 1, codes=2)
    assert contents(parts / "checkpoints") == before
    by(1, parts, *flags, "--iter_max", 60, "--resume", 1)
    assert state_and_results(parts, run)[0]["step"] == 60


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run_vae.py", "run_ssvae.py"])
def test_one_process_finds_the_bounds_that_two_have_reported(tmp_path, name):
    """The VAE has BatchNorm here, whose statistics differ in the processes during training."""
    text, script = (ROOT / name).read_text(), tmp_path / name
    text = text.replace("from codebase import", "import torch.nn as nn\n\nfrom codebase import", 1)
    script.write_text(text.replace(" VAE(z_dim", " VAE(enc=nn.Sequential(nn.Linear(784, 4), nn.BatchNorm1d(4)), z_dim"))
    flags = [script, "--dataset", save_digits(tmp_path / "digits.npz"), "--z", 2, "--batch_size", 20, "--device", "cpu"]
    flags += ["--fast", 0, "--full", 1, "--iw_eval", "1,10", "--validation", 40]
    by(2, tmp_path, *flags, "--iter_max", 30, "--train", 2)
    (results,) = tmp_path.glob("logs/*/results.json")
    found = json.loads(results.read_text())
    by(1, tmp_path, *flags, "--train", 0)
    again = json.loads(results.read_text())
    assert "2 processes" in found["evaluated"]["device"]
    assert " processes" not in again["evaluated"]["device"]
    assert found["results"] == again["results"]
    assert found["results"]["test"]["iwae_10"]["n"] == 120
    assert found["results"]["validation"]["iwae_10"]["n"] == 40


@pytest.mark.slow
def test_a_signal_stops_all_processes_after_the_same_step(tmp_path, flags):
    flags, run = flags
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = torchrun(stopped, 2, *flags, "--iter_max", 100_000, "--iter_save", 100)
    wait_for(stopped / "checkpoints" / run / "model-00200.pt")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    state = checkpoints.read(stopped / "checkpoints" / run / "training.pt")
    assert state["step"] > 200
    assert f"stopped after step {state['step']:,}, which is saved" in printed(stopped)
    end = state["step"] + 30
    by(2, stopped, *flags, "--iter_max", end, "--iter_save", 100, "--resume", 1)
    by(2, whole, *flags, "--iter_max", end, "--iter_save", 100)
    assert same(state_and_results(whole, run), state_and_results(stopped, run))
