"""An existing run: resumed, overwritten, or not changed; a run that is stopped by a signal or an error."""

import json
import re
import runpy
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, STATES, contents, curves, same, saved

from codebase import pictures
from codebase.errors import InputError
from codebase.models.vae import VAE
from codebase.runs import course
from codebase.runs.flags import parse_flags
from codebase.runs.run import execute, open_run
from codebase.runs.signals import catch_signals

NUMBERS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU
STOPS = {number: 128 + number for number in NUMBERS}  # and the exit codes in a shell


@pytest.fixture
def at_step(monkeypatch):
    """at_step[n]: the signals that come, one after the other, while the n-th loss is computed, once.

    At first SIGINT has its usual effect, although a shell's background jobs may ignore it; the others end the script.
    """
    before, coming, loss = {}, {}, VAE.loss

    def end(number, frame):
        raise SystemExit(128 + number)

    for number in STOPS:
        before[number] = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else end)

    def loss_with_signals(model, *batch):
        pending = coming.get(int(model.step) + 1, [])
        while pending:
            signal.raise_signal(pending.pop(0))
        return loss(model, *batch)

    monkeypatch.setattr(VAE, "loss", loss_with_signals)
    yield coming
    for number, handler in before.items():
        signal.signal(number, handler)


def result(checkpoints, logs):
    """All that a run ends with: training state, curves and numbers, without the times."""
    state = torch.load(checkpoints / "training.pt", weights_only=True)
    assert state.pop("seconds") > 0
    return state, curves(logs), json.loads((logs / "results.json").read_text())["results"]


def test_a_signal_finishes_the_step_and_saves_it(vae, folders, at_step, monkeypatch):
    """Each in turn; a second Ctrl-C stops at once. Resumed each time, the run ends like one that was never stopped.

    The points after the last checkpoint are then logged once more, and shown once.
    """
    monkeypatch.setattr(course, "LOG_EVERY", 5)
    stops = [(number, step, step) for number, step in zip(STOPS, (7, 12, 23, 24, 25, 26), strict=True)]
    stops.insert(2, (signal.SIGINT, 18, 12))
    for number, step, kept in stops:
        twice = step != kept
        at_step[step] = [number] * (1 + twice)
        before = signal.getsignal(number)
        code, out, _ = vae("--resume", 1)
        assert code == STOPS[number]
        assert out.count(f"stopped after step {step}, which is saved: --resume 1 resumes it") == (not twice)
        assert "a second Ctrl-C stops at once" in out
        assert "NELBO" not in out
        checkpoints, logs = folders()
        assert torch.load(checkpoints / "training.pt", weights_only=True)["step"] == kept
        assert signal.getsignal(number) == before  # afterwards they have their usual effect again
    assert "resuming after step 26" in vae("--resume", 1)[1]
    stopped = result(checkpoints, logs)
    assert saved(checkpoints) == {f"model-000{step}.pt" for step in ("07", 12, 20, 23, 24, 25, 26, 30)} | STATES
    assert json.loads((logs / "results.json").read_text())["trained"]["steps"] == 30

    assert vae("--overwrite", 1)[0] == 0
    assert same(stopped, result(checkpoints, logs))
    assert [step for step, _ in stopped[1]["train/loss"]] == [5, 10, 15, 20, 25, 30]
    assert saved(checkpoints) == {"model-00020.pt", "model-00030.pt", *STATES}  # nothing is left of the run before
    assert len(list(logs.glob("*tfevents*"))) == 1
    assert vae("--run", 1)[0] == 0  # another seed, other weights
    (other,) = checkpoints.parent.glob("*_run=0001/training.pt")
    assert not same(stopped[0]["weights"], torch.load(other, weights_only=True)["weights"])


def test_an_ignored_signal_stays_ignored(vae, at_step):
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    at_step[7] = list(STOPS)
    code, out, _ = vae("--iter_max", 8)
    assert code == 0
    assert "trained 8 steps" in out
    assert all(signal.getsignal(number) is signal.SIG_IGN for number in STOPS)


