"""How a run starts: anew, resumed from its last checkpoint, or with --train 0 from its weights."""

from codebase import processes
from codebase.errors import InputError
from codebase.runs import checkpoints, files
from codebase.runs.results import read_results


def is_resumed(run):
    """Should the run be resumed, not started? InputError if the flags do not fit what is in its folder."""
    flags, folder = run.flags, run.checkpoints
    state = checkpoints.state_path(folder)
    if flags.overwrite:
        return False
    if state.exists() and (flags.resume or flags.replicates > 1):
        return True
    if state.exists() or checkpoints.steps(folder):
        what = f"{folder} already holds a run" if state.exists() else f"{folder} holds weights, but no training.pt"
        raise InputError(
            f"{what}. --resume 1 resumes a run that has a training.pt, --train 0 evaluates it, "
            f"--run {flags.run + 1} trains another one, --overwrite 1 deletes it and starts again."
        )
    others = checkpoints.other_runs(folder, run.model, flags.run)
    if flags.resume and others:
        raise InputError(f"there is no {state} to resume{others}. Without --resume 1 a new run begins.")
    return False


def start_or_resume(run, model, optimizer, experiment):
    """Start the run or resume it. Returns its step, and the seconds spent on training."""
    flags, folder, resumed = run.flags, run.checkpoints, is_resumed(run)
    processes.wait()  # until all processes have looked into the folder
    if processes.rank() == 0:
        run.logs.mkdir(parents=True, exist_ok=True)
        for each in (folder, run.logs):
            files.clear(each, ".*.tmp")  # left by a process that was killed while it wrote
        if flags.overwrite:
            # Deleted first, so that an interrupted --overwrite cannot be resumed.
            checkpoints.state_path(folder).unlink(missing_ok=True)
            files.clear(run.logs)
            files.clear(folder)
        if not resumed:
            files.clear(run.logs, "step=*")  # bounds of an older run's checkpoints
    if resumed:
        start, seconds = checkpoints.resume(folder, model, optimizer, experiment)
        print(f"resuming after step {start:,}", flush=True)
        return start, seconds
    if flags.resume:
        print(f"nothing to resume in {folder}: starting from step 0", flush=True)
    processes.copy_from_first([*model.parameters(), *model.buffers()])
    return 0, 0.0


def load(run, model):
    """Fill the model from --checkpoint, from the checkpoint of step --iter_max, or from the newest one."""
    path = run.flags.checkpoint
    if path is None:
        done = checkpoints.steps(run.checkpoints)
        step = run.flags.step or processes.maximum(done[-1] if done else 0)  # others may be writing files
        if step not in done:
            others = checkpoints.other_runs(run.checkpoints, run.model, run.flags.run)
            there = f"there are steps {', '.join(map(str, done))}" if done else f"train first{others}"
            raise InputError(f"{run.checkpoints} has no model-{f'{step:05d}' if step else '*'}.pt: {there}.")
        path = checkpoints.weights_path(run.checkpoints, step)
        run.record["step"] = step
    checkpoints.load_weights(model, path)
    print(f"loaded       {path}", flush=True)
    run.record.update(read_results(run, run.record.get("step")))
