"""The loop: the numbers of the textbook loop; it logs and saves all that it should, and nothing that is not finite."""

import weakref
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from codebase import data
from codebase.errors import NonFiniteError
from codebase.models.vae import VAE
from codebase.train import Adam, learning_rate, set_rate, train

X = torch.randint(0, 256, (60, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def run(model, iter_max, start=0, iter_save=1000, lr=1e-3, batches=None):
    """Train; returns what was saved and what was logged."""
    saved, logged = [], []
    batches = batches or data.binary_batches(X, 20, 0)
    train(
        model,
        batches,
        Adam(model.parameters(), lr),
        start=start,
        iter_max=iter_max,
        iter_save=iter_save,
        save=saved.append,
        log=lambda step, values: logged.append((step, values)),
    )
    return saved, logged


def test_it_is_adam_on_the_models_loss():
    """Twelve steps against the plainest loop there is, with torch's unfused Adam."""
    torch.manual_seed(1)
    model = VAE(z_dim=3)
    run(model, 12)
    torch.manual_seed(1)
    plain = VAE(z_dim=3)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, foreach=False)
    for t in range(12):
        (x,) = data.binary_batches(X, 20, 0)[t]
        optimizer.zero_grad()
        plain.negative_elbo_bound(x)[0].backward()
        optimizer.step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", [0, 0.1])
def test_adam_and_adamw_are_those_of_torch(decay):
    """Fifty steps with random gradients, in float64; a parameter that at times has no gradient; a rate that changes."""
    random = torch.Generator().manual_seed(0)
    begun = [torch.randn(shape, dtype=torch.float64, generator=random) for shape in ((3, 4), (5,), ())]
    ours, theirs = ([nn.Parameter(p.clone()) for p in begun] for _ in range(2))
    optimizer = Adam(ours, 1e-2, betas=(0.8, 0.99), eps=1e-3, weight_decay=decay)
    expected = torch.optim.AdamW(theirs, 1e-2, betas=(0.8, 0.99), eps=1e-3, weight_decay=decay, foreach=False)
    for step in range(50):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, dtype=torch.float64, generator=random)
            q.grad = p.grad.clone()
        set_rate(optimizer, 1e-2 * 0.9**step)
        set_rate(expected, 1e-2 * 0.9**step)
        optimizer.step()
        expected.step()
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


