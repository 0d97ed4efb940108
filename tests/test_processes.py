"""Runs of several processes: together they compute what one process does; the runs of a series are independent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed_run
import pytest
import torch
import torch.distributed as dist
from conftest import COMPILED, ROOT, contents, needs_compiler, same, save_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
    a, b = torch.full((2, 3), float(rank)), torch.tensor(10.0 * rank)
    processes.average([a, b])
    own = [f"{i} by {rank}" for i in range(rank, 8, processes.size())]
    return a, b, processes.maximum(15 * (rank == 1)), processes.gather(own)


@pytest.mark.slow
def test_messages(tmp_path):
    for a, b, largest, gathered in together(tmp_path / "3", 3, exchange, tmp_path):
        assert a.equal(torch.ones(2, 3))
        assert b == 10
        assert largest == 15
        assert gathered == [f"{i} by {i % 3}" for i in range(8)]
    assert [path.name for path in tmp_path.glob("by *")] == ["by 0"]  # only the first one writes


def rows(batch_size):
    x = torch.arange(12, dtype=torch.uint8).unsqueeze(1) * 20
    torch.manual_seed(0)
    shared = processes.OwnRows(data.binary_batches(x, batch_size, 0), 0)
    try:
        return shared[5][0], torch.rand(2), shared[6][0], torch.rand(2)
    except InputError as error:
        return str(error)


@pytest.mark.slow
def test_every_process_has_rows_and_random_numbers_of_its_own(tmp_path):
    alone = rows(12)
    first, second = together(tmp_path / "12", 2, rows, 12)
    assert first[0].equal(alone[0][:6])
    assert len(second[0]) == 6
    assert first[1].equal(alone[1])  # the first process has the random numbers of a single process
    drawn = [first[1], first[3], second[1], second[3]]
    assert not any(a.equal(b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert same(second, together(tmp_path / "again", 2, rows, 12)[1])
    for error in together(tmp_path / "9", 2, rows, 9):
        assert "2 processes" in error
        assert "9" in error


# One step, and a bound

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


def steps(name, how):
    """The curves and the weights of three steps, whose noise depends only on the image."""
    vae.sample_gaussian = ssvae.sample_gaussian = lambda m, v: m + v.sqrt() * torch.cos(3 * m)
    torch.manual_seed(1)
    model = MODELS[name]()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    batches = processes.OwnRows([batch_of(model)] * 4, 0)
    step = training_step
    if how == "compiled":
        optimizer = Adam(model.parameters(), 0.01)
        step, words = fast.faster(training_step, model, optimizer, batches[0])
        assert words.startswith(COMPILED), words
    points = [point for _, point in updates(model, batches, range(3), optimizer, step)]
    return values_of(points, 3), model.state_dict()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("vae", "plain"),
        *(pytest.param(name, "plain", marks=pytest.mark.slow) for name in list(MODELS)[1:]),
        pytest.param("vae", "compiled", marks=[pytest.mark.slow, needs_compiler]),
    ],
)
def test_a_step_of_two_processes_is_that_of_one(tmp_path, name, how, monkeypatch):
    for module in (vae, ssvae):  # `steps` changes them
        monkeypatch.setattr(module, "sample_gaussian", module.sample_gaussian)
    values, weights = steps(name, how)
    for found, found_weights in together(tmp_path / name, 2, steps, name, how):
        for tag in values:
            assert found[tag] == pytest.approx(values[tag], rel=1e-5, abs=1e-5), tag
        torch.testing.assert_close(found_weights, weights, rtol=1e-4, atol=1e-6)


def steps_after_a_failure():
    """What `faster` says if the step cannot be compiled in the second process, and the weights after a step."""
    fast.compiled = (lambda step, *_: step) if processes.rank() == 0 else None
    torch.manual_seed(1)
    model = MODELS["vae"]()
    batches = processes.OwnRows([batch_of(model)] * 2, 0)
    optimizer = Adam(model.parameters())
    step, how = fast.faster(training_step, model, optimizer, batches[0])
    step(model, optimizer, batches[1])
    return how, model.state_dict()


@pytest.mark.slow
def test_a_step_that_one_process_cannot_compile_is_compiled_by_none(tmp_path):
    (how, weights), (how_too, weights_too) = together(tmp_path / "2", 2, steps_after_a_failure)
    assert how == "not compiled: the plain step (it fails in another process)"
    assert how_too.startswith("not compiled: the plain step (TypeError")
    assert same(weights, weights_too)


def bounds(name):
    """All that is evaluated, on 50 images in chunks of at most 7."""
    evaluate.MAX_IMAGES = 7
    evaluate.MAX_ROWS = 7 if name != "ssvae" else 70
    torch.manual_seed(1)
    model = MODELS[name]()
    split = batch_of(model, 50)[: 2 if name == "fsvae" else 1]
    found = [evaluate.elbo(model, split), *evaluate.iwae(model, split, (1, 5)), evaluate.latent_units(model, split)]
    if name == "ssvae":
        found.append(evaluate.classify(model, split[0]))
    return found, torch.rand(2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gmvae", "ssvae", "fsvae"])
def test_bounds_are_the_same_bit_for_bit_however_many_processes_there_are(tmp_path, name):
    (alone,) = together(tmp_path / "1", 1, bounds, name)
    for n in (2, 3):
        for found in together(tmp_path / str(n), n, bounds, name):
            assert same(found, alone)


# Whole runs, by torchrun, or by processes that have its environment


def torchrun(folder, n, *args):
    """Start torchrun of a run script in a folder. Returns the process, whose output is in folder/output.txt."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", n, ROOT / args[0], *args[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder.mkdir(exist_ok=True)
    with open(folder / "output.txt", "w") as output:
        return subprocess.Popen([*map(str, command)], cwd=folder, env=environment, stdout=output, stderr=output)


def by(n, folder, *args):
    """Run a script by n processes. Returns what the first one has printed."""
    folder.mkdir(exist_ok=True)
    codes = [killed_run.finish(process) for process in killed_run.start_together(folder, n, args)]
    assert codes == [0] * n, codes
    return printed(folder)


def printed(folder, name="output.txt"):
    return (folder / name).read_text()


def state_and_results(folder, run):
    state = torch.load(folder / "checkpoints" / run / "training.pt")
    record = json.loads((folder / "logs" / run / "results.json").read_text())
    assert record["complete"]
    return {key: state[key] for key in ("step", "weights", "optimizer", "random")}, record["results"]


@pytest.fixture
def flags(tmp_path):
    """The command line of a small run, without its number of steps, and the run's name."""
    digits = save_digits(tmp_path / "digits.npz")
    flags = ["run_vae.py", "--dataset", digits, "--z", 2, "--batch_size", 10, "--iter_save", 20, "--device", "cpu"]
    return [*flags, "--fast", 0], f"model=vae_z=2_data={data.load(digits).name}_batch=10_run="


@pytest.mark.slow
def test_a_series_is_shared_and_each_run_is_what_it_is_alone(tmp_path, flags):
    flags, run = flags
    series = [*flags, "--iter_max", 60, "--replicates", 3]
    expected = by(1, tmp_path / "one", *series)
    assert torchrun(tmp_path / "two", 2, *series).wait(timeout=300) == 0
    for i in range(3):
        assert same(*(state_and_results(tmp_path / folder, f"{run}{i:04d}") for folder in ("one", "two")))
    # Each run was printed once, and the table is the same.
    found = printed(tmp_path / "two")
    told = [line.split(", by ") for line in found.splitlines() if line.startswith("replicate")]
    assert sorted(replicate for replicate, _ in told) == [f"replicate {i} of 3" for i in (1, 2, 3)]
    assert {by for _, by in told} == {"process 0", "process 1"}
    table = expected[expected.index("### vae") :].strip()
    assert found.count(table) == 1
    # The same command finds nothing to do.
    again = by(3, tmp_path / "two", *series)
    assert again.strip().endswith(table)
    assert "trained" not in again


@pytest.mark.slow
def test_one_run_of_two_processes(tmp_path, flags):
    """Its files are those of one process; stopped and resumed it ends the same; one process can resume it."""
    flags, run = flags
    run += "0000"
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
    assert [event.step for event in found.Images("samples")] == [0, 20, 30, 40, 50]
    by(1, parts, *flags, "--iter_max", 60, "--resume", 1)
    assert state_and_results(parts, run)[0]["step"] == 60


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_and_a_run_that_is_there_already_are_sentences(tmp_path, flags):
    flags, _ = flags
    processes = killed_run.start_together(tmp_path, 3, [*flags, "--iter_max", 20])
    assert [killed_run.finish(process) for process in processes] == [2, 2, 2]
    assert "3 processes cannot share 10 images" in printed(tmp_path)
    assert not list(tmp_path.glob("checkpoints/*/*.pt"))
    by(2, tmp_path, *flags, "--iter_max", 20)
    before = contents(tmp_path / "checkpoints")
    processes = killed_run.start_together(tmp_path, 2, [*flags, "--iter_max", 20])
    assert [killed_run.finish(process) for process in processes] == [2, 2]
    assert "already holds a run. --resume 1 resumes" in printed(tmp_path)
    assert printed(tmp_path, "output-1.txt").count("\n") == 1
    assert contents(tmp_path / "checkpoints") == before


def wait_for(process, *paths):
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in paths):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run_vae.py", "run_gmvae.py", "run_ssvae.py", "run_fsvae.py"])
def test_one_process_finds_the_bounds_that_two_have_reported(tmp_path, name):
    """The VAE has BatchNorm here, whose statistics differ in the processes during training."""
    script = tmp_path / name
    own = (
        "import torch.nn as nn\n\nfrom codebase import",
        "enc=nn.Sequential(nn.Linear(784, 4), nn.BatchNorm1d(4)), z_dim",
    )
    text = (ROOT / name).read_text()
    script.write_text(text.replace("from codebase import", own[0], 1).replace("VAE(z_dim", f"VAE({own[1]}"))
    digits = save_digits(tmp_path / "digits.npz", colour=name == "run_fsvae.py")
    flags = [script if name == "run_vae.py" else name, "--dataset", digits, "--z", 2, "--batch_size", 20]
    flags += ["--device", "cpu", "--fast", 0, "--full", 1, "--iw_eval", "1,10", "--validation", 40]
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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_processes_after_the_same_step(tmp_path, flags, number):
    flags, run = flags
    run += "0000"
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = torchrun(stopped, 2, *flags, "--iter_max", 100_000, "--iter_save", 100)
    wait_for(process, stopped / "checkpoints" / run / "model-00200.pt")
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    state = checkpoints.read(stopped / "checkpoints" / run / "training.pt")
    assert state["step"] > 200
    assert f"stopped after step {state['step']:,}, which is saved" in printed(stopped)
    end = state["step"] + 30
    by(2, stopped, *flags, "--iter_max", end, "--iter_save", 100, "--resume", 1)
    by(2, whole, *flags, "--iter_max", end, "--iter_save", 100)
    assert same(state_and_results(whole, run), state_and_results(stopped, run))


@pytest.mark.slow
def test_a_process_of_a_series_that_is_killed_takes_nothing_of_the_others(tmp_path, flags):
    """torchrun ends the other one, which saves its current step. The same command resumes both."""
    flags, run = flags
    runs = [run + "0000", run + "0001"]
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    series = [*flags, "--iter_max", 3000, "--iter_save", 10**6, "--replicates", 2]
    process = torchrun(folder, 2, *series)
    wait_for(process, *(folder / "logs" / each for each in runs))
    time.sleep(1)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    states = list(folder.glob("checkpoints/*/training.pt"))
    assert len(states) == 1  # the killed process saved nothing
    assert 0 < checkpoints.read(states[0])["step"] < 3000
    assert torchrun(folder, 2, *series).wait(timeout=300) == 0
    by(1, whole, *series)
    for each in runs:
        assert same(state_and_results(whole, each), state_and_results(folder, each))
