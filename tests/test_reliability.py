"""What docs/reliability.md says: runs that are killed, short of disk space or of memory, started twice, or damaged."""

import contextlib
import fcntl
import itertools
import json
import os
import random
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import killed_run
import pytest
import torch
from conftest import ROOT, Trap, contents, curves, pictures_shown, same, save_digits, weights
from PIL import Image

from codebase.runs.main import IgnoringWriteErrors

OTHERS = ["run_gmvae.py", "run_ssvae.py", "run_fsvae.py"]


@pytest.fixture
def flags(tmp_path):
    """flags('run_vae.py') is a command line of small steps: a checkpoint every 20.

    The update is the plain one whatever --iter_max is, so that runs of different lengths have the same steps.
    """

    def of(name):
        digits = save_digits(tmp_path / f"digits-of-{name}.npz", colour=name == "run_fsvae.py")
        usual = "--batch_size 10 --hidden 30 --iter_save 20 --device cpu --fast 0"
        return [name, "--dataset", digits, *usual.split()]

    return of


def output(folder):
    return (folder / "output.txt").read_text()


def run_to_its_end(folder, args, code=0, **how):
    """What a run prints that ends with this code."""
    folder.mkdir(exist_ok=True)
    assert killed_run.finish(killed_run.start(folder, args, **how)) == code, output(folder)
    return output(folder)


def wait_until_printed(text, process, folder):
    deadline = time.monotonic() + 120
    while not ((folder / "output.txt").exists() and text in output(folder)):
        assert process.exitcode is None, output(folder)
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
        pytest.param("run_vae.py", 8, marks=pytest.mark.slow),
        *(pytest.param(name, 4, marks=pytest.mark.slow) for name in OTHERS),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(tmp_path, flags, name, kills):
    """SIGKILL, half of them at a random time, half in a random write; --resume 1 after each."""
    chance = random.Random(0)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    steps, seconds = [0], [0]
    for i in range(kills):
        in_a_write = i % 2
        die_at = chance.randint(1, 150) if in_a_write else None
        process = killed_run.start(killed, [*flags(name), "--resume", 1], die_at=die_at)
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
    run_to_its_end(killed, [*flags(name), "--resume", 1, "--iter_max", last])
    run_to_its_end(whole, [*flags(name), "--iter_max", last])
    (a,), (b,) = (list(folder.glob("checkpoints/*")) for folder in (killed, whole))
    assert {path.name for path in a.iterdir()} == {path.name for path in b.iterdir()}
    for path in a.glob("*.pt"):
        states = [torch.load(folder / path.name, weights_only=True) for folder in (a, b)]
        for state in states:
            state.pop("seconds", None)
        assert same(*states), path.name
    a, b = (folder / "logs" / a.name for folder in (killed, whole))
    assert curves(a) == curves(b)
    assert [step for step, _ in curves(a)["train/loss"]] == [*range(7, last, 7), last]
    assert pictures_shown(a) == pictures_shown(b)
    files = [
        {path.name: path.read_bytes() for path in logs.iterdir() if "tfevents" not in path.name} for logs in (a, b)
    ]
    records = [json.loads(each.pop("results.json")) for each in files]
    assert files[0] == files[1]
    assert records[0]["results"] == records[1]["results"]
    assert records[0]["trained"]["steps"] == records[1]["trained"]["steps"] == last
    assert records[0]["trained"]["seconds"] >= seconds[-1]


