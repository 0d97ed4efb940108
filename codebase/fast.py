"""The training step made faster by transformation: compiled on a CPU, recorded as a CUDA graph on a GPU.

The step of a small model has dozens of short operations. On a CPU most of the time goes into moving numbers between
them: torch.compile makes one function of them. On a GPU it goes into starting them: a CUDA graph starts all at once.
Both are made from train.training_step itself, so that what is edited there is what runs.
"""

import functools
import logging
import time

import torch

from codebase import processes
from codebase.errors import InputError
from codebase.random_state import kept_random_state

STEPS = 10_000  # on a CPU the compiler takes as long as it saves in about this many steps


def worth_compiling(device, steps):
    """Does the faster update save more time, in so many steps, than its preparation takes?"""
    return device.type == "cuda" or (device.type == "cpu" and steps >= STEPS)


def faster(update, batch):
    """A faster update(batch) and its description; `update` itself if none can be made that computes the same.

    update: partial(training_step, model, optimizer, ...). The faster one is made from it, and compared with it in two
    steps, which are undone. batch: of the shape of all batches to come.
    """
    began, cuda = time.monotonic(), batch[0].is_cuda
    ways = {"a CUDA graph": graphed} if cuda else {"compiled": compiled, "its loss compiled": loss_compiled}
    with torch.cuda.stream(torch.cuda.Stream() if cuda else None):  # recording needs a first run on another stream
        expected = dry_run(update, batch)
    reasons = []
    for tried, (how, make) in enumerate(ways.items(), 1):
        try:
            quick = make(update, batch)
            compare(dry_run(quick, batch, of=update), expected)
        except Exception as error:  # compilers and drivers fail with any error, and the run needs none of them
            reasons.append(f"{type(error).__name__}: {error}".strip().split("\n")[0])
            if processes.size() > 1:
                dry_run(update, batch)  # the other processes wait for these gradients
        if processes.largest(len(reasons)) > len(reasons):
            reasons.append("it fails in another process")
        if len(reasons) < tried:
            why = f"; not all of it ({reasons[0]})" if reasons else ""
            return quick, f"{how}, ready after {time.monotonic() - began:.0f} s{why}"
    return update, f"the plain one, because the faster one fails ({reasons[-1]})"


def check(quick, update, batch, step):
    """InputError if the faster update no longer does what `update` does, in two steps from where training is."""
    if quick is update:
        return
    try:
        compare(dry_run(quick, batch, of=update), dry_run(update, batch))
    except ArithmeticError as error:
        raise InputError(
            f"after step {step:,} the faster update differs from training_step: {error}. Does a Python number in the "
            "model or the step change during training? Make it a tensor (model.step is one), or use --fast 0."
        ) from error


def compare(found, expected):
    """ArithmeticError if losses differ by more than rounding."""
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-2):
        raise ArithmeticError(f"its losses are {found.tolist()} instead of {expected.tolist()}")


def dry_run(update, batch, of=None):
    """The losses of two updates, (2,), on the CPU. What they change is put back: model, optimizer, random numbers.

    of: partial(training_step, model, optimizer, ...), if `update` is not that itself.
    """
    model, optimizer = (of or update).args
    synchronize = torch.cuda.synchronize if batch[0].is_cuda else lambda: None  # for work on other streams
    synchronize()
    tensors = [*model.parameters(), *model.buffers()]
    for each in [*optimizer.state.values(), *optimizer.param_groups]:
        tensors += [value for value in each.values() if isinstance(value, torch.Tensor)]
    before, with_state = [tensor.detach().clone() for tensor in tensors], set(optimizer.state)
    try:
        with kept_random_state():
            return torch.stack([update(batch)["train/loss"] for _ in range(2)]).cpu()
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        for p in set(optimizer.state) - with_state:  # of an optimizer that makes its state in its first step
            del optimizer.state[p]
        synchronize()


def compiled(update, batch):
    """`update`, compiled to one function: loss, gradient, and the optimizer's step."""
    torch._dynamo.config.trace_autograd_ops = True  # loss.backward() is compiled, too; an error where PyTorch is older
    step = torch_compile(update.func)
    return functools.partial(step, *update.args, **update.keywords)


def loss_compiled(update, batch):
    """`update`, in which model.loss is compiled. For steps that the compiler cannot take whole."""
    model = update.args[0]
    loss = torch_compile(model.loss)

    def quick(batch):
        model.loss = loss
        try:
            return update(batch)
        finally:
            del model.loss  # the method of its class again

    return quick


def torch_compile(function):
    torch.compiler.reset()  # or it would take the function of an earlier model for this one
    for name in ("torch.utils.cpp_extension", "torch._dynamo.variables.ctx_manager"):
        logging.getLogger(name).setLevel(logging.ERROR)  # their remarks on CUDA and on the profiler
    return torch.compile(function, fullgraph=True, options={"fallback_random": True})  # PyTorch's own random numbers


def graphed(update, batch):
    """`update`, recorded as a CUDA graph. Each batch is copied to the tensors that the graph reads."""
    optimizer = update.args[1]
    if not optimizer.state:
        raise RuntimeError(f"{type(optimizer).__name__} makes its state in its first step, too late to be recorded")
    inputs = tuple(tensor.clone() for tensor in batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, and computes nothing
        point = update(inputs)
        values = torch.stack(list(point.values()))

    def replay(batch):
        for ours, theirs in zip(inputs, batch, strict=True):
            ours.copy_(theirs)
        graph.replay()
        return dict(zip(point, values.clone(), strict=True))

    return replay
