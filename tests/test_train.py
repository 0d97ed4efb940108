"""Training: the numbers of the textbook loop; a run logs and saves all that it should, and nothing not finite."""

import weakref

import numpy as np
import pytest
import torch
from conftest import curves, pictures_shown, run_steps, weights
from torch import nn
from torch.overrides import TorchFunctionMode

from codebase import data, evaluate
from codebase.errors import NonFiniteError
from codebase.models.vae import VAE
from codebase.runs import course as training
from codebase.train import Adam, learning_rate, set_rate, train, training_step, updates, values_of

X = torch.randint(0, 256, (60, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_it_is_adam_on_the_models_loss():
    """Twelve steps against the plainest loop there is, with torch's unfused Adam."""
    torch.manual_seed(1)
    model = VAE(z_dim=3)
    run_steps(model, data.binary_batches(X, 20, 0), 12)
    torch.manual_seed(1)
    plain = VAE(z_dim=3)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, foreach=False)
    for t in range(12):
        optimizer.zero_grad()
        plain.negative_elbo_bound(*data.binary_batches(X, 20, 0)[t])[0].backward()
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", [0, 0.1])
def test_adam_and_adamw_are_those_of_torch(decay):
    """Fifty steps with random gradients, in float64; a rate that changes."""
    random = torch.Generator().manual_seed(0)
    begun = [torch.randn(shape, dtype=torch.float64, generator=random) for shape in ((3, 4), (5,), ())]
    ours, theirs = ([nn.Parameter(p.clone()) for p in begun] for _ in range(2))
    optimizer = Adam(ours, 1e-2, betas=(0.8, 0.99), eps=1e-3, weight_decay=decay)
    expected = torch.optim.AdamW(theirs, 1e-2, betas=(0.8, 0.99), eps=1e-3, weight_decay=decay, foreach=False)
    for step in range(50):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, dtype=torch.float64, generator=random)
            q.grad = p.grad.clone()
        for each in (optimizer, expected):  # one rate is a tensor, changed in place, the other a number
            before = each.param_groups[0]["lr"]
            set_rate(each, 1e-2 * 0.9**step)
            assert each.param_groups[0]["lr"] is before or isinstance(before, float)
            each.step()
        # The rate is rounded to float32, as the parameters of all models are.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_adam_leaves_alone_what_has_no_gradient():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Adam([p, q], weight_decay=0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    assert not p.equal(torch.ones(2))
    assert q.equal(torch.ones(2))


