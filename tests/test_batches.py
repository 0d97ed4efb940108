"""Batches: their order, their contents, and the binarisation."""

import numpy as np
import pytest
import scipy.stats
import torch

from codebase import data
from codebase.errors import InputError


def test_binarise_is_bernoulli_of_the_grey_value():
    """The share of ones of each grey value, by a binomial test; 0 is always black, 255 white. Fails once in 1,000."""
    x = torch.arange(256, dtype=torch.uint8).expand(20_000, 256)
    ones = data.binarise(x)
    assert set(ones.unique().tolist()) == {0.0, 1.0}
    counts = ones.sum(0)
    assert counts[0] == 0
    assert counts[255] == 20_000
    p = np.arange(1, 255) / 255
    chi2 = ((counts[1:255].numpy() - 20_000 * p) ** 2 / (20_000 * p * (1 - p))).sum()
    assert 1e-3 < scipy.stats.chi2.sf(chi2, 254) < 1 - 1e-3
    assert not data.binarise(x).equal(ones)


def test_floats_are_binarised_too():
    """Bern(x) of values in [0, 1], such as a notebook may have; zeros and ones stay as they are."""
    x = torch.tensor([0.0, 0.3, 1.0]).expand(20000, 3)
    drawn = data.binarise(x)
    assert set(drawn.unique().tolist()) == {0, 1}
    assert drawn[:, ::2].equal(x[:, ::2])
    assert abs(drawn[:, 1].mean() - 0.3) < 4 * (0.21 / 20000) ** 0.5


def test_binarise_once_is_numpys_frozen_binomial():
    x = torch.randint(0, 256, (5, 784), dtype=torch.uint8)
    x[0] = 255
    expected = np.random.RandomState(0).binomial(1, x.numpy().astype(np.float32) / 255)
    for _ in range(2):
        found = data.binarise_once(x)
        assert found.dtype == torch.uint8
        assert found.numpy().tolist() == expected.tolist()


def test_an_epoch_shows_every_image_once_in_a_fresh_order():
    """A function of (seed, epoch), in whatever order the steps are asked for; the last 3 rows are left out."""
    rows = torch.arange(53)
    batches, again, other = (data.Batches((rows, rows + 100), 10, seed=seed) for seed in (4, 4, 5))
    first, second, others = (
        torch.cat([each[t][0] for t in steps])
        for each, steps in ((batches, range(5)), (batches, range(5, 10)), (other, range(5)))
    )
    for seen in (first, second, others):
        assert seen.unique().numel() == 50
    assert first[:5].tolist() == [18, 11, 50, 51, 0]  # the losses of all runs so far are of this order
    assert not first.equal(second)
    assert not first.equal(others)
    assert not second.equal(others)  # another seed's first epoch
    for t in (7, 3, 3, 0, 9, 5):
        assert again[t][0].equal(torch.cat([first, second])[10 * t : 10 * t + 10])
        assert again[t][1].equal(again[t][0] + 100)


def test_a_batch_of_all_rows_is_not_shuffled():
    assert data.Batches((torch.arange(5),), 5, seed=0)[7][0].tolist() == [0, 1, 2, 3, 4]


def coded(rows):
    """Images that can be identified after binarisation: row i has the bits of i, as black or white."""
    return 255 * (torch.arange(rows)[:, None] >> torch.arange(16) & 1).to(torch.uint8)


def decoded(x):
    return (x.long() << torch.arange(16)).sum(-1).tolist()


@pytest.mark.parametrize("kind", ["binary", "labelled", "semi-supervised"])
def test_the_batches_of_each_model(kind):
    """Every image once in an epoch, as floats; the labelled ones at every step, each with its label, a one-hot row."""
    x, y = coded(50), torch.arange(50) % 3
    few, of_few = x[20:28], data.one_hot(y[20:28], 4)
    make = {
        "binary": lambda size: data.binary_batches(x, size, 0),
        "labelled": lambda size: data.labelled_batches(x, y, 4, size, 0),
        "semi-supervised": lambda size: data.semi_supervised_batches(x, few, of_few, size, 0),
    }[kind]
    batches = make(10)
    seen = [batches[t] for t in range(5)]
    assert sorted(i for images, *_ in seen for i in decoded(images)) == list(range(50))
    for images, *more in seen:
        assert images.shape == (10, 16)
        assert {each.dtype for each in (images, *more)} == {torch.float32}
        if more:
            *labelled, labels = more
            shown = decoded(labelled[0] if labelled else images)
            assert not labelled or sorted(shown) == list(range(20, 28))
            assert labels.tolist() == torch.eye(4)[[i % 3 for i in shown]].tolist()
    assert all(a.equal(b) for a, b in zip(batches[3], seen[3], strict=True))
    with pytest.raises(InputError, match="--batch_size 51 is more than the 50 training images"):
        make(51)


def test_grey_images_are_scaled_or_binarised_afresh():
    grey = torch.full((4, 784), 51, dtype=torch.uint8)
    assert (data.labelled_batches(grey, torch.arange(4), 4, 2, seed=0)[0][0] == 0.2).all()
    batches = data.semi_supervised_batches(grey, grey, torch.eye(4), 2, seed=0)
    for a, b in [
        batches[0][:2],
        data.binary_batches(grey, 2, seed=0)[0] + batches[1][:1],
        (batches[0][1], batches[1][1]),
    ]:
        assert set(a.unique().tolist()) == {0.0, 1.0}
        assert 0.25 < (a != b).float().mean() < 0.39  # 2 * 0.2 * 0.8


def test_more_labelled_images_than_a_batch_come_in_shuffled_epochs():
    x = coded(60)
    batches = data.semi_supervised_batches(x, x[:30], torch.eye(30), 10, seed=0)
    assert len(batches[0][1]) == 10
    seen = decoded(torch.cat([batches[t][1] for t in range(3)]))
    assert seen != list(range(30)) == sorted(seen)
