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


def test_binarise_once_is_numpys_frozen_binomial():
    x = torch.randint(0, 256, (5, 784), dtype=torch.uint8)
    expected = np.random.RandomState(0).binomial(1, x.numpy().astype(np.float32) / 255)
    assert data.binarise_once(x).numpy().tolist() == expected.tolist()


def test_binarise_once_is_always_the_same():
    x = torch.randint(0, 256, (5, 784), dtype=torch.uint8)
    assert data.binarise_once(x).equal(data.binarise_once(x))
    assert data.binarise_once(x).dtype == torch.uint8
    assert data.binarise_once(torch.full((2, 4), 255, dtype=torch.uint8)).equal(torch.ones(2, 4, dtype=torch.uint8))


def test_an_epoch_shows_every_image_once_in_a_fresh_order():
    rows = torch.arange(50)
    batches = data.Batches((rows, rows + 100), 10, seed=0)
    first, second = ([batches[t] for t in epoch] for epoch in (range(5), range(5, 10)))
    for epoch in (first, second):
        seen = torch.cat([batch[0] for batch in epoch])
        assert seen.sort().values.equal(rows)
        assert not seen.equal(rows)
        assert torch.cat([batch[1] for batch in epoch]).equal(seen + 100)
    assert not torch.cat([batch[0] for batch in first]).equal(torch.cat([batch[0] for batch in second]))


def test_batches_are_a_function_of_seed_and_step():
    """In whatever order they are asked for; those of another seed are others."""
    rows = torch.arange(53)
    batches, again, other = (data.Batches((rows,), 10, seed=seed) for seed in (4, 4, 5))
    whole = [batches[t][0] for t in range(23)]
    assert all(again[t][0].equal(whole[t]) for t in (17, 3, 3, 0, 22, 5))
    assert not torch.cat(whole[5:10]).equal(
        torch.cat([other[t][0] for t in range(5)])
    )  # not the next seed's first epoch
    assert not all(other[t][0].equal(whole[t]) for t in range(23))


def test_a_batch_of_all_rows_is_not_shuffled():
    assert data.Batches((torch.arange(5),), 5, seed=0)[7][0].tolist() == [0, 1, 2, 3, 4]


def test_a_batch_larger_than_the_data_is_refused_at_once():
    with pytest.raises(InputError, match="--batch_size 51 is more than the 50 training images"):
        data.Batches((torch.arange(50),), 51, seed=0)


def test_binary_batches():
    x = torch.randint(0, 256, (30, 784), dtype=torch.uint8)
    (batch,) = data.binary_batches(x, 10, seed=0)[0]
    assert batch.shape == (10, 784)
    assert batch.dtype == torch.float32
    assert set(batch.unique().tolist()) == {0.0, 1.0}


def coded(rows):
    """Images that can be identified after binarisation: row i has the bits of i, as black or white."""
    return 255 * (torch.arange(rows)[:, None] >> torch.arange(16) & 1).to(torch.uint8)


def decoded(x):
    return (x.long() << torch.arange(16)).sum(-1).tolist()


def test_semi_supervised_batches():
    """Every labelled image at every step, with its own label; the unlabelled ones as in Batches."""
    x, y = coded(50), data.one_hot(torch.arange(8) % 3, 4)
    batches = data.semi_supervised_batches(x, x[20:28], y, 10, seed=0)
    seen = [batches[t] for t in range(5)]
    for batch, x_labelled, y_labelled in seen:
        assert batch.shape == (10, 16)
        assert sorted(decoded(x_labelled)) == list(range(20, 28))
        assert y_labelled.shape == (8, 4)
        assert y_labelled.argmax(-1).tolist() == [(i - 20) % 3 for i in decoded(x_labelled)]
        assert y_labelled.sum() == y_labelled.max(-1).values.sum() == 8
    assert sorted(i for batch, _, _ in seen for i in decoded(batch)) == list(range(50))
    assert all(a.equal(b) for a, b in zip(batches[3], seen[3], strict=True))


def test_the_labelled_images_are_binarised_afresh_at_every_step():
    grey = torch.full((4, 784), 128, dtype=torch.uint8)
    batches = data.semi_supervised_batches(grey, grey, torch.eye(4), 2, seed=0)
    (_, first, _), (_, second, _) = batches[0], batches[1]
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert 0.4 < (first != second).float().mean() < 0.6


def test_more_labelled_images_than_a_batch_come_in_shuffled_epochs():
    x = coded(60)
    batches = data.semi_supervised_batches(x, x[:30], torch.eye(30), 10, seed=0)
    seen = [batches[t] for t in range(3)]
    assert all(len(batch[1]) == 10 for batch in seen)
    assert sorted(i for batch in seen for i in decoded(batch[1])) == list(range(30))


def test_a_semi_supervised_batch_larger_than_the_data_is_refused_at_once():
    with pytest.raises(InputError, match="--batch_size 51 is more than the 50 training images"):
        data.semi_supervised_batches(coded(50), coded(5), torch.eye(5), 51, seed=0)


def test_labelled_batches():
    """Images scaled to [0, 1], each with its own label as a one-hot row."""
    x, y = coded(50), torch.arange(50) % 10
    images, labels = data.labelled_batches(x, y, 11, 10, seed=0)[0]
    assert (images.dtype, labels.dtype) == (torch.float32, torch.float32)
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert labels.argmax(-1).tolist() == [i % 10 for i in decoded(images)]
    assert labels.shape == (10, 11)
    assert labels.sum() == 10
    grey, _ = data.labelled_batches(torch.full((4, 7), 51, dtype=torch.uint8), torch.arange(4), 4, 2, seed=0)[0]
    assert (grey == 0.2).all()
    with pytest.raises(InputError, match="--batch_size 51 is more"):
        data.labelled_batches(x, y, 10, 51, seed=0)


def test_floats_are_binarised_too():
    """Bern(x) of values in [0, 1], such as a notebook may have; zeros and ones stay as they are."""
    x = torch.tensor([0.0, 0.3, 1.0]).expand(20000, 3)
    drawn = data.binarise(x)
    assert set(drawn.unique().tolist()) == {0, 1}
    assert drawn[:, ::2].equal(x[:, ::2])
    assert abs(drawn[:, 1].mean() - 0.3) < 4 * (0.21 / 20000) ** 0.5
