"""The training step made faster by transformation: compiled on a CPU, recorded as a CUDA graph on a GPU.

The step of a small model has dozens of short operations. On a CPU most of the time is spent on moving data between
them: torch.compile fuses them. On a GPU it is spent on launching them: a CUDA graph launches all at once. Both are made
from train.training_step itself, so an edit of that function changes both.
"""

import functools
import logging
import time

import torch

from codebase import processes
from codebase.errors import InputError
from codebase.random_state import kept_random_state

COMPILED_FROM = 10_000  # on a CPU, compiling takes as long as it saves in about this many steps


def worth_compiling(device, steps):
    """Does the faster update save more time in `steps` steps than its preparation takes?"""
    return device.type == "cuda" or (device.type == "cpu" and steps >= COMPILED_FROM)


def make_faster(update, batch):
    """A faster update(batch) and its description; `update` itself if no equivalent one can be made.

    update: partial(training_step, model, optimizer, ...). The faster one is made from it, and compared with it in two
    steps, which are undone. batch: an example; all later batches must have its shapes.
    """
    began, cuda = time.monotonic(), batch[0].is_cuda
    ways = {"a CUDA graph": as_cuda_graph} if cuda else {"compiled": compiled, "its loss compiled": loss_compiled}
    with torch.cuda.stream(torch.cuda.Stream() if cuda else None):  # a CUDA graph needs a first run on another stream
        expected = dry_run(update, batch)
    reasons = []
    for tried, (how, make) in enumerate(ways.items(), 1):
        try:
            faster = make(update, batch)
            compare(dry_run(faster, batch, of=update), expected)
        except Exception as error:  # compilers and drivers raise any error, and the run can do without them
            reasons.append(f"{type(error).__name__}: {error}".strip().split("\n")[0])
            if processes.size() > 1:
                dry_run(update, batch)  # the other processes wait for these gradients
        if processes.maximum(len(reasons)) > len(reasons):
            reasons.append("it fails in another process")
        if len(reasons) < tried:
            why = f"; the whole step cannot be compiled ({reasons[0]})" if reasons else ""
            return faster, f"{how}, ready after {time.monotonic() - began:.0f} s{why}"
    return update, f"the plain one, because the faster one fails ({reasons[-1]})"


def check(faster, update, batch, step):
    """InputError if the faster update no longer does the same as `update`, in two steps from the present state."""
    if faster is update:
        return
    try:
        compare(dry_run(faster, batch, of=update), dry_run(update, batch))
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
    """The losses of two updates, (2,), on the CPU. Model, optimizer and random numbers are restored after them.

    of: the partial(training_step, model, optimizer, ...) that `update` was made from, if they differ.
    """
    model, optimizer = (of or update).args
    synchronize = torch.cuda.synchronize if batch[0].is_cuda else lambda: None  # waits for other streams
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
        for p in set(optimizer.state) - with_state:  # state that the optimizer has made in its first step
            del optimizer.state[p]
        synchronize()


def compiled(update, batch):
    """`update`, compiled to one function: loss, gradient, and the optimizer's step."""
    torch._dynamo.config.trace_autograd_ops = True  # compiles loss.backward(), too; an error in older PyTorch
    step = torch_compile(update.func)
    return functools.partial(step, *update.args, **update.keywords)


def loss_compiled(update, batch):
    """`update`, in which model.loss is compiled. For steps that cannot be compiled as a whole."""
    model = update.args[0]
    loss = torch_compile(model.loss)

    def faster(batch):
        model.loss = loss
        try:
            return update(batch)
        finally:
            del model.loss  # uncovers the method of its class

    return faster


def torch_compile(function):
    torch.compiler.reset()  # otherwise it might reuse the function of an earlier model
    for name in ("torch.utils.cpp_extension", "torch._dynamo.variables.ctx_manager"):
        logging.getLogger(name).setLevel(logging.ERROR)  # hides warnings about CUDA and the profiler
    return torch.compile(function, fullgraph=True, options={"fallback_random": True})  # keeps PyTorch's random numbers


def as_cuda_graph(update, batch):
    """`update`, recorded as a CUDA graph. Each batch is copied to the tensors that the graph reads."""
    optimizer = update.args[1]
    if not optimizer.state:
        raise RuntimeError(f"{type(optimizer).__name__} makes its state in its first step, which cannot be recorded")
    inputs = tuple(tensor.clone() for tensor in batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records without computing
        point = update(inputs)
        values = torch.stack(list(point.values()))

    def replay(batch):
        for ours, theirs in zip(inputs, batch, strict=True):
            ours.copy_(theirs)
        graph.replay()
        return dict(zip(point, values.clone(), strict=True))

    return replay
