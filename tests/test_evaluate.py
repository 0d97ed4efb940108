"""Evaluation: correct, with correct standard errors, repeatable, bounded in memory, without an effect on training."""

import contextlib
import math
from functools import partial

import pytest
import scipy.stats
import torch
from conftest import ConditionalLinearGaussian, LabelledLinearGaussian, LinearGaussian, printed_by
from torch.distributions import Normal

from codebase import evaluate
from codebase.errors import InputError, NonFiniteError
from codebase.models.fsvae import FSVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE


def test_over_images():
    estimate = evaluate.over_images(torch.tensor([1.0, 2.0, 6.0]))
    assert (estimate.mean, estimate.se, estimate.n) == pytest.approx((3, (7 / 3) ** 0.5, 3))  # (4 + 1 + 9) / 2 = 7
    assert f"{estimate} {estimate:.3f} {estimate!s}" == "3.00 ± 1.53 3.000 ± 1.528 3.00 ± 1.53"
    assert str(evaluate.over_images(torch.ones(1))) == "1.00"  # no standard error


def test_a_bound_is_one_finite_number_for_each_image():
    with pytest.raises(NonFiniteError, match="not finite for 2 of 4 images"):
        evaluate.over_images(torch.tensor([1.0, math.inf, 6.0, math.nan]))
    model = VAE(z_dim=1)
    model.log_likelihood = lambda x, z: torch.zeros(len(x), len(x))
    with pytest.raises(InputError, match=r"one number for each image; they have shape \(3, 3\)"):
        evaluate.elbo(model, (torch.zeros(3, 784),))


def test_elbo_is_unbiased_and_adds_up():
    model = LinearGaussian(shift=0.1, widen=1.5)
    x = model.draw(6000)  # more than a chunk
    terms = evaluate.elbo(model, (x,))
    draws = torch.stack([model.elbo_terms(x)["nelbo"].mean() for _ in range(200)])
    assert terms["nelbo"].mean == pytest.approx(terms["kl"].mean + terms["rec"].mean)
    assert abs(terms["nelbo"].mean - draws.mean().item()) < 4 * draws.std().item() / 10**0.5
    assert terms["nelbo"].n == 6000
    assert terms["kl"].se == pytest.approx(model.kl(None, *model.posterior(x)).std().item() / 6000**0.5)


def test_elbo_averages_ten_draws_of_each_image():
    """2,000 copies of one image differ by the draws alone, whose variance is a tenth of that of one draw."""
    model = LinearGaussian()
    x = model.draw(1).expand(2000, -1)
    one = model.elbo_terms(x)["rec"].std().item()
    assert evaluate.elbo(model, (x,))["rec"].se * 2000**0.5 == pytest.approx(one / 10**0.5, rel=0.2)


def test_every_chunk_has_random_numbers_of_its_own():
    chunks = evaluate.each_chunk(VAE(), lambda x: {"noise": torch.randn(len(x))}, (torch.zeros(30, 1),), most=10)
    assert len(chunks["noise"].unique()) == 30


@pytest.mark.parametrize("of_class", [LinearGaussian, LabelledLinearGaussian, ConditionalLinearGaussian])
def test_iwae_is_exact_at_the_true_posterior(of_class):
    """For all chunks of images and samples: 130 images make chunks of 100 and 30; 77 samples of 20, or of 6."""
    model = of_class()
    drawn = model.draw(130)
    split = drawn if isinstance(drawn, tuple) else (drawn,)
    log_p = model.log_p(*split)
    bounds, ess = evaluate.iwae(model, split, (1, 10, 77))
    assert (ess.mean, ess.se, ess.n) == (pytest.approx(1), pytest.approx(0, abs=1e-9), 130)  # all weights are equal
    for m, bound in bounds.items():
        assert bound.mean == pytest.approx(-log_p.mean().item(), rel=1e-9), m
        assert bound.se == pytest.approx(log_p.std().item() / 130**0.5, rel=1e-9)
        assert bound.n == 130


