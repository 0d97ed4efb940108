"""Endless batches: their order, their contents, and the binarisation."""

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


def take(stream, n):
    return [next(stream) for _ in range(n)]


def test_an_epoch_shows_every_image_once_in_a_fresh_order():
    rows = torch.arange(50)
    first, second = take(stream := data.batches((rows, rows + 100), 10, seed=0), 5), take(stream, 5)
    for epoch in (first, second):
        seen = torch.cat([batch[0] for batch in epoch])
        assert seen.sort().values.equal(rows)
        assert not seen.equal(rows)
        assert torch.cat([batch[1] for batch in epoch]).equal(seen + 100)
    assert not torch.cat([batch[0] for batch in first]).equal(torch.cat([batch[0] for batch in second]))


def test_batches_from_a_step_on_are_those_of_the_uninterrupted_stream():
    rows = torch.arange(53)
    whole = take(data.batches((rows,), 10, seed=4), 23)
    for start in (0, 3, 5, 17):
        again = take(data.batches((rows,), 10, seed=4, start=start), 23 - start)
        assert all(a[0].equal(b[0]) for a, b in zip(again, whole[start:], strict=True))
    assert not torch.cat([b[0] for b in whole[5:10]]).equal(
        torch.cat([b[0] for b in take(data.batches((rows,), 10, seed=5), 5)])
    )  # the second epoch of one seed is not the first of the next
    other = take(data.batches((rows,), 10, seed=5), 23)
    assert not all(a[0].equal(b[0]) for a, b in zip(other, whole, strict=True))


def test_a_batch_larger_than_the_data_is_refused_at_once():
    with pytest.raises(InputError, match="--batch_size 51 is more than the 50 training images"):
        data.batches((torch.arange(50),), 51, seed=0)


def test_binary_batches():
    x = torch.randint(0, 256, (30, 784), dtype=torch.uint8)
    (batch,) = next(data.binary_batches(x, 10, seed=0))
    assert batch.shape == (10, 784)
    assert batch.dtype == torch.float32
    assert set(batch.unique().tolist()) == {0.0, 1.0}


def coded(rows):
    """Images that can be identified after binarisation: row i has the bits of i, as black or white."""
    return 255 * (torch.arange(rows)[:, None] >> torch.arange(16) & 1).to(torch.uint8)


def decoded(x):
    return (x.long() << torch.arange(16)).sum(-1).tolist()


def test_semi_supervised_batches():
    """Every labelled image at every step, with its own label; the unlabelled ones as in `batches`."""
    x, y = coded(50), data.one_hot(torch.arange(8) % 3, 4)
    stream = data.semi_supervised_batches(x, x[20:28], y, 10, seed=0)
    seen = take(stream, 5)
    for batch, x_labelled, y_labelled in seen:
        assert batch.shape == (10, 16)
        assert sorted(decoded(x_labelled)) == list(range(20, 28))
        assert y_labelled.shape == (8, 4)
        assert y_labelled.argmax(-1).tolist() == [(i - 20) % 3 for i in decoded(x_labelled)]
        assert y_labelled.sum() == y_labelled.max(-1).values.sum() == 8
    assert sorted(i for batch, _, _ in seen for i in decoded(batch)) == list(range(50))
    again = data.semi_supervised_batches(x, x[20:28], y, 10, seed=0, start=3)
    for a, b in zip(next(again), seen[3], strict=True):
        assert a.equal(b)


def test_the_labelled_images_are_binarised_afresh_at_every_step():
    grey = torch.full((4, 784), 128, dtype=torch.uint8)
    (_, first, _), (_, second, _) = take(data.semi_supervised_batches(grey, grey, torch.eye(4), 2, seed=0), 2)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert 0.4 < (first != second).float().mean() < 0.6


def test_more_labelled_images_than_a_batch_come_in_shuffled_epochs():
    x = coded(60)
    seen = take(data.semi_supervised_batches(x, x[:30], torch.eye(30), 10, seed=0), 3)
    assert all(len(batch[1]) == 10 for batch in seen)
    assert sorted(i for batch in seen for i in decoded(batch[1])) == list(range(30))
    resumed = next(data.semi_supervised_batches(x, x[:30], torch.eye(30), 10, seed=0, start=2))
    assert all(a.equal(b) for a, b in zip(resumed, seen[2], strict=True))


def test_a_semi_supervised_batch_larger_than_the_data_is_refused_at_once():
    with pytest.raises(InputError, match="--batch_size 51 is more than the 50 training images"):
        data.semi_supervised_batches(coded(50), coded(5), torch.eye(5), 51, seed=0)


def test_labelled_batches():
    """Images scaled to [0, 1], each with its own label as a one-hot row."""
    x, y = coded(50), torch.arange(50) % 10
    images, labels = next(data.labelled_batches(x, y, 11, 10, seed=0))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.float32)
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert labels.argmax(-1).tolist() == [i % 10 for i in decoded(images)]
    assert labels.shape == (10, 11)
    assert labels.sum() == 10
    grey, _ = next(data.labelled_batches(torch.full((4, 7), 51, dtype=torch.uint8), torch.arange(4), 4, 2, seed=0))
    assert (grey == 0.2).all()
    with pytest.raises(InputError, match="--batch_size 51 is more"):
        data.labelled_batches(x, y, 10, 51, seed=0)
