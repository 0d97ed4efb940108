"""Series of runs, --replicates: processes that get the same command share them by the locks of their folders."""

import contextlib
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import killed_run
import numpy as np
import pytest
from conftest import contents, same, save_digits
from test_processes import printed, state_and_results, torchrun, wait_for

from codebase import data, pictures
from codebase.runs import checkpoints, course, files


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a series of three runs that one process has trained, its command, and the runs' names."""
    folder = tmp_path_factory.mktemp("series")
    digits = save_digits(folder / "digits.npz")
    command = ["run_vae.py", "--dataset", digits, "--z", 3, "--hidden", 8, "--batch_size", 25]
    command += ["--device", "cpu", "--fast", 0, "--iter_max", 20, "--replicates", 3]
    assert "trained 20 steps" in output_of(folder, command)
    name = f"model=vae_z=3_hidden=8_data={data.load(digits).name}_batch=25"
    return folder, command, [f"{name}_run={i:04d}" for i in range(3)]


def output_of(folder, command):
    """What a process prints that executes the command in the folder; it must end with code 0."""
    assert killed_run.finish(killed_run.start(folder, command)) == 0, printed(folder)
    return printed(folder)


def table_in(out):
    return out[out.index("### vae") :].strip()


def check_series(folder, alone, n=3):
    """Each of n runs is bit for bit what it is in the series of one process."""
    for name in alone[2][:n]:
        assert same(state_and_results(folder, name), state_and_results(alone[0], name))


def test_replicates_are_the_runs_that_they_would_be_alone(alone, tmp_path):
    folder, command, names = alone
    output_of(tmp_path, [*command, "--replicates", 1, "--run", 1])
    assert same(state_and_results(tmp_path, names[1]), state_and_results(folder, names[1]))
    means = [state_and_results(folder, name)[1]["test"]["nelbo"]["mean"] for name in names]
    table = table_in(printed(folder))
    assert "| runs | 3 |\n| seeds | 0, 1, 2 |\n| steps | 20 |" in table
    assert f"| test NELBO | {np.mean(means):.2f} ± {np.std(means, ddof=1) / 3**0.5:.2f} |" in table
    assert "### Left out" not in table


def test_two_processes_that_start_at_the_same_time_share_the_runs(alone, tmp_path):
    processes = [killed_run.start(tmp_path, alone[1], rank=i) for i in range(2)]
    assert [killed_run.finish(process) for process in processes] == [0, 0]
    outs = printed(tmp_path), printed(tmp_path, "output-1.txt")
    assert sum(out.count("trained 20 steps") for out in outs) == 3
    check_series(tmp_path, alone)
    tables = [out for out in outs if "### vae" in out]
    assert tables  # by the one that is ready last; the other one may be ready at the same time
    assert {table_in(out) for out in tables} == {table_in(printed(alone[0]))}
    assert all(("### vae" in out) != ("still trained by other processes: model=" in out) for out in outs)


def hold(folder, held):
    with files.locked(folder):
        held.touch()
        signal.pause()


def test_a_run_is_left_to_the_process_that_has_it_and_is_taken_up_when_that_is_killed(alone, tmp_path):
    command, names = [*alone[1], "--replicates", 2], alone[2]
    output_of(tmp_path, [*command, "--replicates", 1, "--iter_max", 10])
    folder, held = tmp_path / "checkpoints" / names[0], tmp_path / "held"
    other = killed_run.FORKS.Process(target=hold, args=(folder, held), daemon=True)
    other.start()
    wait_for(held)
    before = contents(folder)
    out = output_of(tmp_path, command)
    assert out.count("trained 20 steps") == 1
    last = f"still trained by other processes: {names[0]}. The same command later prints the table."
    assert out.strip().endswith(last)
    assert contents(folder) == before
    other.kill()
    other.join()
    out = output_of(tmp_path, command)
    assert out.count("already finished") == 1
    assert out.count("resuming after step 10") == 1
    assert "| runs | 2 |" in table_in(out)
    check_series(tmp_path, alone, 2)


