"""The compiled step does what the plain one does: same losses, same weights, same random numbers; or is not used."""

import copy
import inspect
import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import COMPILED, needs_compiler, printed_by, same, weights
from torch import nn

from codebase import data, fast
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.vae import VAE
from codebase.precision import training_precision
from codebase.runs import course
from codebase.train import Adam, learning_rate, set_rate, training_step, updates

X = torch.randint(0, 256, (60, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
COLOUR = torch.randint(0, 256, (60, 3072), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 10
COMPILE = torch.compile
SLOW = [pytest.mark.slow, needs_compiler]
GPU = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICES = [pytest.param("cpu", marks=SLOW), pytest.param("cuda", marks=GPU)]


def batches_of(model, device="cpu"):
    x, colour, y = (t.to(device) for t in (X, COLOUR, Y))
    if isinstance(model, FSVAE):
        return data.labelled_batches(colour, y, 10, 20, 0)
    return data.binary_batches(x, 20, 0)


def ready(optimizer=Adam):
    """What a step takes: a VAE, its optimizer and a batch."""
    torch.manual_seed(0)
    model = VAE(z_dim=3)
    return model, optimizer(model.parameters()), batches_of(model)[0]


def compiled(step, model, optimizer, batch, how=COMPILED):
    """The step, compiled; it must be. how: what a run says."""
    quick, words = fast.faster(step, model, optimizer, batch)
    assert words.startswith(how), words
    return quick


# The models' own steps


def trained(make, device, precision, faster):
    """After 30 steps from seed 1: the losses, the weights, the optimizer's state, and a random number drawn then."""
    torch.manual_seed(1)
    model = make(z_dim=3).to(device)
    optimizer = Adam(model.parameters())
    batches = batches_of(model, device)
    example = batches[0]  # takes random numbers
    with training_precision(model, precision):
        step = compiled(training_step, model, optimizer, example) if faster else training_step
        points = [point for _, point in updates(model, batches, range(30), optimizer, step)]
    losses = {tag: torch.stack([point[tag] for point in points]).cpu() for tag in points[0]}
    return losses, nn.utils.parameters_to_vector(model.parameters()), optimizer.state_dict(), torch.rand(3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("make", "precision"), [(partial(GMVAE, k=20), "float32"), (FSVAE, "bfloat16")])
def test_the_same_losses_weights_and_moments_from_the_same_seed(make, precision, device):
    """In float32 and in bfloat16, where the rounding errors are larger. (Below a run of the SSVAE is compiled.)"""
    losses, weights, state, drawn = trained(make, device, precision, faster=True)
    expected, plain_weights, plain_state, plain_drawn = trained(make, device, precision, faster=False)
    assert list(losses) == list(expected)
    rounding = 1 if precision == "float32" else 30
    for tag in losses:
        torch.testing.assert_close(losses[tag], expected[tag], rtol=rounding * 1e-4, atol=rounding * 1e-3)
    if precision == "bfloat16":
        exact = trained(make, device, "float32", faster=False)[0]["gen/rec"]
        assert (losses["gen/rec"] - expected["gen/rec"]).norm() < 0.2 * (losses["gen/rec"] - exact).norm()
    assert drawn.equal(plain_drawn)
    torch.manual_seed(1)
    began = nn.utils.parameters_to_vector(make(z_dim=3).to(device).parameters())
    # The norm over all weights: if a gradient is only rounding noise, Adam still makes a full step.
    assert (weights - plain_weights).norm() <= rounding * 1e-2 * (plain_weights - began).norm()
    assert state["param_groups"][0]["t"] == 30
    for i, held in state["state"].items():
        found, wanted = held["exp_avg"].flatten(), plain_state["state"][i]["exp_avg"].flatten()
        assert torch.cosine_similarity(found, wanted, 0) > 1 - rounding * 1e-3


# An edit of the step has an effect in the plain and in the compiled step


def edited(before="", after=""):
    """training_step with lines before and after that of the optimizer, as a reader would add them."""
    source, line = inspect.getsource(training_step), "    optimizer.step()\n"
    names = dict(vars(sys.modules["codebase.train"]))
    assert source.count(line) == 1
    exec(source.replace(line, before + line + after), names)
    return names["training_step"]


CLIPPING = "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1)\n"
AVERAGE = "    with torch.no_grad():\n        model.average.lerp_(model.enc.net[4].bias, 0.1)\n"
EDITS = {"clipping", "average", "weight decay", "schedule", "warm-up"}


class WarmUp(VAE):
    """Its loss, and a curve, have a weight that grows from 0 to 1 in the first 40 steps of training.

    It has a place for a running average of a bias.
    """

    def __init__(self, on=True):
        super().__init__(z_dim=3)
        self.on = on
        self.register_buffer("average", torch.zeros(6))

    def loss(self, x):
        _, kl, rec = self.negative_elbo_bound(x)
        weight = (self.step / 40).clamp(max=1) if self.on else torch.ones(())
        return rec + weight * kl, {"train/weight": weight}


def trained_with(edits, device="cpu", faster=False, optimizer_of=None, how=COMPILED):
    """The model's state_dict after 25 steps from seed 1."""
    torch.manual_seed(1)
    model = WarmUp("warm-up" in edits).to(device)
    optimizer = (optimizer_of or partial(Adam, weight_decay="weight decay" in edits))(model.parameters())
    batches = batches_of(model, device)
    step = edited(CLIPPING if "clipping" in edits else "", AVERAGE if "average" in edits else "")
    example = batches[0]  # takes random numbers
    if faster:
        step = compiled(step, model, optimizer, example, how)
    rate = learning_rate(1e-3, "cosine", 25, steps_per_epoch=3) if "schedule" in edits else lambda t: 1e-3
    set_rate(optimizer, rate(0))
    for t, _ in updates(model, batches, range(25), optimizer, step):
        set_rate(optimizer, rate(t))
    return model.state_dict()


def distance(a, b):
    return sum((a[key] - b[key]).square().sum() for key in a).sqrt().item()


def traced(*args, options, **how):
    """As torch.compile, which only reads the step; PyTorch executes what it has read. It takes a tenth of the time."""
    return COMPILE(*args, **how, backend="eager")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_an_edit_of_the_step_is_what_runs(device, monkeypatch):
    """All edits at once, compiled: the same weights as plain, and others than without any single one of them."""
    if device == "cpu":
        monkeypatch.setattr(torch, "compile", traced)
    faster, plain = trained_with(EDITS, device, faster=True), trained_with(EDITS, device)
    for edit in sorted(EDITS):
        moved = distance(trained_with(EDITS - {edit}, device), plain)
        assert moved > 1e-2, edit
        assert distance(faster, plain) < 0.05 * moved, edit


@pytest.mark.slow
def test_a_step_of_an_optimizer_of_torch_is_compiled_in_parts():
    """In another process: once PyTorch has compiled a whole step, it cannot compile one in parts."""
    program = f"""
import functools, sys, torch; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_fast import distance, traced, trained_with
torch.compile, sgd = traced, functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
faster, plain = (trained_with({{"clipping"}}, "cpu", faster, sgd, "compiled in parts") for faster in (True, False))
print(distance(faster, plain), distance(trained_with(set(), "cpu", False, sgd), plain))
"""
    off, moved = map(float, printed_by(program).split())
    assert moved > 1e-2
    assert off < 0.05 * moved


# A step that does something else is not used


@pytest.mark.parametrize(("optimizer", "started"), [(Adam, True), (partial(torch.optim.Adam, lr=1e-3), False)])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (
            edited(after="    with torch.no_grad():\n        model.dec.net[4].bias.add_(0.01)\n"),
            "ArithmeticError: dec.net.4.bias differs by",
        ),
        (edited(after="    model.step.add_(1)\n"), "ArithmeticError: step differs by"),
        # What a hook on a parameter does that a compiled step ignores: Adam's first steps hardly depend on the scale.
        (edited(before="    model.dec.net[4].bias.grad.mul_(3)\n"), "ArithmeticError: the optimizer's exp_avg"),
        (edited(after="    loss = loss + 1\n"), "ArithmeticError: train/loss of step 1 differs by 1 where"),
        (edited(after="    raise RuntimeError('no compiler\\nand a long story')\n"), "RuntimeError: no compiler)"),
    ],
)
def test_a_step_that_does_something_else_is_not_used_and_changes_nothing(
    monkeypatch, wrong, reason, optimizer, started
):
    """In a weight, a buffer, only the optimizer's state, a curve; or that fails half-way. All is as before."""
    args = model, optimizer, _ = ready(optimizer)
    if started:
        training_step(*args)
    before, random = copy.deepcopy((model.state_dict(), optimizer.state_dict())), torch.get_rng_state()
    monkeypatch.setattr(fast, "compiled", lambda *_: wrong)
    chosen, how = fast.faster(training_step, *args)
    assert chosen is training_step
    assert how.startswith(f"not compiled: the plain step ({reason}"), how
    assert torch.get_rng_state().equal(random)
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("moved", [0.0, 0.7, 1.3, 2.0, math.nan])
def test_a_change_that_is_three_tenths_wrong_is_no_rounding(moved):
    expected = {"w": (torch.zeros(100), torch.ones(100))}
    fast.compare({"w": (torch.zeros(100), torch.full((100,), 1.1))}, expected)
    with pytest.raises(ArithmeticError, match=r"w differs by"):
        fast.compare({"w": (torch.zeros(100), torch.full((100,), moved))}, expected)


def test_trying_it_leaves_buffers_and_every_group_of_the_optimizer_alone():
    model = VAE(z_dim=3, enc=nn.Sequential(nn.Linear(784, 6), nn.BatchNorm1d(6)))
    optimizer = Adam([{"params": model.enc.parameters()}, {"params": model.dec.parameters()}])
    before = copy.deepcopy(model.state_dict())
    found = fast.changes(training_step, model, optimizer, batches_of(model)[0])
    assert not found["enc.1.running_mean"][0].equal(found["enc.1.running_mean"][1])
    assert same(dict(model.state_dict()), dict(before))
    assert [float(group["t"]) for group in optimizer.param_groups] == [0, 0]


# Runs


@pytest.mark.parametrize(
    ("flag", "device", "iter_max", "start", "used"),
    [
        ("auto", "cpu", course.COMPILED_FROM, 0, True),
        ("auto", "cuda", course.COMPILED_FROM, course.COMPILED_FROM - 1, True),  # as the run that is resumed
        ("auto", "cpu", course.COMPILED_FROM - 1, 0, False),
        ("auto", "mps", 10**6, 0, False),
        ("0", "cpu", 10**6, 0, False),
        ("1", "mps", 1, 0, True),
        ("1", "cpu", 5, 5, False),  # there is nothing to train
    ],
)
def test_when_the_step_is_compiled(monkeypatch, flag, device, iter_max, start, used):
    monkeypatch.setattr(fast, "faster", lambda step, *_: (f"{step}, compiled", "compiled"))
    flags = SimpleNamespace(fast=flag, iter_max=iter_max)
    run = SimpleNamespace(flags=flags, device=torch.device(device), step="the run's step")
    step = course.faster_step(run, None, None, dict.fromkeys([start]), start)
    assert step == "the run's step, compiled" if used else "the run's step"


def test_a_run_without_the_compilers_minute(vae, tmp_path, monkeypatch):
    """A compiler that hands back what it gets: the run says that it is compiled, and gives what --fast 0 gives."""
    given, ended = [], []
    monkeypatch.setattr(torch, "compile", lambda function, **how: given.append(function) or function)
    for faster in (0, 1):
        code, out, _ = vae("--iter_max", 5, "--z", 2, "--fast", faster, "--overwrite", 1)
        assert code == 0
        assert (f"update       {COMPILED} after" in out) == faster, out
        ended.append(torch.load(*tmp_path.glob("checkpoints/*/model-00005.pt")))
    assert same(*ended)
    assert given == [training_step]  # there is no second definition of the step


def test_without_a_compiler_a_run_says_so_once_and_goes_on(vae, monkeypatch):
    error = RuntimeError("C++ compile error\n\nCommand:\ng++ a\n\nOutput:\ng++: fatal error: no a\n")
    monkeypatch.setattr(torch, "compile", Mock(side_effect=error))
    code, out, _ = vae("--iter_max", 3, "--z", 2, "--fast", 1)
    assert code == 0
    assert out.count("not compiled: the plain step (g++: fatal error: no a)") == 1
    assert "trained 3 steps" in out


@pytest.mark.slow
@needs_compiler
def test_a_run_that_is_compiled(on_digits, folders, monkeypatch):
    """The same as the plain run up to rounding; resumed, the same bit for bit; and no compilation is done twice."""
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    ended = {}
    for run, parts in (("plain", [40]), ("whole", [40]), ("parts", [10, 40])):
        flags = ("run_ssvae.py", "--iter_save", 10, "--fast", int(run != "plain"))
        for iter_max in parts:
            again = "--overwrite" if iter_max == parts[0] else "--resume"
            code, out, err = on_digits(*flags, "--iter_max", iter_max, again, 1)
            assert code == 0, err
            assert (f"update       {COMPILED} after" in out) == (run != "plain"), out
        began, ended[run] = (weights(folders()[0], step) for step in (10, 40))
    assert "update" not in on_digits(*flags, "--iter_max", 40, "--resume", 1)[1]  # nothing to do
    assert distance(ended["whole"], ended["plain"]) < 1e-2 * distance(ended["plain"], began)
    assert same(dict(ended["whole"]), dict(ended["parts"]))
