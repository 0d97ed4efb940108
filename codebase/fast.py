"""Faster ways to do what train.plain_update does: the same losses from the same seed, up to the rounding of float32.

On a CPU the step of a small model is spent on moving numbers between dozens of operations: torch.compile makes of the
loss, its gradient and Adam one function. On CUDA it is spent on launching them: a CUDA graph launches all at once.
Nothing here is needed to understand the training; train.plain_update is its definition.
"""

import logging
import time

import torch
from torch import nn

from codebase.checkpoints import random_state, restore_random_state

STEPS = 10_000  # on a CPU the compiler takes as long as it saves in about this many steps


def pays(device, steps):
    """Is the faster update worth its preparation, for so many steps?"""
    return device.type == "cuda" or (device.type == "cpu" and steps >= STEPS)


def faster(update, model, optimizer, batch, bfloat16):
    """A faster update(batch) of the model, or `update` itself, and in words which. The model stays as it is.

    It is tried first, against `update`, on two steps from here. What fails, as where there is no compiler, or computes
    something else, is not taken. batch: of the shape of all batches to come; bfloat16: as in train.plain_update.
    """
    began = time.monotonic()
    cuda = batch[0].is_cuda
    try:
        with torch.cuda.stream(torch.cuda.Stream() if cuda else None):  # a graph needs it to have run on another stream
            expected = rehearsal(update, model, optimizer, batch)  # makes Adam's state, which the faster one works on
        quick = graphed(update, batch) if cuda else compiled(model, optimizer, bfloat16)
        found = rehearsal(quick, model, optimizer, batch)
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
            raise ArithmeticError(f"its losses are {found.tolist()} instead of {expected.tolist()}")
    except Exception as error:  # compilers and drivers fail in a hundred ways, and none is needed
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        return update, f"the plain one, as the faster one fails ({reason})"
    how = "a CUDA graph" if cuda else "compiled"
    return quick, f"{how}, ready after {time.monotonic() - began:.0f} s"


def rehearsal(update, model, optimizer, batch):
    """The losses of two updates, (2,), on the CPU. The updates, and the random numbers that they drew, are undone."""
    synchronize = torch.cuda.synchronize if batch[0].is_cuda else lambda: None  # whatever streams they are on
    synchronize()
    tensors = [*model.parameters(), *model.buffers()]
    before = [t.detach().clone() for t in tensors]
    moments = [{key: value.clone() for key, value in optimizer.state.get(p, {}).items()} for p in model.parameters()]
    random = random_state()
    try:
        return torch.stack([update(batch)["train/loss"] for _ in range(2)]).cpu()
    finally:
        restore_random_state(random)
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            for p, moment in zip(model.parameters(), moments, strict=True):
                for key, value in optimizer.state.get(p, {}).items():
                    value.copy_(moment[key]) if moment else value.zero_()  # Adam begins with zeros
        synchronize()


class Loss(nn.Module):
    """A model whose forward is its loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *batch):
        return self.model.loss(*batch)


def compiled(model, optimizer, bfloat16):
    """update(batch): loss, gradient and Adam as one compiled function, in place on the model's and optimizer's tensors.

    Parameters without a state in the optimizer, on which the loss does not depend, are left out.
    """
    loss_of = Loss(model)
    trained = {name: p for name, p in loss_of.named_parameters() if p in optimizer.state}
    states = [optimizer.state[p] for p in trained.values()]
    parameters = [p.detach() for p in trained.values()]
    first, second, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
    group = optimizer.param_groups[0]
    lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]

    def loss(parameters, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return torch.func.functional_call(loss_of, dict(zip(trained, parameters, strict=True)), batch)

    @torch.compile(fullgraph=True, dynamic=False, options={"fallback_random": True})  # PyTorch's own random numbers
    def step(parameters, first, second, rate, scale, batch):
        gradients, (value, summaries) = torch.func.grad_and_value(loss, has_aux=True)(parameters, batch)
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            m.lerp_(g, 1 - beta1)  # m = beta1 m + (1 - beta1) g
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            p.sub_(rate * m / (v.sqrt() * scale + eps))
        return {"train/loss": value} | summaries

    def update(batch):
        with torch.no_grad():
            torch._foreach_add_(steps, 1)
            t = steps[0].item()
            # Adam's corrections of m and v, which begin at 0; computed here, or they would be for every weight.
            rate, scale = torch.tensor(lr / (1 - beta1**t)), torch.tensor((1 - beta2**t) ** -0.5)
            return step(parameters, first, second, rate, scale, batch)

    torch.compiler.reset()  # of a model before this one, whose function it would take for the same
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # its remarks on CUDA, on a CPU
    return update


def graphed(update, batch):
    """update(batch): `update`, recorded as a CUDA graph. What it is given is copied to where the graph reads it."""
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