@pytest.mark.slow
def test_a_file_is_written_completely_or_not_at_all(tmp_path, flags):
    """SIGKILL at each place of a write in turn, through a whole run: what has its own name can be read."""
    args = [*flags("run_ssvae.py"), "--gw", 0, "--iter_max", 1]  # which has few curves and pictures
    incomplete = 0
    for die_at in itertools.count(1):
        folder = tmp_path / str(die_at)
        folder.mkdir()
        code = killed_run.finish(killed_run.start(folder, args, die_at=die_at))
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "printed"),
    [
        (["--iter_max", 10**7, "--iter_save", 10**7], "it/s"),  # training, before there is a checkpoint
        (["--iter_max", 2, "--train", 2, "--iw_eval", 10**5], "NELBO"),  # the report
    ],
)
def test_a_second_start_is_refused_while_the_first_lives(tmp_path, flags, phase, printed):
    """A process that was killed does not keep the run."""
    usual = flags("run_vae.py")
    first = killed_run.start(tmp_path, [*usual, *phase])
    wait_until_printed(printed, first, tmp_path)
    before = contents(tmp_path / "checkpoints")
    for more in ([], ["--resume", 1], ["--overwrite", 1]):
        assert "is in use by another process" in run_to_its_end(tmp_path, [*usual, *more], code=2)
    assert contents(tmp_path / "checkpoints") == before
    assert first.is_alive()
    first.kill()
    assert killed_run.finish(first) == -signal.SIGKILL
    run_to_its_end(tmp_path, [*usual, "--resume", 1, "--iter_max", 3])


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint_whole(tmp_path, flags):
    """A limit of the size of files, which is met by pictures and curves (at step 0 of another run, which writes nothing
    larger before them), weights and the training state in turn."""
    usual = [*flags("run_vae.py"), "--hidden", 300]  # weights that are larger than the pictures
    run_to_its_end(tmp_path, [*usual, "--iter_max", 30])
    (folder,) = tmp_path.glob("checkpoints/*_run=0000")
    pictures = [path.stat().st_size for path in tmp_path.glob("logs/*/*.png")]
    limits = {
        "png": 6000,  # more than the flags among the curves, less than the first picture
        "tfevents": max(pictures) + 1000,  # which has all of them
        "model": (folder / "model-00030.pt").stat().st_size - 1,
        "training": (folder / "training.pt").stat().st_size - 1000,  # it holds fewer curves at other steps
    }
    for what, limit in limits.items():
        before = contents(folder)
        more = ["--run", 1] if what in ("png", "tfevents") else ["--resume", 1]
        said = run_to_its_end(tmp_path, [*usual, *more, "--iter_max", 60], code=2, disk=limit)
        message = re.search(r"error: \[Errno 27\] File too large: '(.*)'", said.splitlines()[-1])
        assert what in Path(message[1]).name
        assert contents(folder).items() >= before.items()
        assert not list(tmp_path.rglob("*.tmp"))
        assert newest_state(tmp_path)["step"] == 30
    run_to_its_end(tmp_path, [*usual, "--resume", 1, "--iter_max", 60])


@pytest.mark.slow
def test_a_run_is_overwritten_by_halves_or_whole_but_never_resumed_by_mistake(tmp_path, flags):
    """Killed during the deletions of --overwrite 1: --resume 1 finds the whole run, none, or says what is left."""
    usual = flags("run_vae.py")
    run_to_its_end(tmp_path / "run", [*usual, "--iter_max", 30])
    halves = "holds weights, but no training.pt"
    resuming = "resuming after step 30"
    for die_at, words in ((1, resuming), (2, resuming), (3, halves), (10, halves), (11, "nothing to resume")):
        folder = tmp_path / str(die_at)
        shutil.copytree(tmp_path / "run", folder)
        run_to_its_end(folder, [*usual, "--overwrite", 1], code=-signal.SIGKILL, die_at=die_at)
        assert list(folder.glob("logs/*/*tfevents*")) or words != resuming
        assert not list(folder.glob("logs/*/results.json")) or die_at == 1
        code = 2 if words == halves else 0
        assert words in run_to_its_end(folder, [*usual, "--resume", 1, "--iter_max", 30], code)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["2>&1 | head -3", ">&- 2>&-"])
def test_nobody_reads_what_is_printed(tmp_path, flags, ending):
    """The run goes on to its end, and keeps its report."""
    command = [sys.executable, ROOT / "run_vae.py", *flags("run_vae.py")[1:], "--iter_max", 5]
    line = f"{shlex.join(map(str, command))} {ending}"
    subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, check=True)
    (results,) = tmp_path.glob("logs/*/results.json")
    assert json.loads(results.read_text())["complete"] is True


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
        assert process.wait(timeout=120) == -signal.SIGHUP
    finally:
        process.kill()
        process.wait()
    assert newest_state(tmp_path)["step"] > 0


