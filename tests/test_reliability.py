"""What docs/reliability.md says: runs that are killed, stopped, short of disk space or of memory, or started twice."""

import fcntl
import itertools
import json
import os
import random
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import killed_run
import pytest
import torch
from conftest import ROOT, Trap, contents, same, save_digits
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from codebase.models.vae import VAE
from codebase.runs.main import IgnoringWriteErrors

SCRIPTS = ["run_vae.py", "run_gmvae.py", "run_ssvae.py", "run_fsvae.py"]
ALL_OF_THEM_SLOWLY = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS])
ALL_OF_THEM = pytest.mark.parametrize(
    "name", ["run_vae.py", *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS[1:])]
)


@pytest.fixture
def flags(tmp_path):
    """flags('run_vae.py') is a command line of small steps: a checkpoint every 20, of which two are kept.

    The update is the plain one whatever --iter_max is, so that runs of different lengths have the same steps.
    """

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
            "--fast",
            0,
        ]

    return of


def events(logs):
    """All that TensorBoard shows: {tag: [(step, value), ...]}, of curves, pictures and texts except the flags."""
    shown = EventAccumulator(str(logs), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    shown.Reload()
    tags = shown.Tags()
    curves = {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in tags["scalars"]}
    pictures = {tag: [(e.step, e.encoded_image_string) for e in shown.Images(tag)] for tag in tags["images"]}
    texts = {  # as a set: TensorBoard does not forget texts, and shows one twice that was logged again, the same
        tag: sorted({(e.step, str(e.tensor_proto)) for e in shown.Tensors(tag)})
        for tag in tags["tensors"]
        if "flags" not in tag
    }
    return curves | pictures | texts


def output(folder):
    return (folder / "output.txt").read_text()


def wait_for_the_loop(process, folder):
    """Until the progress bar is there."""
    deadline = time.monotonic() + 120
    while not ((folder / "output.txt").exists() and "it/s" in output(folder)):
        assert process.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def newest_state(folder):
    """The training state of the one run there is, or None."""
    paths = list(folder.glob("checkpoints/*_run=0000/training.pt"))
    return torch.load(paths[0], weights_only=True) if paths else None


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("run_vae.py", 2),
        pytest.param("run_vae.py", 20, marks=pytest.mark.slow),
        *(pytest.param(name, 5, marks=pytest.mark.slow) for name in SCRIPTS[1:]),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(tmp_path, flags, name, kills):
    """SIGKILL, half of them at a random time, half in a random write; --resume 1 after each."""
    chance = random.Random(0)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir(), whole.mkdir()
    steps, seconds = [0], [0]
    for i in range(kills):
        in_a_write = i % 2
        process = killed_run.start(
            killed, [*flags(name), "--resume", 1], die_at=chance.randint(1, 150) if in_a_write else None
        )
        if not in_a_write:
            time.sleep(chance.uniform(0.05, 0.7))
            process.kill()
        assert killed_run.finish(process) == -signal.SIGKILL, output(killed)
        state = newest_state(killed)
        steps.append(state["step"] if state else 0)
        seconds.append(state["seconds"] if state else 0)
    print("training states after each kill:", steps)
    assert steps == sorted(steps)
    assert seconds == sorted(seconds)
    assert steps[-1] >= 20

    last = steps[-1] + 37
    for folder, resume in ((killed, 1), (whole, 0)):
        process = killed_run.start(folder, [*flags(name), "--resume", resume, "--iter_max", last])
        assert killed_run.finish(process) == 0, output(folder)
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


@pytest.mark.slow
def test_a_file_is_written_completely_or_not_at_all(tmp_path, flags):
    """SIGKILL at each place of a write in turn, through a whole run: what has its own name can be read."""
    incomplete = 0
    for die_at in itertools.count(1):
        folder = tmp_path / str(die_at)
        folder.mkdir()
        code = killed_run.finish(killed_run.start(folder, [*flags("run_vae.py"), "--iter_max", 2], die_at=die_at))
        for path in folder.glob("*/*/*"):
            incomplete += path.suffix == ".tmp"
            if path.suffix == ".pt":
                torch.load(path, weights_only=True)
            elif path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.load()
            elif path.suffix == ".json":
                json.loads(path.read_text())
        if code == 0:
            break
        assert code == -signal.SIGKILL, output(folder)
    assert die_at > 50
    assert incomplete > 10  # files that were being written


STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), STOPS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_signal_finishes_the_step_and_saves_it(tmp_path, flags, name, number, code):
    args = [*flags(name), "--iter_save", 10**6]
    process = killed_run.start(tmp_path, args)
    wait_for_the_loop(process, tmp_path)
    time.sleep(0.3)
    os.kill(process.pid, number)
    assert killed_run.finish(process) == code, output(tmp_path)
    said = re.search(r"^stopped after step ([\d,]+), which is saved: --resume 1 resumes it", output(tmp_path), re.M)
    step = int(said[1].replace(",", ""))
    assert step >= 1
    state = newest_state(tmp_path)
    assert state["step"] == step
    assert "Traceback" not in output(tmp_path)

    # Resumed, it has the weights of a run that was never stopped.
    (tmp_path / "whole").mkdir()
    for folder, resume in ((tmp_path, 1), (tmp_path / "whole", 0)):
        process = killed_run.start(folder, [*args, "--resume", resume, "--iter_max", step + 20])
        assert killed_run.finish(process) == 0, output(folder)
    states = [newest_state(folder) for folder in (tmp_path, tmp_path / "whole")]
    assert same(*(state["weights"] for state in states))