def test_learning_rates_of_burda():
    """Burda et al. (2016), section 5: 3^i passes over the training images at 0.001 10^(-i/7), i = 0, ..., 7."""
    epoch = 3  # steps
    rate = learning_rate(0.001, "burda", 100, epoch)
    of_epochs = [0.001 * 10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    assert len(of_epochs) == 3280
    assert [rate(t) for t in range(3280 * epoch)] == pytest.approx(np.repeat(of_epochs, epoch).tolist())
    assert rate(10**9) == pytest.approx(1e-4)  # and then the last rate


@pytest.mark.parametrize("make", [Adam, partial(torch.optim.SGD, lr=1.0)])
def test_each_step_has_its_learning_rate(make):
    """Step t + 1 has rate(t), also where training begins at a later step."""
    model = VAE(z_dim=2)
    optimizer = make(model.parameters())
    seen = []

    def update(batch):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        return {"train/loss": torch.zeros(())}

    for start, end in ((0, 2), (5, 7)):
        train(
            model,
            ones(),
            optimizer,
            update=update,
            rate=lambda t: t + 0.5,
            start=start,
            iter_max=end,
            iter_save=100,
            save=lambda step: None,
            log=lambda step, values: None,
        )
    assert seen == [0.5, 1.5, 5.5, 6.5]


def test_what_is_saved_and_logged():
    torch.manual_seed(0)
    saved, logged = run(VAE(z_dim=3), 230, iter_save=50)
    assert saved == [50, 100, 150, 200, 230]  # the last step too
    assert [step for step, _ in logged] == [100, 200, 230]
    for _, values in logged:
        assert set(values) == {"train/loss", "gen/elbo", "gen/kl_z", "gen/rec"}
        assert all(isinstance(value, float) for value in values.values())
        assert values["train/loss"] == pytest.approx(-values["gen/elbo"])
        assert values["gen/kl_z"] + values["gen/rec"] == pytest.approx(values["train/loss"])
    assert logged[-1][1]["train/loss"] < 545  # 784 log 2 = 543 where every pixel is a coin


def test_nothing_to_do():
    assert run(VAE(z_dim=3), 100, start=100) == ([], [])


def test_training_mode():
    model = VAE(z_dim=3).eval()
    run(model, 1)
    assert model.training


class Explodes(nn.Module):
    """Its loss is infinite at the given step of training, because one of its two terms is."""

    def __init__(self, at):
        super().__init__()
        self.w, self.at, self.step = nn.Parameter(torch.zeros(1)), at, 0

    def loss(self, x):
        self.step += 1
        rec, kl = self.w.sum(), torch.tensor(float("inf") if self.step == self.at else 0.0)
        return rec + kl, {"gen/rec": rec, "gen/kl_z": kl}


def ones():
    return [(torch.ones(1),)] * 300


@pytest.mark.parametrize(("at", "kept"), [(1, []), (7, []), (57, [50]), (100, [50]), (101, [50, 100])])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(at, kept):
    saved = []
    model = Explodes(at)
    with pytest.raises(NonFiniteError, match=f"the loss of step {at} is inf; gen/kl_z is inf. A smaller --lr may help"):
        train(
            model,
            ones(),
            Adam(model.parameters(), 1e-3),
            iter_max=300,
            iter_save=50,
            save=saved.append,
            log=lambda step, values: None,
        )
    assert saved == kept


class BadGradient(nn.Module):
    """A finite loss whose gradient is not: sqrt at 0."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def loss(self, x):
        return self.w.sqrt().sum(), {}


def test_weights_that_are_not_finite_are_never_saved():
    with pytest.raises(NonFiniteError, match=r"^w is not finite after step 1\."):
        run(BadGradient(), 1, batches=ones())


class HugeGradient(nn.Module):
    """A finite loss whose gradient is 1e30, whose square is not a float32."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def loss(self, x):
        return 1e30 * self.w.sum(), {}


def test_an_optimiser_that_is_not_finite_is_never_saved():
    """Adam would divide by the infinite moment in all later steps: the weight would stay constant and finite."""
    model = HugeGradient()
    with pytest.raises(NonFiniteError, match=r"the optimizer's exp_avg_sq of w is not finite after step 1"):
        run(model, 1, batches=ones())
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


def test_the_loop_asks_for_no_value_between_what_it_logs():
    """Values are read only when the curves are logged, for any number of steps in between."""
    asked = []
    for iter_max in (1, 99):
        with Reads() as reads:
            run(VAE(z_dim=3), iter_max, batches=data.binary_batches(X, 20, 0))
        asked.append(reads.n)
    assert asked[0] == asked[1] > 0


def test_points_are_let_go_once_they_have_been_looked_at():
    """So that memory, and the time of a look, do not grow with the number of steps."""
    points = []

    def update(batch):
        loss = torch.zeros(())
        points.append(weakref.ref(loss))
        return {"train/loss": loss}

    def log(step, values):
        kept.append(sum(point() is not None for point in points))

    kept, model = [], VAE(z_dim=2)
    how = {"iter_max": 300, "iter_save": 50, "save": lambda step: None, "log": log}
    train(model, ones(), Adam(model.parameters()), update=update, **how)
    assert kept[0] == kept[1] == kept[2]


def test_same_seed_same_weights():
    def weights(seed):
        torch.manual_seed(seed)
        model = VAE(z_dim=3)
        run(model, 30, batches=data.binary_batches(X, 20, seed))
        return model.dec.net[4].weight

    assert weights(0).equal(weights(0))
    assert not weights(0).equal(weights(1))
