"""An existing run: resumed, overwritten, or not changed; a run that is stopped by a signal or an error."""

import contextlib
import json
import re
import runpy
import signal
from pathlib import Path

import pytest
import torch
from conftest import ROOT, STATES, contents, curves, same, saved, weights

from codebase import pictures
from codebase.errors import InputError
from codebase.models.vae import VAE
from codebase.runs import files
from codebase.runs.flags import parse_flags
from codebase.runs.run import execute, open_run


def test_train_0_takes_the_newest_checkpoint_or_that_of_iter_max(vae):
    vae()
    assert "model-00030.pt" in vae("--train", 0, "--iw_eval", 2)[1].replace("--iter_max", "")
    assert "model-00020.pt" in vae("--train", 0, "--iter_max", 20, "--iw_eval", 2)[1]
    code, _, err = vae("--train", 0, "--iter_max", 25)
    assert code == 2
    assert re.search(r"checkpoints/model=vae\S* has no model-00025.pt: ", err)
    assert "there are steps 20, 30" in err


def test_same_seed_same_weights_bit_for_bit(vae, folders, tmp_path):
    vae()
    first, _ = folders()
    a = weights(first, 30)
    vae("--overwrite", 1)
    assert same(a, weights(first, 30))
    vae("--run", 1)
    assert not same(a, weights(tmp_path / "checkpoints" / first.name.replace("run=0000", "run=0001"), 30))


def test_resume_gives_what_an_uninterrupted_run_gives(vae, folders):
    """220 steps, against 110 that are resumed to 220: weights, training state, curves, and numbers."""
    vae("--iter_max", 220, "--iter_save", 1000)
    checkpoints, logs = folders()
    a, state, curve = (
        weights(checkpoints, 220),
        torch.load(checkpoints / "training.pt", weights_only=True),
        curves(logs),
    )
    record = json.loads((logs / "results.json").read_text())
    vae("--iter_max", 110, "--iter_save", 1000, "--overwrite", 1)
    assert not (checkpoints / "model-00220.pt").exists()
    code, out, _ = vae("--iter_max", 220, "--iter_save", 1000, "--resume", 1)
    assert code == 0
    assert "resuming after step 110" in out
    assert same(a, weights(checkpoints, 220))
    again = torch.load(checkpoints / "training.pt", weights_only=True)
    assert again["random"]["cpu"].equal(state["random"]["cpu"])
    for p, q in zip(state["optimizer"]["state"].values(), again["optimizer"]["state"].values(), strict=True):
        assert same(p, q)
    assert same(state["optimizer"]["param_groups"][0], again["optimizer"]["param_groups"][0])
    after = json.loads((logs / "results.json").read_text())
    assert after["results"] == record["results"]
    assert (after["step"], after["trained"]["steps"]) == (220, 220)
    resumed = curves(logs)
    assert {tag: [point for point in points if point[0] != 110] for tag, points in resumed.items()} == curve


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_parts(vae, folders):
    """In results.json, and in the training state, which the next part goes on from."""
    vae("--iter_max", 10)
    checkpoints, logs = folders()
    state = torch.load(checkpoints / "training.pt", weights_only=True)
    torch.save(state | {"seconds": 1000.0}, checkpoints / "training.pt")
    vae("--iter_max", 20, "--resume", 1)
    assert torch.load(checkpoints / "training.pt", weights_only=True)["seconds"] > 1000
    assert json.loads((logs / "results.json").read_text())["trained"]["seconds"] > 1000


def test_overwriting_leaves_nothing_of_the_run_before(vae, folders):
    vae("--iter_max", 10)
    checkpoints, logs = folders()
    assert vae("--iter_max", 9, "--overwrite", 1)[0] == 0
    assert saved(checkpoints) == {"model-00009.pt", *STATES}
    assert len(list(logs.glob("*tfevents*"))) == 1