@pytest.mark.parametrize("how", [[], ["--overwrite", 1]])
@ALL_OF_THEM_SLOWLY
def test_a_second_start_is_refused_while_the_first_lives(tmp_path, flags, name, how):
    """Before there is a checkpoint; a process that was killed does not keep the run."""
    first = killed_run.start(tmp_path, [*flags(name), "--iter_save", 10**7, "--iter_max", 10**7, *how])
    wait_for_the_loop(first, tmp_path)
    before = {path: what for path, what in contents(tmp_path / "checkpoints").items() if path.suffix == ".pt"}
    for more in ([], ["--resume", 1], ["--overwrite", 1]):
        second = killed_run.start(tmp_path, [*flags(name), *more])
        assert killed_run.finish(second) == 2, output(tmp_path)
        assert "is in use by another process" in output(tmp_path)
    assert before.items() <= contents(tmp_path / "checkpoints").items()
    first.kill()
    assert killed_run.finish(first) == -signal.SIGKILL
    third = killed_run.start(tmp_path, [*flags(name), "--resume", 1, "--iter_max", 2])
    assert killed_run.finish(third) == 0, output(tmp_path)


@ALL_OF_THEM_SLOWLY
def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint_whole(tmp_path, flags, name):
    """A limit of the size of files, which is met by pictures and curves (at step 0 of another run, which writes nothing
    larger before them), weights and the training state in turn."""
    process = killed_run.start(tmp_path, [*flags(name), "--iter_max", 30])
    assert killed_run.finish(process) == 0, output(tmp_path)
    (folder,) = tmp_path.glob("checkpoints/*_run=0000")
    pictures = [path.stat().st_size for path in tmp_path.glob("logs/*/*.png")]
    limits = {
        "png": 6000,  # more than the flags among the curves, less than the first picture
        "tfevents": max(pictures) + 1000,  # which has all of them
        "model": (folder / "model-00030.pt").stat().st_size - 1,
        "training": (folder / "training.pt").stat().st_size - 1000,  # it holds fewer curves at other steps
    }
    for what, limit in limits.items():
        before = {path: path.read_bytes() for path in folder.glob("*.pt")}
        more = ["--run", 1] if what in ("png", "tfevents") else ["--resume", 1]
        process = killed_run.start(tmp_path, [*flags(name), *more, "--iter_max", 60], disk=limit)
        assert killed_run.finish(process) == 2, output(tmp_path)
        message = re.search(r"error: \[Errno 27\] File too large: '(.*)'", output(tmp_path).splitlines()[-1])
        assert what in Path(message[1]).name
        assert contents(folder).items() >= before.items()
        assert not list(tmp_path.rglob("*.tmp"))
        assert newest_state(tmp_path)["step"] == 30
    process = killed_run.start(tmp_path, [*flags(name), "--resume", 1, "--iter_max", 60])  # as it says
    assert killed_run.finish(process) == 0