def test_learning_rates():
    assert learning_rate(0.1, "constant", 100, 10) is None
    cosine = learning_rate(0.1, "cosine", 100, 10)
    assert [cosine(t) for t in (0, 50, 100)] == pytest.approx([0.1, 0.05, 0])
    steps = learning_rate(0.1, "30,60", 100, 10)
    assert [steps(t) for t in (0, 29, 30, 59, 60, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    # Burda et al. (2016), section 5: 3^i passes over the training images at 0.001 10^(-i/7), i = 0, ..., 7.
    burda = learning_rate(0.001, "burda", 100, 3)
    of_epochs = [0.001 * 10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    assert [burda(t) for t in range(3280 * 3)] == pytest.approx(np.repeat(of_epochs, 3).tolist())
    assert burda(10**9) == pytest.approx(1e-4)  # and then the last rate


def test_each_step_has_its_learning_rate(vae, monkeypatch):
    """Step t + 1 has rate(t), also in a run that is resumed; with any optimizer."""
    seen, step = [], Adam.step

    def noted(optimizer):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        step(optimizer)

    monkeypatch.setattr(Adam, "step", noted)
    flags = ("--z", 3, "--hidden", 20, "--lr", 0.02, "--lr_schedule", "2,5", "--iter_save", 3)
    assert vae(*flags, "--iter_max", 3)[0] == 0
    assert vae(*flags, "--iter_max", 7, "--resume", 1)[0] == 0
    assert seen == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.002, 0.0002, 0.0002])


def test_denormal_numbers_are_0_in_training():
    number = torch.tensor(1e-39)
    assert number * 1 > 0
    train(VAE(z_dim=3), data.binary_batches(X, 20, 0), 1)
    assert number * 1 == 0


def test_the_values_of_every_step_are_returned():
    torch.manual_seed(0)
    values = train(VAE(z_dim=3), data.binary_batches(X, 20, 0), 50)
    assert values.keys() == {"train/loss", "gen/elbo", "gen/kl_z", "gen/rec"}
    loss, elbo, kl, rec = (np.array(values[tag]) for tag in values)
    assert loss.shape == (50,)
    assert loss == pytest.approx(-elbo)
    assert kl + rec == pytest.approx(loss, rel=1e-5)
    assert loss[-1] < 545 < loss[0]  # 784 log 2 = 543 where every pixel is a coin


def test_what_is_saved_and_logged(vae, folders, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 10)
    assert vae("--z", 3, "--hidden", 20, "--iter_max", 33, "--iter_save", 15)[0] == 0
    assert torch.tensor(1e-39) * 1 == 0  # as in `train`
    checkpoints, logs = folders()
    assert {path.name for path in checkpoints.glob("model-*")} == {f"model-000{n}.pt" for n in (15, 30, 33)}
    shown = curves(logs)
    assert [step for step, _ in shown["train/loss"]] == [10, 20, 30, 33]
    assert [step for step, _ in shown["eval/nelbo_test"]] == [0, 33]  # at every 10 * (120 + 300) images: 84 steps
    assert {step for points in pictures_shown(logs).values() for step, _ in points} == {0, 15, 30, 33}


def test_the_curves_of_the_bounds_are_of_the_images_they_name(vae, folders, digits, monkeypatch):
    """At a fixed number of training images, whenever checkpoints are saved: the whole test set, not its subset."""
    monkeypatch.setattr(training, "HELD_OUT_EVERY", 1)
    assert vae("--z", 3, "--hidden", 20, "--iter_max", 30, "--validation", 20)[0] == 0
    checkpoints, logs = folders()
    shown, splits = curves(logs), data.binary_splits(data.load(digits).hold_out(20))
    every = (120 + 280 + 20) // 50
    model = VAE(z_dim=3, n_hidden=20)
    for name in ("test", "train", "validation"):
        assert [step for step, _ in shown[f"eval/nelbo_{name}"]] == [*range(0, 30, every), 30]
        assert len(splits[name][0]) == {"test": 120, "train": 280, "validation": 20}[name]
        model.load_state_dict(weights(checkpoints, 30))
        exact = evaluate.elbo(model, splits[name], samples=50)["nelbo"]
        one = exact.values.std() / exact.n**0.5  # larger than the error of the draws
        assert dict(shown[f"eval/nelbo_{name}"])[30] == pytest.approx(exact.mean, abs=float(one))


def test_training_mode_and_the_number_of_steps():
    model = VAE(z_dim=3).eval()
    steps = updates(model, ones(784), range(3, 6), Adam(model.parameters()))
    assert [(t, model.training, int(model.step)) for t, _ in steps] == [(4, True, 3), (5, True, 4), (6, True, 5)]


class Explodes(nn.Module):
    """Its loss is infinite at the given step of training, because one of its two terms is."""

    def __init__(self, at):
        super().__init__()
        self.w, self.at, self.step = nn.Parameter(torch.zeros(1)), at, 0

    def loss(self, x):
        self.step += 1
        rec, kl = self.w.sum(), torch.tensor(float("inf") if self.step == self.at else 0.0)
        return rec + kl, {"gen/rec": rec, "gen/kl_z": kl}


def ones(n=1):
    return [(torch.ones(1, n),)] * 300


@pytest.mark.parametrize("at", [2, 57])
def test_a_loss_that_is_not_finite_is_named(at):
    message = rf"the loss of step {at} is inf \(train/loss inf, gen/rec \S+, gen/kl_z inf\)\. A smaller --lr may help"
    with pytest.raises(NonFiniteError, match=message):
        train(Explodes(at), ones(), 300)


@pytest.mark.parametrize(("at", "kept"), [(20, [10]), (21, [10, 20])])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(vae, folders, monkeypatch, at, kept):
    loss = VAE.loss

    def explodes(model, x):
        value, terms = loss(model, x)
        return value / (model.step != at - 1), terms

    monkeypatch.setattr(VAE, "loss", explodes)
    code, _, err = vae("--z", 3, "--hidden", 20, "--iter_save", 10)
    assert code == 1
    assert f"the loss of step {at} is inf" in err
    assert [path.name for path in sorted(folders()[0].glob("model-*"))] == [f"model-000{step}.pt" for step in kept]


def test_weights_that_are_not_finite_stop_the_run_before_they_are_saved(vae, folders, monkeypatch):
    """The loss of the first step is finite, its gradient is not: sqrt at 0."""
    loss = VAE.loss

    def explodes(model, x):
        value, terms = loss(model, x)
        return value + (0 * model.dec.net[4].bias.sum()).sqrt(), terms

    monkeypatch.setattr(VAE, "loss", explodes)
    code, _, err = vae("--hidden", 20, "--iter_max", 2, "--iter_save", 1)
    assert code == 1
    assert "is not finite after step 1" in err
    assert not list(folders()[0].glob("*.pt"))


class BadGradient(nn.Module):
    """Finite, but its gradient is not, sqrt at 0; or is 1e30, whose square is not a float32."""

    def __init__(self, huge):
        super().__init__()
        self.w, self.huge = nn.Parameter(torch.zeros(1)), huge

    def loss(self, x):
        return (1e30 * self.w if self.huge else self.w.sqrt()).sum(), {}


def test_weights_or_an_optimizer_that_are_not_finite_are_never_saved():
    """Adam would divide by the infinite moment in all later steps: the weight would stay constant and finite."""
    with pytest.raises(NonFiniteError, match=r"^w is not finite after step 1\."):
        train(BadGradient(huge=False), ones(), 1)
    model = BadGradient(huge=True)
    with pytest.raises(NonFiniteError, match=r"the optimizer's exp_avg_sq of w is not finite after step 1"):
        train(model, ones(), 1)
    assert model.w.isfinite().all()


class Reads(TorchFunctionMode):
    """In the block: counts how often Python or the CPU needs a value at once; with a GPU it would wait each time."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        asking = {"cpu", "item", "tolist", "numpy", "nonzero", "equal", "__float__", "__int__", "__bool__", "__index__"}
        self.n += function.__name__ in asking
        return function(*args, **(kwargs or {}))


def test_the_steps_ask_for_no_value():
    """Values are read when the curves are logged, not between."""
    model = VAE(z_dim=3)
    with Reads() as reads:
        points = [*updates(model, data.binary_batches(X, 20, 0), range(20), Adam(model.parameters()))]
    assert (len(points), reads.n) == (20, 0)
    assert not any(value.requires_grad for _, point in points for value in point.values())  # else they keep the graph


def test_points_are_let_go_once_they_have_been_looked_at(vae, monkeypatch):
    points, kept = [], []

    def noted(model, optimizer, batch):
        point = training_step(model, optimizer, batch)
        points.append(weakref.ref(point["train/loss"]))
        return point

    def read(found, at):
        kept.append(sum(point() is not None for point in points))
        return values_of(found, at)

    monkeypatch.setattr(training, "faster_step", lambda *args: noted)
    monkeypatch.setattr(training, "values_of", read)
    monkeypatch.setattr(training, "LOG_EVERY", 10)
    assert vae("--z", 3, "--hidden", 20)[0] == 0
    assert kept == [10, 10, 10]