def test_an_overwriting_that_is_interrupted_leaves_nothing_to_resume(vae, folders, monkeypatch):
    """Otherwise the run would go on, and its curves, which are deleted already, would begin in the middle."""
    vae("--iter_max", 10)
    _, logs = folders()
    clear = files.clear

    def interrupted(folder, *what):
        clear(folder, *what)
        if folder.samefile(logs) and not what:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "clear", interrupted)
        assert vae("--iter_max", 10, "--overwrite", 1)[0] != 0
    code, _, err = vae("--iter_max", 20, "--resume", 1)
    assert code == 2
    assert "holds weights, but no training.pt" in err


def test_resume_forgets_the_points_that_were_logged_after_the_last_save(vae, folders):
    """A process that died at step 120, with its last checkpoint at 90: each step is shown once in the end."""
    vae("--iter_max", 90, "--iter_save", 90)
    checkpoints, logs = folders()
    before = (checkpoints / "training.pt").read_bytes()
    vae("--iter_max", 120, "--iter_save", 90, "--resume", 1)
    state = torch.load(checkpoints / "training.pt", weights_only=True)
    (checkpoints / "model-00120.pt").unlink()
    (checkpoints / "training.pt").write_bytes(before)
    vae("--iter_max", 120, "--iter_save", 90, "--resume", 1)
    assert [step for step, _ in curves(logs)["train/loss"]] == [90, 100, 120]
    assert torch.load(checkpoints / "training.pt", weights_only=True)["random"]["cpu"].equal(state["random"]["cpu"])


def test_resume_with_nothing_to_do_and_with_nothing_there(vae, folders):
    code, out, _ = vae("--resume", 1)
    assert code == 0
    assert "nothing to resume" in out
    vae("--train", 0, "--iw_eval", 3)
    checkpoints, logs = folders()
    before = contents(checkpoints)
    code, out, _ = vae("--resume", 1)
    assert code == 0
    assert "already at step 30" in out
    assert contents(checkpoints) == before
    record = json.loads((logs / "results.json").read_text())
    assert record["trained"]["steps"] == 30
    assert "iwae_3" in record["results"]["subset"]


def test_a_second_run_touches_nothing_of_the_first(vae, folders):
    vae()
    checkpoints, logs = folders()
    before = contents(checkpoints) | contents(logs)
    code, _, err = vae()
    assert code == 2
    assert all(hint in err for hint in ("--resume 1", "--overwrite 1", "--run 1", "--train 0"))
    assert "Traceback" not in err
    assert contents(checkpoints) | contents(logs) == before


def test_keep(vae, folders):
    """The newest two of every five steps, and the last step's; from all that an earlier process left, too."""
    vae("--iter_save", 5, "--iter_max", 17)
    assert vae("--iter_save", 5, "--iter_max", 28, "--keep", 2, "--resume", 1)[0] == 0
    assert saved(folders()[0]) == {"model-00020.pt", "model-00025.pt", "model-00028.pt", *STATES}
    assert vae("--iter_save", 5, "--iter_max", 40, "--keep", 2, "--resume", 1)[0] == 0
    assert saved(folders()[0]) == {"model-00035.pt", "model-00040.pt", *STATES}


def test_a_folder_that_cannot_be_written_is_named_before_training(vae, tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    code, out, err = vae()
    assert code == 2
    assert "error: " in err
    assert "checkpoints" in err
    assert "trained" not in out
    assert "Traceback" not in err


def test_a_diverging_run_stops_and_keeps_the_last_checkpoint(vae, folders):
    code, _, err = vae("--lr", 1e30)
    assert code == 1
    assert re.search(r"error: the loss of step \d+ is (inf|nan)", err)
    assert saved(folders()[0]) == set()


@pytest.fixture
def handled():
    """handled(handler) sets the handler of the signals that stop a run, which a shell's background jobs may ignore."""
    before = {number: signal.getsignal(number) for number in STOPS}

    def handle(handler=signal.SIG_DFL):
        for number in STOPS:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default if handler == signal.SIG_DFL else handler)

    yield handle
    for number, handler in before.items():
        signal.signal(number, handler)


STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}  # and the exit codes