@pytest.fixture
def trained(script, flags, monkeypatch):
    """trained('run_vae.py') trains 30 steps, saved at 20 and 30. Returns (call with more flags, checkpoints, logs)."""

    def of(name):
        usual = flags(name)
        assert script(*usual, "--iter_max", 30)[0] == 0
        (folder,) = Path("checkpoints").glob("*_run=0000")
        return partial(script, *usual), folder, Path("logs", folder.name)

    return of


@ALL_OF_THEM
def test_damaged_files_are_named(trained, name):
    call, folder, _ = trained(name)
    weights, state = folder / "model-00030.pt", folder / "training.pt"
    for path, args in ((weights, ["--train", 0, "--iw_eval", 2]), (state, ["--resume", 1, "--iter_max", 40])):
        whole = path.read_bytes()
        middle = len(whole) // 2
        for damaged in (b"", b"hello", whole[:1000], whole[:-100], whole[:middle] + b"x" + whole[middle + 1 :]):
            path.write_bytes(damaged)
            code, _, err = call(*args)
            assert code == 2
            assert len(err.splitlines()) == 1
            assert f"error: {path} cannot be read" in err
            assert path.read_bytes() == damaged
    assert call("--train", 0, "--iw_eval", 2, "--iter_max", 20)[0] == 0  # the checkpoint before it
    state.unlink()
    code, _, err = call("--resume", 1, "--iter_max", 40)
    assert code == 2
    assert f"{folder} holds weights, but no training.pt" in err


@ALL_OF_THEM
def test_weights_of_another_model_and_of_another_z(trained, script, tmp_path, name):
    call, folder, _ = trained(name)
    usual = call.args
    for wrong in (VAE(z_dim=3, x_dim=9).state_dict(), {"z": torch.zeros(3)}, {}):
        torch.save(wrong, folder / "model-00030.pt")
        code, _, err = call("--train", 0)
        assert code == 2
        assert f"model-00030.pt does not fit this {name[4:-3].upper()}: " in err
    code, _, err = script(
        *[3 if flag == 2 else flag for flag in usual], "--train", 0, "--checkpoint", folder / "model-00020.pt"
    )
    assert code == 2
    assert "model-00020.pt does not fit this" in err
    assert re.search(r"[\w.]+ is \(.*\) instead of \(.*\)", err)


@ALL_OF_THEM
def test_resume_with_other_flags_than_the_run_began_with(trained, script, flags, name):
    """There is nothing in the folder of that name; the error names the run with the other flags."""
    call, folder, _ = trained(name)
    for args in (["--lr", 0.01], ["--seed", 5], ["--z", 3, "--batch_size", 20]):
        for action in (["--resume", 1], ["--train", 0]):
            code, _, err = call(*args, *action)
            assert code == 2
            assert f"(there is {folder.name})" in err
    assert [path for path in Path("checkpoints").iterdir() if path.is_dir()] == [folder]
    moved = Path(str(folder).replace("_z=2", "_z=3"))
    folder.rename(moved)
    code, _, err = call("--z", 3, "--resume", 1)
    assert code == 2
    assert "training.pt belongs to a run that began with other flags: --z was 2 and is 3." in err
    moved.rename(folder)
    others = ["--iter_max", 31, "--iter_save", 5, "--keep", 0, "--device", "auto", "--train", 2, "--iw_eval", 3]
    assert call("--resume", 1, *others)[0] == 0


@ALL_OF_THEM
def test_evaluating_twice_and_deterministic_algorithms_give_the_same_numbers(trained, script, flags, name):
    call, folder, logs = trained(name)
    results = []
    for _ in range(2):
        assert call("--train", 0, "--iw_eval", "1,3", "--full", 1)[0] == 0
        results.append(
            (json.loads((logs / "results.json").read_text())["results"], (logs / "samples.png").read_bytes())
        )
    assert results[0] == results[1]
    weights = torch.load(folder / "model-00030.pt", weights_only=True)
    try:
        assert call("--overwrite", 1, "--iter_max", 30, "--deterministic", 1)[0] == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(dict(weights), dict(torch.load(folder / "model-00030.pt", weights_only=True)))


