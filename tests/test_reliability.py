"""What docs/reliability.md says: runs that are killed, stopped, short of disk space or of memory, or started twice."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import victim
from conftest import contents, same, save_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from codebase import checkpoints

SCRIPTS = ["run_vae.py", "run_gmvae.py", "run_ssvae.py", "run_fsvae.py"]


@pytest.fixture
def flags(tmp_path):
    """flags('run_vae.py') is a command line of small steps: a checkpoint every 20, of which two are kept."""

    def of(name):
        digits = save_digits(tmp_path / f"digits-of-{name}.npz", colour=name == "run_fsvae.py")
        return [
            name,
            "--dataset",
            digits,
            "--z",
            2,
            "--batch_size",
            10,
            "--iter_save",
            20,
            "--keep",
            2,
            "--device",
            "cpu",
        ]

    return of


def events(logs):
    """All that TensorBoard shows: {tag: [(step, value), ...]}, of curves, pictures and texts."""
    shown = EventAccumulator(str(logs), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    shown.Reload()
    tags = shown.Tags()
    curves = {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in tags["scalars"]}
    pictures = {tag: [(e.step, e.encoded_image_string) for e in shown.Images(tag)] for tag in tags["images"]}
    return curves | pictures


def output(folder):
    return (folder / "output.txt").read_text()


def wait_for(condition, process):
    while not condition():
        assert process.exitcode is None
        time.sleep(0.02)


def newest_state(folder):
    """The training state of the one run there is, or None."""
    paths = [path for run in folder.glob("checkpoints/*_run=0000") for path in checkpoints.states(run)]
    return torch.load(paths[0], weights_only=True) if paths else None


@pytest.mark.parametrize(
    ("name", "kills"),
    [("run_vae.py", 6), *(pytest.param(name, 20, marks=pytest.mark.slow) for name in SCRIPTS)],
)
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(tmp_path, flags, name, kills):
    """SIGKILL, half of them at a random time, half in the middle of a random write; --resume 1 after each."""
    chance = random.Random(0)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir(), whole.mkdir()
    steps = [0]
    for i in range(kills):
        in_a_write = i % 2
        process = victim.start(
            killed, [*flags(name), "--resume", 1], die_at=chance.randint(1, 150) if in_a_write else None
        )
        process.join(timeout=None if in_a_write else chance.uniform(0.05, 0.7))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, output(killed)
        state = newest_state(killed)
        steps.append(state["step"] if state else 0)
    print("training states after each kill:", steps)
    assert steps == sorted(steps)
    assert steps[-1] >= 20

    last = steps[-1] + 37
    for folder, resume in ((killed, 1), (whole, 0)):
        process = victim.start(folder, [*flags(name), "--resume", resume, "--iter_max", last])
        process.join()
        assert process.exitcode == 0, output(folder)
    (a,), (b,) = (list(folder.glob("checkpoints/*_run=0000")) for folder in (killed, whole))
    assert {path.name for path in a.iterdir()} == {path.name for path in b.iterdir()}
    for path in a.glob("*.pt"):
        states = [torch.load(folder / path.name, weights_only=True) for folder in (a, b)]
        for state in states:
            state.pop("seconds", None)
        assert same(*states), path.name
    a, b = (folder / "logs" / a.name for folder in (killed, whole))
    assert events(a) == events(b)
    assert [step for step, _ in events(a)["train/loss"]] == [*range(7, last, 7), last]
    assert {path.name for path in a.iterdir() if "tfevents" not in path.name} == {
        path.name for path in b.iterdir() if "tfevents" not in path.name
    }
    records = [json.loads((logs / "results.json").read_text()) for logs in (a, b)]
    assert records[0]["results"] == records[1]["results"]
    assert records[0]["trained"]["steps"] == records[1]["trained"]["steps"] == last


STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        pytest.param(name, number, code, marks=[pytest.mark.slow] if i != j else [])
        for i, name in enumerate(SCRIPTS)
        for j, (number, code) in enumerate(STOPS)
    ],
)
def test_a_signal_finishes_the_step_and_saves_it(tmp_path, flags, name, number, code):
    args = [*flags(name), "--iter_save", 10**6]
    process = victim.start(tmp_path, args)
    wait_for(lambda: list(tmp_path.glob("checkpoints/*/training.pt")), process)
    time.sleep(0.5)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code, output(tmp_path)
    said = re.search(
        r"^stopped after step ([\d,]+), which is saved: --resume 1 goes on from it", output(tmp_path), re.M
    )
    step = int(said[1].replace(",", ""))
    assert step >= 1
    state = newest_state(tmp_path)
    assert state["step"] == step
    assert "Traceback" not in output(tmp_path)

    # Gone on with, it has the weights of a run that was never stopped.
    (tmp_path / "whole").mkdir()
    for folder, resume in ((tmp_path, 1), (tmp_path / "whole", 0)):
        process = victim.start(folder, [*args, "--resume", resume, "--iter_max", step + 20])
        process.join()
        assert process.exitcode == 0, output(folder)
    states = [newest_state(folder) for folder in (tmp_path, tmp_path / "whole")]
    assert same(*(state["weights"] for state in states))


@pytest.mark.parametrize("name", ["run_vae.py", *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS[1:])])
def test_a_second_start_is_refused_while_the_first_lives(tmp_path, flags, name):
    """Before there is a checkpoint; a process that was killed does not keep the run."""
    first = victim.start(tmp_path, [*flags(name), "--iter_save", 10**6])
    wait_for(lambda: list(tmp_path.glob("checkpoints/*/training.pt")), first)
    before = {path: what for path, what in contents(tmp_path / "checkpoints").items() if path.suffix == ".pt"}
    for more in ([], ["--resume", 1], ["--overwrite", 1]):
        second = victim.start(tmp_path, [*flags(name), *more])
        second.join()
        assert second.exitcode == 2
        assert "is in use: another process is training this run" in output(tmp_path).splitlines()[-1]
    assert before.items() <= contents(tmp_path / "checkpoints").items()
    first.kill()
    first.join()
    third = victim.start(tmp_path, [*flags(name), "--resume", 1, "--iter_max", 2])
    third.join()
    assert third.exitcode == 0, output(tmp_path)


@pytest.mark.parametrize("name", ["run_vae.py", *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS[1:])])
def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint_whole(tmp_path, flags, name):
    """A limit of the size of files, which is met by curves, pictures, weights and the training state in turn."""
    process = victim.start(tmp_path, [*flags(name), "--iter_max", 30])
    process.join()
    assert process.exitcode == 0, output(tmp_path)
    (folder,) = tmp_path.glob("checkpoints/*_run=0000")
    pictures = [path.stat().st_size for path in tmp_path.glob("logs/*/*.png")]
    limits = {
        "png": min(pictures) - 1,
        "tfevents": max(pictures) + 1000,  # which has all of them
        "model": (folder / "model-00030.pt").stat().st_size - 1,
        "training": (folder / "training.pt").stat().st_size - 1,
    }
    for what, limit in limits.items():
        before = {path: path.read_bytes() for path in folder.glob("*.pt")}
        process = victim.start(tmp_path, [*flags(name), "--resume", 1, "--iter_max", 60], disk=limit)
        process.join()
        assert process.exitcode == 2, output(tmp_path)
        message = re.search(r"error: \[Errno 27\] File too large: '(.*)'", output(tmp_path).splitlines()[-1])
        assert what in Path(message[1]).name
        assert contents(folder).items() >= before.items()
        assert not list(tmp_path.rglob("*.tmp"))
        assert newest_state(tmp_path)["step"] == 30
    process = victim.start(tmp_path, [*flags(name), "--resume", 1, "--iter_max", 60])  # as it says
    process.join()
    assert process.exitcode == 0