@pytest.fixture
def at_step(monkeypatch):
    """at_step(n, numbers): these signals come one after the other while the n-th loss is computed, once."""

    def come(n, numbers):
        loss, pending = VAE.loss, list(numbers)

        def loss_with_signals(model, *batch):
            while pending and model.step == n - 1:
                signal.raise_signal(pending.pop(0))
            return loss(model, *batch)

        monkeypatch.setattr(VAE, "loss", loss_with_signals)

    return come


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_finishes_the_step_and_saves_it(vae, folders, handled, at_step, number):
    """Resumed, the run has the weights of an uninterrupted run; afterwards the signal has its usual effect again."""
    handled()
    at_step(7, [number])
    before = signal.getsignal(number)
    code, out, _ = vae()
    assert code == STOPS[number]
    assert out.count("stopped after step 7, which is saved: --resume 1 resumes it") == 1
    assert "NELBO" not in out
    checkpoints, _ = folders()
    assert torch.load(checkpoints / "training.pt", weights_only=True)["step"] == 7
    assert signal.getsignal(number) == before
    assert vae("--resume", 1)[0] == 0
    resumed = weights(checkpoints, 30)
    vae("--overwrite", 1)
    assert same(resumed, weights(checkpoints, 30))


def test_a_second_ctrl_c_stops_at_once(vae, folders, handled, at_step):
    handled()
    at_step(7, [signal.SIGINT, signal.SIGINT])
    code, out, _ = vae()
    assert code == 130
    assert "a second Ctrl-C stops at once" in out
    assert "which is saved" not in out
    assert saved(folders()[0]) == set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored(vae, handled, at_step):
    handled(signal.SIG_IGN)
    at_step(7, STOPS)
    code, out, _ = vae()
    assert code == 0
    assert "trained 30 steps" in out
    assert all(signal.getsignal(number) is signal.SIG_IGN for number in STOPS)


def test_a_signal_in_the_last_step_is_obeyed(vae, handled, monkeypatch):
    """Nothing is left to train, but the report must not begin."""
    handled()
    grid, drawn = pictures.grid, []

    def interrupted(*args, **how):
        drawn.append(None)
        if len(drawn) == 5:  # there are four pictures at step 0, when no signal is caught yet
            signal.raise_signal(signal.SIGTERM)
        return grid(*args, **how)

    monkeypatch.setattr(pictures, "grid", interrupted)
    code, out, _ = vae("--iter_max", 5)
    assert code == 143
    assert "stopped after step 5, which is saved" in out
    assert "NELBO" not in out


@pytest.fixture
def notebook(tmp_path, monkeypatch, digits):
    """main of run_vae.py, and the run of some flags: no script, no exit."""
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(ROOT / "run_vae.py"))
    usual = ["--dataset", digits, "--batch_size", 50, "--z", 2, "--device", "cpu"]

    def opened(*more):
        return open_run("vae", parse_flags("", script["FLAGS"], [str(word) for word in (*usual, *more)]))

    return script["main"], opened


def test_a_process_can_train_the_same_run_again(notebook):
    main, opened = notebook
    execute(opened("--iter_max", 3), main)
    (path,) = Path("logs").glob("*/results.json")
    assert json.loads(path.read_text())["complete"] is True
    execute(opened("--iter_max", 6, "--resume", 1), main)
    record = json.loads(path.read_text())
    assert (record["step"], record["complete"]) == (6, True)
    with pytest.raises(InputError, match="already holds a run"):
        execute(opened(), main)
    execute(opened("--train", 0, "--iw_eval", 2), main)
    assert "iwae_2" in json.loads(path.read_text())["results"]["subset"]


def test_a_script_that_fails_leaves_a_run_that_is_not_complete_and_not_locked(notebook):
    main, opened = notebook

    def failing(run):
        main(run)
        raise ZeroDivisionError

    run = opened("--iter_max", 3)
    with contextlib.suppress(ZeroDivisionError):
        execute(run, failing)
    assert "complete" not in json.loads((run.logs / "results.json").read_text())
    execute(opened("--iter_max", 4, "--resume", 1), main)
    assert json.loads((run.logs / "results.json").read_text())["complete"] is True