def test_bounds_and_effective_sample_size_from_their_definitions(monkeypatch):
    """From the same weights: the bound of m samples averages over all groups of m, ESS is (sum w)^2 / (M sum w^2)."""
    monkeypatch.setattr(evaluate, "MAX_ROWS", 60 * 40)  # all samples at once, so that the same can be drawn here
    model = LinearGaussian(shift=0.2, widen=1.5)
    x = model.draw(60)
    torch.manual_seed(0)
    q = Normal(model.posterior(x)[0], model.posterior(x)[1].sqrt())
    z = q.sample((40,))  # (M, B, D)
    log_w = model.log_likelihood(x, z) + (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)
    w = log_w.exp()  # (M, B)
    expected = w.sum(0).square() / (40 * w.square().sum(0))
    bounds, ess = evaluate.iwae(model, (x,), (1, 8, 15, 40))
    for m, groups in ((1, 40), (8, 5), (15, 2), (40, 1)):
        each = torch.stack([w[g * m : (g + 1) * m].mean(0).log() for g in range(groups)])  # (groups, B)
        assert bounds[m].mean == pytest.approx(-each.mean().item(), rel=1e-9), m
        assert bounds[m].se == pytest.approx(each.mean(0).std().item() / 60**0.5, rel=1e-9), m
    assert 1 / 40 < ess.mean < 1
    assert (ess.mean, ess.se) == pytest.approx((expected.mean().item(), expected.std().item() / 60**0.5))
    torch.testing.assert_close(ess.values, expected.double(), rtol=1e-6, atol=0)  # image by image


def test_the_estimated_gap_of_the_iwae_bound_where_it_is_known():
    """Of a linear-Gaussian model, beside half of w's relative variance / m, in closed form, and beside the true gap."""
    model, m = LinearGaussian(widen=1.5), 200
    x = model.draw(1500)
    bounds, ess = evaluate.iwae(model, (x,), (m,))
    gap = evaluate.iwae_gap(ess, m)
    # w / p(x) = N(z; mu, v) / N(z; mu, 1.5 v): the mean of its square is 1.5 / (2 * 1.5 - 1)^(1/2) in each dimension.
    assert gap.mean == pytest.approx(((1.5 / 2**0.5) ** 3 - 1) / (2 * m), rel=0.02)
    log_w = -bounds[m].values - model.log_p(x)  # log W, W = (1/m) sum_i w_i / p(x), E[W] = 1
    true = log_w.exp() - 1 - log_w  # its mean is that of -log W, with less noise
    assert abs(true.mean().item() - gap.mean) < 4 * true.std().item() / 1500**0.5 < 0.2 * gap.mean
    assert gap.n == 1500


def test_images_of_bytes_are_scaled():
    model = FSVAE()
    x, y = torch.randint(0, 256, (30, 3072), dtype=torch.uint8), torch.eye(10)[torch.arange(30) % 10]
    assert evaluate.elbo(model, (x, y)) == evaluate.elbo(model, (x / 255, y))
    assert evaluate.iwae(model, (x, y), (1, 5)) == evaluate.iwae(model, (x / 255, y), (1, 5))


def masses(p, k):
    """-log2 of the probability of [k - 1/2, k + 1/2] / 255 under p, averaged over the values of each image."""
    return -(p.cdf((k + 0.5) / 255) - p.cdf((k - 0.5) / 255)).log2().mean(-1)


@pytest.mark.parametrize(("sd", "gap"), [(0.1**0.5, 1e-4), (1 / 255, 0.3), (1e-4, float("inf"))])
def test_bits_per_dimension_of_a_density(sd, gap):
    """With noise they are at least the bits of the probabilities of 8-bit values, even of a density that has spikes
    at them, whose own log would give bits below 0; and close to them if the density is smooth."""
    p = Normal(torch.randint(0, 256, (400, 50)).double() / 255, sd)
    k = (255 * p.sample()).round()
    exact = masses(p, k).mean().item()
    bits = evaluate.bits_per_dimension(
        evaluate.over_images(-p.log_prob(evaluate.dequantised(k / 255)).sum(-1)), 50, True
    )
    assert exact - 4 * bits.se < bits.mean < exact + gap + 4 * bits.se
    without_noise = evaluate.bits_per_dimension(evaluate.over_images(-p.log_prob(k / 255).sum(-1)), 50, True)
    assert sd > 1e-4 or without_noise.mean < 0


def test_bits_per_dimension_of_a_probability():
    """-log2 P, averaged over the values; and a standard error in the same unit."""
    p = Normal(torch.rand(4, 50, dtype=torch.float64), 0.1**0.5)
    k = torch.randint(0, 256, (4, 50))
    exact = masses(p, k)
    nats = evaluate.over_images(50 * math.log(2) * exact)
    bits, of_density = (evaluate.bits_per_dimension(nats, 50, is_density) for is_density in (False, True))
    assert of_density.mean - bits.mean == pytest.approx(math.log2(255))  # for the noise
    assert (bits.mean, bits.se) == pytest.approx((exact.mean().item(), exact.std().item() / 4**0.5))


