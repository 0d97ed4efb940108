"""The SSVAE: its sums over labels against brute force, its loss, its samples."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence
from torch.utils.flop_counter import FlopCounterMode

from codebase import data
from codebase.models.ssvae import SSVAE
from codebase.nns import MLP


def binary(n, dtype=torch.float32):
    return torch.randint(0, 2, (n, 784)).to(dtype)


def labels(*y, classes=10):
    return F.one_hot(torch.tensor(y), classes).float()


def given(model, x, y, eps):
    """KL(q(z|x, y) || p(z)), log p(x|y, z), and log p(x, z|y) - log q(z|x, y), each (B,), for one y, from concatenated
    inputs and torch.distributions. eps: (B, D), the noise of z."""
    one_hot = torch.zeros(len(x), 10, dtype=x.dtype)
    one_hot[:, y] = 1
    m, h = model.enc.net(torch.cat([x, one_hot], 1)).chunk(2, 1)
    q = Normal(m, ((1 + h.exp()).log() + 1e-8).sqrt())
    p = Normal(torch.zeros((), dtype=x.dtype), 1)
    z = q.mean + q.stddev * eps
    log_x = Bernoulli(logits=model.dec.net(torch.cat([z, one_hot], 1))).log_prob(x).sum(-1)
    return kl_divergence(q, p).sum(-1), log_x, log_x + p.log_prob(z).sum(-1) - q.log_prob(z).sum(-1)


def test_terms_of_the_elbo_by_enumeration():
    """Each label by itself, images and labels concatenated, weighted with q(y|x): image by image, in float64."""
    model = SSVAE(z_dim=5).double()
    x = binary(6, torch.float64)
    q = Categorical(logits=model.cls.net(x))
    torch.manual_seed(1)
    terms = model.elbo_terms(x)
    torch.manual_seed(1)
    eps = torch.randn(10, 6, 5, dtype=torch.float64)  # label, image, dimension
    kl_z = rec = torch.zeros(6, dtype=torch.float64)
    for y in range(10):
        kl, log_x, _ = given(model, x, y, eps[y])
        kl_z = kl_z + q.probs[:, y] * kl
        rec = rec - q.probs[:, y] * log_x
    uniform = Categorical(logits=torch.zeros(10, dtype=torch.float64))
    expected = {"kl_z": kl_z, "kl_y": kl_divergence(q, uniform), "rec": rec}
    expected["nelbo"] = kl_z + expected["kl_y"] + rec
    torch.testing.assert_close(terms, {name: expected[name] for name in terms})
    torch.manual_seed(1)
    bound = model.negative_elbo_bound(x)
    torch.testing.assert_close(bound, tuple(expected[name].mean() for name in ("nelbo", "kl_z", "kl_y", "rec")))
    gradients = (torch.autograd.grad(each, list(model.parameters())) for each in (bound[0], expected["nelbo"].mean()))
    torch.testing.assert_close(*gradients)


def test_the_iwae_bound_by_enumeration():
    """-log sum_y p(y) (1/m) sum_i p(x, z_i|y) / q(z_i|x, y); kl + rec is the negative ELBO from the same samples."""
    model = SSVAE(z_dim=5).double()
    x = binary(6, torch.float64)
    q = Categorical(logits=model.cls.net(x))
    torch.manual_seed(1)
    niwae, kl, rec = model.negative_iwae_bound(x, 7)
    torch.manual_seed(1)
    eps = torch.randn(7, 10, 6, 5, dtype=torch.float64)  # sample, label, image, dimension
    p_x = elbo = expected_rec = 0
    for y in range(10):
        for i in range(7):
            _, log_x, log_w = given(model, x, y, eps[i, y])
            p_x = p_x + (log_w + 500).exp() / 7 / 10  # + 500: within float64's range
            elbo = elbo + q.probs[:, y] / 7 * (log_w + math.log(1 / 10) - q.logits[:, y])
            expected_rec = expected_rec - q.probs[:, y] / 7 * log_x
    torch.testing.assert_close(niwae, -(p_x.log() - 500).mean())
    torch.testing.assert_close(kl + rec, -elbo.mean())
    torch.testing.assert_close(rec, expected_rec.mean())


def test_labels_that_meet_their_own_columns_are_labels_concatenated():
    """W [x, y] = W_x x + W_y y, to 1e-5 in float32, for a label each and for all of them, with the same gradients."""
    net = MLP(784 + 10, 300, 20)
    x = torch.rand(8, 784)
    y = labels(0, 3, 9, 9, 1, 2, 7, 5)
    every = torch.eye(10).unsqueeze(1)
    each = [torch.cat([x, every[c].expand(8, 10)], 1) for c in range(10)]
    for ours, expected in (
        (net(x, y), net.net(torch.cat([x, y], 1))),
        (net(x, every), torch.stack([net.net(inputs) for inputs in each])),
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        gradients, references = (torch.autograd.grad(h.square().mean(), net.parameters()) for h in (ours, expected))
        for gradient, reference in zip(gradients, references, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-5)


def test_an_image_is_multiplied_once_for_all_labels():
    """The multiplications of 8 images with 10 labels: of the first layers those of 8 rows of 784, not of 80."""
    model = SSVAE(z_dim=5)
    with FlopCounterMode(display=False) as counter:
        model.elbo_terms(binary(8))
    classifier = 8 * (784 * 300 + 300 * 300 + 300 * 10)
    encoder = 8 * 784 * 300 + 10 * 10 * 300 + 80 * (300 * 300 + 300 * 10)  # images, labels, both
    decoder = 80 * 5 * 300 + 10 * 10 * 300 + 80 * (300 * 300 + 300 * 784)
    assert counter.get_total_flops() == 2 * (classifier + encoder + decoder)


def test_the_labelled_bound_by_its_definition():
    """-ELBO(x, y) = -E[log p(y) + log p(z) + log p(x|y, z) - log q(z|x, y)], the KL in closed form, in float64."""
    model = SSVAE(z_dim=5).double()
    x, y = binary(4, torch.float64), [7, 0, 7, 2]
    torch.manual_seed(1)
    nelbo, kl_z, rec = model.labelled_negative_elbo_bound(x, labels(*y).double())
    torch.manual_seed(1)
    eps = torch.randn(4, 5, dtype=torch.float64)
    each = [given(model, x[i : i + 1], y[i], eps[i : i + 1]) for i in range(4)]
    kl, log_x = (torch.cat([row[i] for row in each]) for i in (0, 1))
    torch.testing.assert_close((kl_z, rec), (kl.mean(), -log_x.mean()))
    torch.testing.assert_close(nelbo, (kl - log_x).mean() - math.log(1 / 10))


@pytest.mark.parametrize(("gw", "cw", "lw"), [(1, 100, 0), (0.5, 3, 0), (1, 0, 0.25), (0.5, 3, 2), (0, 3, 2)])
def test_the_loss(gw, cw, lw):
    """gw (-ELBO(x)) + lw (-ELBO(x, y)) of the labelled images + cw their cross-entropy: objectives (a), (b), (c)."""
    model = SSVAE(gen_weight=gw, class_weight=cw, labelled_weight=lw)
    x, x_labelled, y = binary(8), binary(5), labels(3, 1, 4, 1, 5)
    torch.manual_seed(1)
    loss, summaries = model.loss(x, x_labelled, y)
    torch.manual_seed(1)
    nelbo, kl_z, kl_y, rec = model.negative_elbo_bound(x) if gw else (0, 0, 0, 0)
    nelbo_xy, kl_xy, rec_xy = model.labelled_negative_elbo_bound(x_labelled, y) if lw else (0, 0, 0)
    log_q = model.log_q_y(x_labelled)
    ce = F.cross_entropy(model.cls(x_labelled), y.argmax(-1))
    torch.testing.assert_close(loss, gw * nelbo + lw * nelbo_xy + cw * ce)
    hits = sum(int(row.argmax()) == c for row, c in zip(log_q, (3, 1, 4, 1, 5), strict=True))
    expected = {"class/ce": ce, "class/acc": torch.tensor(hits / 5)}
    if gw:
        expected |= {"gen/elbo": -nelbo, "gen/kl_z": kl_z, "gen/kl_y": kl_y, "gen/rec": rec}
    if lw:
        expected |= {"labelled/elbo": -nelbo_xy, "labelled/kl_z": kl_xy, "labelled/rec": rec_xy}
    torch.testing.assert_close(summaries, expected)


def test_with_gw_0_nothing_generative_is_computed(monkeypatch):
    model = SSVAE(gen_weight=0)
    monkeypatch.setattr(model, "negative_elbo_bound", None)
    loss, summaries = model.loss(binary(8), binary(5), labels(3, 1, 4, 1, 5))
    assert set(summaries) == {"class/ce", "class/acc"}
    assert loss == 100 * summaries["class/ce"]
    loss.backward()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"cls"}


def test_the_classifier_is_three_layers_with_relu_and_built_last():
    torch.manual_seed(3)
    encoder, decoder, classifier = MLP(794, 300, 128), MLP(74, 300, 784), torch.nn.Linear(784, 300)
    torch.manual_seed(3)
    model = SSVAE()
    assert model.enc.net[2].weight.equal(encoder.net[2].weight)
    assert model.dec.net[2].weight.equal(decoder.net[2].weight)
    assert model.cls.net[0].weight.equal(classifier.weight)
    x = h = torch.rand(5, 784)
    for i in (0, 2, 4):
        h = h @ model.cls.net[i].weight.T + model.cls.net[i].bias
        h = h.clamp(min=0) if i < 4 else h
    torch.testing.assert_close(model.log_q_y(x), (h.exp() / h.exp().sum(-1, keepdim=True)).log())


def test_samples_and_reconstructions():
    """A decoder that ignores z and lights only pixel y: every digit one time in ten."""
    model = SSVAE(z_dim=3)
    with torch.no_grad():
        for layer in model.dec.net[::2]:
            layer.weight.zero_()
            layer.bias.zero_()
        model.dec.net[0].weight[:10, 3:] = torch.eye(10)
        model.dec.net[2].weight[:10, :10] = torch.eye(10)
        model.dec.net[4].weight[:10, :10] = 40 * torch.eye(10)
        model.dec.net[4].bias.fill_(-20)
        x = model.sample_x(4000)
        assert (x.sum(-1) == 1).all()
        assert (x[:, :10].mean(0) - 0.1).abs().max() < 0.02
        images = model.mean_x(torch.randn(7, 3), model.every_y)  # (C, n, X)
        assert images.shape == (10, 7, 784)
        assert (images.argmax(-1) == torch.arange(10)[:, None]).all()
        assert (model.reconstruct(binary(4), labels(3, 1, 4, 1)).argmax(-1) == torch.tensor([3, 1, 4, 1])).all()
        assert (model.mean_x(torch.randn(9, 3), labels(*[6] * 9)).argmax(-1) == 6).all()


def test_the_mean_of_z_is_averaged_over_the_labels():
    model = SSVAE(z_dim=3).double()
    x = binary(6, torch.float64)
    q = model.log_q_y(x).exp()
    means = [model.posterior(x, F.one_hot(torch.full((6,), y), 10).double())[0] for y in range(10)]
    torch.testing.assert_close(model.mean_z(x), sum(q[:, y, None] * means[y] for y in range(10)))
    torch.testing.assert_close(model.mean_z(x, labels(*[3] * 6).double()), means[3])


def test_with_lw_the_labelled_images_are_not_among_those_without(on_digits, monkeypatch):
    """The first sum of objectives (a) and (b) is over the images without a label, that of (c) over all."""
    seen, make = [], data.semi_supervised_batches

    def kept(x, x_labelled, *others):
        seen.append([sorted(images.tolist()) for images in (x, x_labelled)])
        return make(x, x_labelled, *others)

    monkeypatch.setattr(data, "semi_supervised_batches", kept)
    for lw in (0, 0.1):
        assert on_digits("run_ssvae.py", "--lw", lw, "--hidden", 9, "--iter_max", 1)[0] == 0
    (every, labelled), (others, _) = seen
    assert sorted(others + labelled) == every
