"""The training step made faster by torch.compile.

The step of a small model has dozens of short operations. On a CPU most of the time is spent on moving data between
them, on a GPU on launching them. The compiled step is made from the step itself, so an edit of that changes both.
"""

import logging
import time
import warnings

import torch

from codebase import processes
from codebase.random_state import kept_random_state
from codebase.train import Adam, named_state


def faster(step, model, optimizer, batch):
    """step, compiled, and how; or step itself, and why.

    step: as train.training_step. Two compiled steps are compared with two plain ones, in everything that they change;
    then all is as before. batch: an example; all later batches must have its shapes.
    """
    began, reason = time.monotonic(), ""
    expected = changes(step, model, optimizer, batch)
    # An optimizer of torch.optim cannot be a part of the whole, nor can backward() in older PyTorch.
    whole = isinstance(optimizer, Adam) and hasattr(torch._dynamo.config, "trace_autograd_ops")
    try:
        quick = compiled(step, model, optimizer, whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the compiler's own work
            compare(changes(quick, model, optimizer, batch), expected)
    except Exception as error:  # compilers and drivers raise any error, and the run can do without them
        lines = f"{type(error).__name__}: {error}".splitlines()
        reason = next((line for line in lines if " error: " in line), lines[0])  # the C++ compiler's own words
        if processes.size() > 1 and not isinstance(error, ArithmeticError):
            changes(step, model, optimizer, batch)  # the other processes wait for these gradients
    if any(processes.gather([reason])):
        return step, f"not compiled: the plain step ({reason or 'it fails in another process'})"
    return quick, f"compiled{'' if whole else ' in parts'}, ready after {time.monotonic() - began:.0f} s"


def compiled(step, model, optimizer, whole):
    """step, compiled to one function: loss, gradient, and the optimizer's step; or not as a whole, to several."""
    torch.compiler.reset()  # otherwise it might reuse the function of an earlier model
    for name in ("torch.utils.cpp_extension", "torch._dynamo.variables.ctx_manager", "torch._logging._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)  # hides warnings about CUDA and the profiler
    if whole:
        torch._dynamo.config.trace_autograd_ops = True  # compiles loss.backward(), too
    on_cuda = next(model.parameters()).is_cuda
    options = {"fallback_random": True, "triton.cudagraphs": on_cuda}  # the first keeps PyTorch's random numbers
    function = torch.compile(step, fullgraph=whole, options=options)
    if not on_cuda:
        return function
    for tensor in named_state(model, optimizer).values():  # changed in place: otherwise CUDA graphs are not used
        torch._dynamo.mark_static_address(tensor, guard=False)

    def as_cuda_graphs(model, optimizer, batch):
        torch.compiler.cudagraph_mark_step_begin()
        return {tag: value.clone() for tag, value in function(model, optimizer, batch).items()}  # the next overwrites

    return as_cuda_graphs


def changes(step, model, optimizer, batch):
    """What two steps compute and change: {name: (before, after)}. Then everything is as before them."""

    def copies():
        return {name: tensor.detach().clone() for name, tensor in named_state(model, optimizer).items()}

    before, tensors, stateful = copies(), named_state(model, optimizer), set(optimizer.state)
    try:
        with kept_random_state():
            points = [step(model, optimizer, batch) for _ in range(2)]
        after = copies()
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])
        for p in set(optimizer.state) - stateful:  # state that the optimizer has made in its first step
            del optimizer.state[p]
    for t, point in enumerate(points, 1):
        after |= {f"{tag} of step {t}": value for tag, value in point.items()}
    return {name: (before.get(name, torch.zeros_like(tensor)), tensor) for name, tensor in after.items()}


def compare(found, expected):
    """ArithmeticError if something is changed otherwise than by rounding.

    Where a gradient is near 0, Adam's first steps have its sign, which rounding can change: so weights may differ more.
    """
    for name, (before, after) in expected.items():
        difference = (found[name][1].double() - after.double()).norm()
        if after.dim() == 0:  # a curve, a counter; an accuracy changes by a whole image
            allowed = 1e-3 * after.abs() + 0.05
        else:
            allowed = 0.2 * (after.double() - before.double()).norm() + 1e-5 * after.numel() ** 0.5
        if not difference <= allowed:  # also if it is nan
            raise ArithmeticError(f"{name} differs by {difference:.2g} where {allowed:.2g} is allowed")
