"""The training step made faster by transformation: compiled on a CPU, recorded as a CUDA graph on a GPU.

On a CPU the step of a small model is spent on moving numbers between dozens of operations: torch.compile makes one
function of them. On CUDA it is spent on launching them: a CUDA graph launches all at once. Both are made from
train.training_step itself, so that what is edited there is what runs.
"""

import functools
import logging
import time

import torch

from codebase import processes
from codebase.checkpoints import random_state, restore_random_state
from codebase.errors import InputError

STEPS = 10_000  # on a CPU the compiler takes as long as it saves in about this many steps


def pays(device, steps):
    """Is the faster update worth its preparation, for so many steps?"""
    return device.type == "cuda" or (device.type == "cpu" and steps >= STEPS)


def faster(update, batch):
    """A faster update(batch), or `update` itself, and in words which. Model and optimizer stay as they are.

    update: partial(training_step, model, optimizer, ...), which the faster one is made from and compared with, on two
    steps from here. If it cannot be made, as where there is no compiler, or computes something else, it is not taken.
    batch: of the shape of all batches to come.
    """
    began, cuda = time.monotonic(), batch[0].is_cuda
    ways = {"a CUDA graph": graphed} if cuda else {"compiled": compiled, "its loss compiled": loss_compiled}
    with torch.cuda.stream(torch.cuda.Stream() if cuda else None):  # a graph needs it to have run on another stream
        expected = trial(update, batch)
    reasons = []
    for tried, (how, make) in enumerate(ways.items(), 1):
        try:
            quick = make(update, batch)
            compare(trial(quick, batch, of=update), expected)
        except Exception as error:  # compilers and drivers fail in a hundred ways, and none is needed
            reasons.append(f"{type(error).__name__}: {error}".strip().split("\n")[0])
            if processes.size() > 1:
                trial(update, batch)  # the gradients that the other processes now wait for
        if processes.largest(len(reasons)) > len(reasons):
            reasons.append("it fails in another process")
        if len(reasons) < tried:
            why = f"; not all of it ({reasons[0]})" if reasons else ""
            return quick, f"{how}, ready after {time.monotonic() - began:.0f} s{why}"
    return update, f"the plain one, as the faster one fails ({reasons[-1]})"


def check(quick, update, batch, step):
    """InputError if the faster update no longer does what `update` does, two steps on from where training is."""
    if quick is update:
        return
    try:
        compare(trial(quick, batch, of=update), trial(update, batch))
    except ArithmeticError as error:
        raise InputError(
            f"after step {step:,} the faster update differs from training_step: {error}. Does a Python number in the "
            "model or the step change during training? Make it a tensor (model.step is one), or use --fast 0."
        ) from error


def compare(found, expected):
    """ArithmeticError if losses differ by more than rounding."""
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-2):
        raise ArithmeticError(f"its losses are {found.tolist()} instead of {expected.tolist()}")


def trial(update, batch, of=None):
    """The losses of two updates, (2,), on the CPU. The updates, and the random numbers that they drew, are undone.

    of: partial(training_step, model, optimizer, ...), if `update` is not that itself.
    """
    model, optimizer = (of or update).args
    synchronize = torch.cuda.synchronize if batch[0].is_cuda else lambda: None  # whatever streams they are on
    synchronize()
    tensors = [*model.parameters(), *model.buffers()]
    for each in [*optimizer.state.values(), *optimizer.param_groups]:
        tensors += [value for value in each.values() if isinstance(value, torch.Tensor)]
    before, with_state = [tensor.detach().clone() for tensor in tensors], set(optimizer.state)
    random = random_state()
    try:
        return torch.stack([update(batch)["train/loss"] for _ in range(2)]).cpu()
    finally:
        restore_random_state(random)
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
    torch.compiler.reset()  # of a model before this one, whose function it would take for the same
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # its remarks on CUDA, on a CPU
    logging.getLogger("torch._dynamo.variables.ctx_manager").setLevel(logging.ERROR)  # and on the profiler
    return torch.compile(function, fullgraph=True, options={"fallback_random": True})  # PyTorch's own random numbers


def graphed(update, batch):
    """`update`, recorded as a CUDA graph. What it is given is copied to where the graph reads it."""
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