def test_noise_of_8_bit_images():
    """Uniform on the interval of each value; the ELBO and the IWAE bound are those of the images with it."""
    noise = 255 * (evaluate.dequantised(torch.full((10000,), 0.2)) - 0.2)
    assert scipy.stats.kstest(noise.numpy(), scipy.stats.uniform(-0.5, 1).cdf).pvalue > 1e-3
    model = LinearGaussian(s=1e-6)  # much narrower than a value's interval, so that every bound sees the noise
    x = (255 * model.draw(500)).round() / 255
    expected = -torch.stack([model.log_p(evaluate.dequantised(x)).mean() for _ in range(50)])
    for bound in (evaluate.elbo(model, (x,), noise=True)["nelbo"], evaluate.iwae(model, (x,), (5,), noise=True)[0][5]):
        assert bound.mean == pytest.approx(expected.mean().item(), rel=0.1)
    assert evaluate.elbo(model, (x,))["nelbo"].mean < 0.5 * expected.mean().item()


def test_classify():
    model, x = SSVAE(z_dim=2), torch.rand(2500, 784)
    torch.testing.assert_close(evaluate.classify(model, x), model.cls(x).log_softmax(-1).detach())


def test_accuracy_its_binomial_error_and_the_confusion_matrix():
    log_q = torch.tensor([[3.0, 1, 2], [0, 5, 1], [0, 1, 5], [2, 1, 0], [0, 1, 2]]).log_softmax(-1)
    percent, confusion = evaluate.accuracy(log_q, torch.tensor([0, 1, 1, 2, 2]))
    assert (percent.mean, percent.se, percent.n) == pytest.approx((60, 100 * (0.6 * 0.4 / 5) ** 0.5, 5))
    assert confusion.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 1]]  # row = true, column = predicted


def test_mistakes_are_the_most_confident_ones():
    """Images 1 and 2, of class 1, are taken for 2, the second with more confidence; 4 of class 0 for 1."""
    log_q = torch.tensor([[3.0, 1, 2], [0, 1, 2], [0, 1, 5], [2, 1, 0], [0, 1, 0]]).log_softmax(-1)
    worst = evaluate.mistakes(log_q, torch.tensor([0, 1, 1, 0, 0]))
    assert worst.tolist() == [[-1, 4, -1], [-1, -1, 2], [-1, -1, -1]]


def test_latent_units():
    """Two of three posterior means vary with the image, by 4 and 0.02; one by 0.005 only."""
    model = VAE(z_dim=3)
    qm = torch.randn(2500, 3)  # more than a chunk
    qm = (qm - qm.mean(0)) / qm.std(0) * torch.tensor([4.0, 0.02, 0.005]).sqrt()
    model.mean_z = lambda q: q
    assert evaluate.latent_units(model, (qm,)) == {"active": 2, "units": 3}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gmvae.GMVAE", "ssvae.SSVAE"])
def test_memory_is_bounded_and_does_not_grow_with_the_number_of_samples(model):
    """On 100 images: IWAE-100 takes under 500 MB above the loaded process, and IWAE-5000 no more than that except the
    log-weights, 4,900 x 100 x 4 bytes = 2 MB, and 50 MB of slack for the heap; the activations would be 1.5 GB."""
    program = (
        "import resource, torch; from codebase import evaluate\n"
        f"from codebase.models.{model.replace('.', ' import ')} as M\n"
        "def peak(): print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "x, model = torch.zeros(100, 784), M(); peak()\n"
        "for m in (100, 5000): evaluate.iwae(model, (x,), (m,)); peak()\n"
    )
    loaded, few, many = map(int, printed_by(program).split())  # KiB
    assert few - loaded < 500_000
    assert many - few < 50_000


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_disturbs_nothing(training):
    """In the block: no gradients, evaluation mode, float32 accuracy. After it all is as before, even after an error."""
    model = VAE(z_dim=2).train(training)
    functions = evaluate.elbo, partial(evaluate.iwae, ms=(1, 20)), evaluate.latent_units
    x = torch.randint(0, 2, (30, 784)).float()
    torch.set_float32_matmul_precision("high")
    results = []
    try:
        with contextlib.suppress(ZeroDivisionError), evaluate.evaluating(model):
            assert not model.training
            assert not model.enc.training
            assert not torch.is_grad_enabled()
            a, b = torch.randn(2, 512, 512)
            exact = a.double() @ b.double()
            assert (a @ b - exact).norm() < 1e-6 * exact.norm()
            raise ZeroDivisionError
        for seed in (5, 6):
            random = torch.manual_seed(seed).get_state()
            results.append([function(model, (x,)) for function in functions])
            assert torch.get_rng_state().equal(random)
        assert results[0] == results[1]
        assert model.training == model.enc.training == training
        assert torch.is_grad_enabled()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