def test_a_process_comes_back_to_a_run_that_was_locked(vae, digits, tmp_path, monkeypatch):
    name, look = f"model=vae_z=10_data={data.load(str(digits)).name}_batch=50_run=0000", pictures.unlabelled
    with contextlib.ExitStack() as lock:
        lock.enter_context(files.locked(tmp_path / "checkpoints" / name))
        monkeypatch.setattr(pictures, "unlabelled", lambda *args: lock.close() or look(*args))
        code, out, _ = vae("--iter_max", 5, "--replicates", 2)
    assert code == 0
    assert re.findall(r"replicate \d|another process|trained", out) == [
        *("replicate 1", "another process", "replicate 2", "trained", "replicate 1", "trained")
    ]
    assert "| runs | 2 |" in table_in(out)


def test_a_series_does_only_what_is_missing(alone, tmp_path):
    """Nothing; the evaluation of weights that are newer than the results; more bounds."""
    folder, command, names = alone[0], [*alone[1], "--replicates", 2], alone[2]
    for each in ("checkpoints", "logs"):
        shutil.copytree(folder / each, tmp_path / each)
    everything = contents(tmp_path / "checkpoints") | contents(tmp_path / "logs")
    assert output_of(tmp_path, command).count("already finished") == 2
    assert contents(tmp_path / "checkpoints") | contents(tmp_path / "logs") == everything

    results = tmp_path / "logs" / names[1] / "results.json"
    record = json.loads(results.read_text())
    del record["complete"]
    results.write_text(json.dumps(record))
    assert output_of(tmp_path, command).count("already finished") == 1
    assert json.loads(results.read_text())["complete"] is True

    bounds = [*command, "--train", 2, "--iw_eval", 7]
    assert "already finished" not in output_of(tmp_path, bounds)
    again = output_of(tmp_path, bounds)
    assert again.count("already finished") == 2
    assert "| subset IWAE-7 |" in again


@pytest.mark.slow
def test_a_series_is_evaluated_and_started_again(alone, tmp_path):
    _, command, _ = alone
    output_of(tmp_path, command)
    evaluation = [each for each in command if each not in ("--iter_max", 20)]
    assert "| subset IWAE-5 |" in output_of(tmp_path, [*evaluation, "--train", 0, "--iw_eval", 5])
    assert output_of(tmp_path, [*command, "--overwrite", 1]).count("trained 20 steps") == 3
    check_series(tmp_path, alone)


def test_a_series_that_is_stopped_begins_no_other_run(vae, monkeypatch):
    monkeypatch.setattr(course, "stopped_by", lambda signals, step: signal.SIGINT)
    code, out, _ = vae("--replicates", 2)
    assert code == 130
    assert "--resume 1 resumes it" in out
    assert "replicate 2" not in out


def test_the_supervised_baseline_has_replicates_though_it_has_no_bounds(on_digits):
    usual = ["--gw", 0, "--labels", 20, "--iter_max", 5, "--replicates", 2, "--train", 2]
    on_digits("run_ssvae.py", *usual)
    code, out, _ = on_digits("run_ssvae.py", *usual)
    assert code == 0
    assert out.count("already finished") == 2
    assert "| test accuracy, % |" in out


# By torchrun


def check_states(folder, other, names):
    """The last states of these runs are the same in both folders."""
    for name in names:
        assert same(state_and_results(folder, name)[0], state_and_results(other, name)[0])


@pytest.mark.slow
def test_torchruns_processes_share_a_series(alone, tmp_path):
    assert torchrun(tmp_path, 2, *alone[1]).wait(timeout=300) == 0
    assert "| runs | 3 |" in printed(tmp_path)
    check_states(tmp_path, alone[0], alone[2])


@pytest.mark.slow
def test_a_process_of_torchrun_that_is_killed_takes_nothing_of_the_others(alone, tmp_path):
    """torchrun ends the other one, which saves its current step. Later both are finished, here with fewer steps."""
    killed, whole, names = tmp_path / "killed", tmp_path / "whole", alone[2][:2]
    series = [*alone[1], "--iter_save", 10**6, "--replicates", 2]
    process = torchrun(killed, 2, *series, "--iter_max", 10**6)
    wait_for(*(killed / "logs" / name for name in names))
    time.sleep(1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    (state,) = killed.glob("checkpoints/*/training.pt")  # the killed process saved nothing
    step = checkpoints.read(state)["step"]
    assert step > 0
    series += ["--iter_max", step + 30]
    assert torchrun(killed, 2, *series).wait(timeout=300) == 0
    assert "| runs | 2 |" in printed(killed)
    whole.mkdir()
    output_of(whole, series)
    check_states(killed, whole, names)