def test_weights_that_overflow_are_no_result(trained):
    """Finite weights whose bounds are not: an error, not a number."""
    call, folder, logs = trained("run_vae.py")
    weights = torch.load(folder / "model-00030.pt", weights_only=True)
    weights["enc.net.4.bias"] += 1e38
    torch.save(weights, folder / "model-00030.pt")
    before = (logs / "results.json").read_bytes()
    code, _, err = call("--train", 0)
    assert code == 1
    assert "error: a bound is not finite for 100 of 100 images: these weights overflow float32." in err
    assert (logs / "results.json").read_bytes() == before


def test_results_that_cannot_be_read_are_made_again(trained):
    call, _, logs = trained("run_vae.py")
    before = json.loads((logs / "results.json").read_text())["results"]
    for damaged in ("", "{", "[]", '{"step": 30}', '{"step": 30, "results": {"subset": 3}}'):
        (logs / "results.json").write_text(damaged)
        assert call("--train", 0, "--iw_eval", 2)[0] == 0
        after = json.loads((logs / "results.json").read_text())["results"]
        assert after["test"] == before["test"]


def test_too_little_memory_is_a_sentence(trained, monkeypatch):
    """In the words of PyTorch's allocators."""
    call, *_ = trained("run_vae.py")

    def fail():
        torch.empty(2**45)

    for error in (fail, lambda: bytearray(2**62)):
        monkeypatch.setattr(VAE, "negative_elbo_bound", lambda self, x, error=error: error())
        code, _, err = call("--run", 1)
        assert code == 2
        assert "error: there is not enough memory: use smaller numbers" in err.splitlines()[-1]
    monkeypatch.setattr(VAE, "negative_elbo_bound", lambda self, x: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):  # a mistake in the code is still raised
        call("--run", 2)


