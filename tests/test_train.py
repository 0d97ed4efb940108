"""The loop: the numbers of the textbook one; all is logged and saved that should be, and nothing that is not finite."""

import pytest
import torch
from torch import nn

from codebase import NonFiniteError, data
from codebase.models.vae import VAE
from codebase.train import adam, train

X = torch.randint(0, 256, (60, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def run(model, iter_max, start=0, iter_save=1000, lr=1e-3, batches=None):
    """Train; returns what was saved and what was logged."""
    saved, logged = [], []
    batches = batches or data.binary_batches(X, 20, 0, start)
    train(
        model,
        batches,
        adam(model, lr),
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
    for _, (x,) in zip(range(12), data.binary_batches(X, 20, 0), strict=False):
        optimizer.zero_grad()
        plain.negative_elbo_bound(x)[0].backward()
        optimizer.step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-4, atol=1e-6)


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
    while True:
        yield (torch.ones(1),)


@pytest.mark.parametrize(("at", "kept"), [(1, []), (7, []), (57, [50]), (100, [50]), (101, [50, 100])])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(at, kept):
    saved = []
    model = Explodes(at)
    with pytest.raises(
        NonFiniteError, match=f"the loss of step {at} is inf; gen/kl_z is inf. The last checkpoint is k"
    ):
        train(
            model,
            ones(),
            adam(model, 1e-3),
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
    with pytest.raises(NonFiniteError, match=r"^w is not finite after step 1\. The last checkpoint is kept\."):
        run(BadGradient(), 1, batches=ones())


class HugeGradient(nn.Module):
    """A finite loss whose gradient is 1e30, whose square is not a float32."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def loss(self, x):
        return 1e30 * self.w.sum(), {}


def test_an_optimiser_that_is_not_finite_is_never_saved():
    """Adam would divide by the infinite moment ever after: the weight stays where it is, finite."""
    model = HugeGradient()
    with pytest.raises(NonFiniteError, match=r"Adam's exp_avg_sq of w is not finite after step 1"):
        run(model, 1, batches=ones())
    assert model.w.isfinite().all()


def test_the_loop_asks_the_device_only_where_something_is_logged(monkeypatch):
    """Of 250 steps, only steps 100, 200 and 250 bring numbers from the device, all at once."""
    calls = []

    def counted(name):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *args: (calls.append(name), method(self, *args))[1])

    for name in ("item", "cpu", "__float__", "__int__"):
        counted(name)
    batches = data.binary_batches(X, 20, 0)
    run(VAE(z_dim=3), 250, batches=batches)
    assert calls == ["cpu"] * 3


def test_same_seed_same_weights():
    def weights(seed):
        torch.manual_seed(seed)
        model = VAE(z_dim=3)
        run(model, 30, batches=data.binary_batches(X, 20, seed))
        return model.dec.net[4].weight

    assert weights(0).equal(weights(0))
    assert not weights(0).equal(weights(1))