@pytest.mark.slow
def test_ctrl_c_ends_a_loop_in_the_shell(tmp_path, flags):
    """Because the run ends by that signal, after saving."""
    command = shlex.join(map(str, [sys.executable, ROOT / "run_vae.py", *flags("run_vae.py")[1:], "--iter_max", 10**6]))
    line = f"for z in 2 3; do {command} --z $z; done"
    loop = subprocess.Popen(
        ["bash", "-c", line],
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 120
        while not newest_state(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(loop.pid, signal.SIGINT)
        assert loop.wait(timeout=120) == -signal.SIGINT
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(loop.pid, signal.SIGKILL)
    assert len(list(tmp_path.glob("checkpoints/*"))) == 1


@pytest.mark.slow
def test_nothing_is_unpickled_executed_or_listened_for(tmp_path, flags):
    """Python's audit events of a training and an evaluation, with files that would execute code among those read."""
    watch = ["socket.bind", "socket.listen", "socket.connect", "os.system", "os.exec", "subprocess.Popen"]
    watch.append("pickle.find_class")
    usual = flags("run_vae.py")
    torch.save({"enc": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    for more, code in ((["--iter_max", 3, "--train", 2, "--iw_eval", 2], 0), (["--checkpoint", "trap.pt"], 2)):
        said = run_to_its_end(tmp_path, [*usual, *more], code, watch=watch)
        (event,) = set(re.findall("^AUDIT .*", said, re.M))
        assert "('subprocess.Popen', ('git', ['git', 'describe', " in event
    assert not (tmp_path / "sprung").exists()


def test_damaged_and_wrong_files_are_named(trained, folders):
    folder, _ = folders()
    state = folder / "training.pt"
    evaluate, resume = ["--train", 0, "--iw_eval", 2], ["--resume", 1, "--iter_max", 40]
    for path, args in ((folder / "model-00030.pt", evaluate), (state, resume)):
        whole = path.read_bytes()
        middle = len(whole) // 2
        changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for damaged in (b"", b"hello", whole[:1000], whole[:-100], changed):
            path.write_bytes(damaged)
            code, _, err = trained(*args)
            assert code == 2
            assert len(err.splitlines()) == 1
            assert f"error: {path.relative_to(Path.cwd())} cannot be read" in err
            assert path.read_bytes() == damaged
    assert trained(*evaluate, "--iter_max", 20)[0] == 0  # the checkpoint before it
    code, _, err = trained("--z", 3, "--checkpoint", folder / "model-00020.pt")
    assert code == 2
    assert "model-00020.pt does not fit this VAE: its --z is 10, not 3." in err
    state.unlink()
    code, _, err = trained(*resume)
    assert code == 2
    assert "holds weights, but no training.pt" in err


def test_other_flags_than_the_run_began_with(trained, folders):
    """Its folder has another name: --train 0 names the runs that there are, --resume 1 begins another one."""
    folder, _ = folders()
    for args in (["--lr", 0.01], ["--seed", 5], ["--z", 3, "--batch_size", 20]):
        code, _, err = trained(*args, "--train", 0)
        assert code == 2
        assert f"train first (there is {folder.name})" in err
    moved = Path(str(folder).replace("_z=10", "_z=3"))
    folder.rename(moved)
    code, _, err = trained("--z", 3, "--resume", 1)
    assert code == 2
    assert "training.pt belongs to a run that began with other flags: --z was 10 and is 3." in err
    moved.rename(folder)
    others = ["--iter_max", 31, "--iter_save", 5, "--device", "auto", "--train", 2, "--iw_eval", 3]
    assert "resuming after step 30" in trained("--resume", 1, *others)[1]
    assert "nothing to resume" in trained("--resume", 1, "--lr", 0.01, "--iter_max", 1)[1]


@pytest.mark.parametrize("name", ["run_vae.py", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_evaluating_twice_and_deterministic_algorithms_give_the_same_numbers(on_digits, folders, name):
    usual = [name, "--z", 3, "--iter_max", 5]
    assert on_digits(*usual)[0] == 0
    checkpoints, logs = folders()
    results, pictures = [], []
    for _ in range(2):
        assert on_digits(*usual[:3], "--train", 0, "--iw_eval", "1,3", "--full", 1)[0] == 0
        results.append(json.loads((logs / "results.json").read_text())["results"])
        pictures.append((logs / "samples.png").read_bytes())
    assert results[0] == results[1]
    assert pictures[0] == pictures[1]
    before = weights(checkpoints, 5)
    try:
        assert on_digits(*usual, "--overwrite", 1, "--deterministic", 1)[0] == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(before, weights(checkpoints, 5))


def test_weights_that_overflow_are_no_result(trained, folders):
    """Finite weights whose bounds are not: an error, not a number."""
    folder, logs = folders()
    large = weights(folder, 30)
    large["enc.net.4.bias"] += 1e38
    torch.save(large, folder / "model-00030.pt")
    before = (logs / "results.json").read_bytes()
    code, _, err = trained("--train", 0)
    assert code == 1
    assert "error: a bound is not finite for 100 of 100 images: these weights overflow float32." in err
    assert (logs / "results.json").read_bytes() == before


def test_results_that_cannot_be_read_are_made_again(trained, folders):
    path = folders()[1] / "results.json"
    before = json.loads(path.read_text())
    for damaged in ("{", json.dumps(before | {"results": {"subset": 3}})):
        path.write_text(damaged)
        assert trained("--train", 0, "--iw_eval", 2)[0] == 0
        assert json.loads(path.read_text())["results"]["test"] == before["results"]["test"]


def test_paths_that_are_not_utf_8(vae, digits, tmp_path):
    name = tmp_path / "donn\udce9es.npz"  # a byte of Latin-1, as Python decodes it
    digits.rename(name)
    for more in (["--iter_max", 2], ["--train", 0, "--iw_eval", 2]):
        code, out, err = vae("--dataset", name, "--data_dir", "data_\udce9", *more)
        assert code == 0, err
        assert "donn\\udce9es.npz" in out


def test_a_notebooks_stream_has_fewer_methods_than_a_terminals():
    """A script that is run in a notebook (%run) prints to an object with write and flush alone."""
    written = []
    stream = IgnoringWriteErrors(SimpleNamespace(write=written.append, flush=lambda: None))
    print("NELBO ±", file=stream, flush=True)
    assert written == ["NELBO ±", "\n"]