@pytest.mark.slow
@pytest.mark.parametrize("stderr", [subprocess.PIPE, subprocess.STDOUT])
def test_who_reads_what_is_printed_may_leave(tmp_path, flags, stderr):
    """As in `python run_vae.py | head -5`, and with 2>&1: the run goes on to its end, and keeps its report."""
    command = [sys.executable, ROOT / "run_vae.py", *flags("run_vae.py")[1:], "--iter_max", "5"]
    with subprocess.Popen(
        [*map(str, command)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:
        while not process.stdout.readline().startswith("curves"):
            assert process.poll() is None
        process.stdout.close()
        assert process.stderr is None or "Traceback" not in process.stderr.read()
    assert process.returncode == 0
    assert newest_state(tmp_path)["step"] == 5
    (results,) = tmp_path.glob("logs/*/results.json")
    assert json.loads(results.read_text())["complete"] is True


@pytest.mark.slow
def test_closed_output(tmp_path, flags):
    """As by `>&- 2>&-`."""
    command = [sys.executable, ROOT / "run_vae.py", *flags("run_vae.py")[1:], "--iter_max", "5"]
    line = f"{shlex.join(map(str, command))} >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=tmp_path).returncode == 0
    assert newest_state(tmp_path)["step"] == 5
    assert list(tmp_path.glob("logs/*/results.json"))


@pytest.mark.slow
def test_a_terminal_that_is_closed(tmp_path, flags):
    """The kernel sends SIGHUP, and nothing can be printed any more: the step is saved."""
    ours, theirs = os.openpty()
    command = [sys.executable, ROOT / "run_vae.py", *flags("run_vae.py")[1:], "--iter_save", 10**6]

    def take_terminal():
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is ignored by what nohup starts
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # or the bar shows nothing

    process = subprocess.Popen(
        [*map(str, command)], cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal
    )
    os.close(theirs)
    try:
        shown = b""
        while b"it/s" not in shown:
            assert select.select([ours], [], [], 120)[0]
            shown = os.read(ours, 10_000)
        os.close(ours)
        assert process.wait(timeout=120) == 129
    finally:
        process.kill()
        process.wait()
    assert newest_state(tmp_path)["step"] > 0


@pytest.mark.slow
def test_nothing_is_unpickled_executed_or_listened_for(tmp_path, flags):
    """Python's audit events of a training and an evaluation, with files that would execute code among those read."""
    watch = tmp_path / "watch.py"
    watch.write_text(
        f"""
import runpy, sys, torch, torchvision.utils
events = ["socket.bind", "socket.listen", "socket.connect"]
events += ["os.system", "os.exec", "subprocess.Popen", "pickle.find_class"]
def hook(event, args):
    if event in events:
        print("AUDIT", event, args[1] if event == "subprocess.Popen" else args, file=sys.stderr)
sys.addaudithook(hook)
sys.path.insert(0, {str(ROOT)!r})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    )

    def run(*args):
        command = [sys.executable, watch, ROOT / args[0], *args[1:]]
        done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, {line for line in done.stderr.splitlines() if line.startswith("AUDIT")}

    usual = flags("run_vae.py")
    git = "AUDIT subprocess.Popen ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']"
    assert run(*usual, "--iter_max", 3, "--train", 2, "--iw_eval", 2) == (0, {git})
    torch.save({"enc": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    assert run(*usual, "--train", 0, "--checkpoint", "trap.pt") == (2, {git})
    assert not (tmp_path / "sprung").exists()


@ALL_OF_THEM_SLOWLY
def test_a_run_is_overwritten_by_halves_or_whole_but_never_resumed_by_mistake(tmp_path, flags, name):
    """Killed during the deletions of --overwrite 1: --resume 1 finds the whole run, none, or says what is left."""
    said = set()
    for die_at in (1, 2, 3, 6, 9):
        folder = tmp_path / str(die_at)
        folder.mkdir()
        assert killed_run.finish(killed_run.start(folder, [*flags(name), "--iter_max", 30])) == 0
        assert (
            killed_run.finish(killed_run.start(folder, [*flags(name), "--overwrite", 1], die_at=die_at))
            == -signal.SIGKILL
        )
        code = killed_run.finish(killed_run.start(folder, [*flags(name), "--resume", 1, "--iter_max", 30]))
        (words,) = re.findall(
            "resuming after step (30)|(nothing to resume)|(holds weights, but no training.pt)",
            output(folder),
        )
        words = "".join(words)
        assert code == (2 if words.startswith("holds") else 0), output(folder)
        if words == "30":
            assert list(folder.glob("logs/*/*tfevents*"))
        said.add(words)
    assert said >= {"30", "holds weights, but no training.pt"}


def test_a_run_of_which_only_the_training_state_is_left_is_a_run(trained):
    call, folder, _ = trained("run_vae.py")
    for path in folder.glob("model-*.pt"):
        path.unlink()
    before = contents(folder)
    code, _, err = call("--iter_max", 5)
    assert code == 2
    assert "already holds a run. --resume 1 resumes a run" in err
    assert contents(folder) == before


@pytest.mark.slow
def test_the_report_of_a_run_is_within_its_lock(tmp_path, flags):
    args = [*flags("run_vae.py"), "--iter_max", 2, "--train", 2, "--iw_eval", 5000]
    first = killed_run.start(tmp_path, args)
    while not list(tmp_path.glob("logs/*/results.json")):
        assert first.exitcode is None
        time.sleep(0.02)
    (tmp_path / "output.txt").rename(tmp_path / "first.txt")
    assert killed_run.finish(killed_run.start(tmp_path, [*flags("run_vae.py"), "--resume", 1, "--iter_max", 3])) == 2
    assert "in use" in output(tmp_path)
    assert first.is_alive()
    assert killed_run.finish(first) == 0


def test_a_second_look_at_a_file_of_weights_keeps_what_the_first_found(trained):
    call, folder, _ = trained("run_vae.py")
    for m in (2, 3):
        assert call("--train", 0, "--checkpoint", folder / "model-00020.pt", "--iw_eval", m)[0] == 0
    (path,) = Path("logs").glob("*_checkpoint=*/results.json")
    assert {"iwae_2", "iwae_3"} <= json.loads(path.read_text())["results"]["subset"].keys()


def test_a_notebooks_stream_has_fewer_methods_than_a_terminals():
    """A script that is run in a notebook (%run) prints to an object with write and flush alone."""
    written = []
    stream = IgnoringWriteErrors(SimpleNamespace(write=written.append, flush=lambda: None))
    print("NELBO ±", file=stream, flush=True)
    assert written == ["NELBO ±", "\n"]