def test_training_in_a_thread(vae):
    """Which cannot catch signals."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(vae, "--iter_max", 2).result()[0] == 0


def test_a_signal_in_the_last_step_is_obeyed(vae, at_step, monkeypatch):
    """Nothing is left to train, but the report must not begin."""
    look, looks = pictures.unlabelled, []

    def interrupted(*args):
        looks.append(None)
        if len(looks) == 2:  # the first one is at step 0, when no signal is caught yet
            signal.raise_signal(signal.SIGTERM)
        return look(*args)

    monkeypatch.setattr(pictures, "unlabelled", interrupted)
    code, out, _ = vae("--iter_max", 5)
    assert code == 143
    assert "stopped after step 5, which is saved" in out
    assert "NELBO" not in out


def test_a_resumed_run_draws_its_whole_curves_and_adds_up_its_seconds(trained, folders, monkeypatch):
    checkpoints, logs = folders()
    state = torch.load(checkpoints / "training.pt", weights_only=True)
    torch.save(state | {"seconds": 1000.0}, checkpoints / "training.pt")
    drawn, draw = [], pictures.curves
    monkeypatch.setattr(pictures, "curves", lambda history: drawn.append(json.dumps(history)) or draw(history))
    assert trained("--iter_max", 40, "--resume", 1)[0] == 0
    assert json.loads((logs / "results.json").read_text())["trained"]["seconds"] > 1000
    state = torch.load(checkpoints / "training.pt", weights_only=True)
    assert state["seconds"] > 1000
    assert json.loads(drawn[-1]) == json.loads(json.dumps(state["curves"]))
    assert {tag: list(points) for tag, points in state["curves"].items()} == {
        "train/loss": [30, 40],
        "gen/elbo": [30, 40],
        "gen/kl_z": [30, 40],
        "gen/rec": [30, 40],
        "eval/nelbo_test": [0, 30, 40],
        "eval/nelbo_train": [0, 30, 40],
    }
    assert dict(curves(logs)["train/loss"]) == pytest.approx(state["curves"]["train/loss"])


def test_resume_with_nothing_to_do(trained, folders):
    trained("--train", 0, "--iw_eval", 3)
    checkpoints, logs = folders()
    before, shown = contents(checkpoints), curves(logs)
    when = json.loads((logs / "results.json").read_text())["trained"]
    code, out, _ = trained("--resume", 1)
    assert code == 0
    assert "already at step 30" in out
    assert contents(checkpoints) == before
    assert curves(logs) == shown
    record = json.loads((logs / "results.json").read_text())
    assert record["trained"] == when
    assert "iwae_3" in record["results"]["subset"]


def test_a_second_run_touches_nothing_of_the_first(trained, folders):
    """Also if only its training state is left."""
    checkpoints, logs = folders()
    for _ in range(2):
        before = contents(checkpoints) | contents(logs)
        code, _, err = trained()
        assert code == 2
        assert "already holds a run" + (" at step 30" if list(checkpoints.glob("model-*.pt")) else "") in err
        assert all(hint in err for hint in ("--resume 1", "--overwrite 1", "--run 1", "--train 0"))
        assert "Traceback" not in err
        assert contents(checkpoints) | contents(logs) == before
        for path in checkpoints.glob("model-*.pt"):
            path.unlink()


def test_a_folder_that_cannot_be_written_is_named_before_training(vae, tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    code, out, err = vae()
    assert code == 2
    assert re.search("error: .*checkpoints", err)
    assert "trained" not in out
    assert "Traceback" not in err


def test_a_process_can_train_the_same_run_again(script, digits, few_draws):
    """As in a notebook: without run_main. A report that fails leaves a run that is not complete, and not locked."""
    code = runpy.run_path(str(ROOT / "run_vae.py"))
    usual = ["--dataset", digits, "--batch_size", 50, "--device", "cpu"]

    def opened(*more):
        return open_run("vae", parse_flags("", code["FLAGS"], [str(word) for word in (*usual, *more)]))

    def failing(run):
        code["main"](run)
        raise ZeroDivisionError

    run = opened("--iter_max", 3)
    path = run.logs / "results.json"
    with pytest.raises(ZeroDivisionError):
        execute(run, failing)
    assert "complete" not in json.loads(path.read_text())
    for more in (["--iter_max", 6, "--resume", 1], ["--train", 0, "--iw_eval", 2]):
        execute(opened(*more), code["main"])
        record = json.loads(path.read_text())
        assert (record["step"], record["complete"]) == (6, True)
    assert "iwae_2" in record["results"]["subset"]
    with pytest.raises(InputError, match="already holds a run"):
        execute(opened(), code["main"])


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    """signal.getsignal returns None for it, and it could not be restored."""
    handler = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGUSR1 else handler(n))
    with catch_signals():
        assert handler(signal.SIGUSR1) == signal.SIG_DFL
        assert handler(signal.SIGUSR2) != signal.SIG_DFL
