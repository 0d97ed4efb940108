"""The images that bounds are evaluated on, and those whose labels are seen: the homework's by checksum."""

import hashlib

import numpy as np
import pytest
import torch
from conftest import save_digits

from codebase import data
from codebase.data.subsets import MNIST_LABELLED, MNIST_TEST_SUBSET
from codebase.errors import InputError


def test_real_mnist_and_its_subset(mnist_dir):
    """The binarised subset by its checksum, which fixes the file order, the table, and the random stream."""
    mnist = data.load("mnist", mnist_dir)
    assert (len(mnist.x_train), len(mnist.x_test)) == (60_000, 10_000)
    x = data.binarise_once(mnist.x_test[data.test_subset(mnist)])
    assert x.shape == (100, 784)
    assert x.sum().item() == 10257
    checksum = "e987bfcffd12fe0269806e1d7c819de46d3e7902b0d7d98dc7bd3c780ceab5d3"
    assert hashlib.sha256(x.numpy().tobytes()).hexdigest() == checksum
    splits = data.binary_splits(mnist)
    assert splits["subset"][0].equal(x.float())
    assert splits["test"][0].shape == (10_000, 784)


def test_real_mnist_and_its_labelled_images(mnist_dir):
    """The checksum stands for the images and their order; one of class 4 is there twice."""
    mnist = data.load("mnist", mnist_dir)
    chosen = data.labelled_subset(mnist, 100, seed=0)
    assert mnist.y_train[chosen].tolist() == sorted(list(range(10)) * 10)
    assert mnist.x_train[chosen].unique(dim=0).shape == (99, 784)
    checksum = "661bd79754bf9ee105bae5595beb334001007475c0742d641eb8f19d3fca1679"
    assert hashlib.sha256(mnist.x_train[chosen].numpy().tobytes()).hexdigest() == checksum
    assert chosen[46] == chosen[47]


def test_homework_subset_takes_positions_within_the_class():
    """On labels in any order: entry r of class c is the image that is the table's [c][r]-th of its class."""
    y = torch.from_numpy(np.random.RandomState(0).permutation(np.repeat(np.arange(10), 1200)))
    empty = torch.zeros(0, 784, dtype=torch.uint8)
    chosen = data.test_subset(data.Data("mnist", "", (1, 28, 28), 10, empty, y, empty, y))
    assert chosen.shape == (100,)
    for i, index in enumerate(chosen.tolist()):
        c, r = divmod(i, 10)
        assert y[index] == c
        assert (y[:index] == c).sum() == MNIST_TEST_SUBSET[c][r]


@pytest.mark.parametrize(("classes", "each"), [(2, 50), (3, 33), (26, 3), (200, 1)])
def test_the_subset_is_about_a_hundred_images_as_many_of_each_class(classes, each):
    y = torch.arange(classes * 60) % classes
    mine = data.Data("own", "", (1, 28, 28), classes, None, y, y, y)
    assert data.test_subset(mine).unique().numel() == classes * each
    assert y[data.test_subset(mine)].bincount().tolist() == [each] * classes
    sparse = mine._replace(classes=3 * classes, y_test=3 * y)  # two of three classes have no images
    assert sparse.y_test[data.test_subset(sparse)].bincount().tolist() == [each, 0, 0] * (classes - 1) + [each]


def test_other_data_get_ten_test_images_of_each_class(digits):
    mine = data.load(str(digits), "")
    chosen = data.test_subset(mine)
    assert mine.y_test[chosen].tolist() == sorted(list(range(10)) * 10)
    assert chosen.unique().numel() == 100
    assert data.test_subset(mine).equal(chosen)
    first = [np.flatnonzero(mine.y_test.numpy() == c)[:10] for c in range(10)]
    assert chosen.tolist() != np.concatenate(first).tolist()
    few = mine._replace(y_test=mine.y_test[:13], x_test=mine.x_test[:13])
    assert sorted(data.test_subset(few).tolist()) == list(range(13))


def test_homework_labelled_images_are_positions_within_the_class():
    """On labels in a shuffled order of any data named mnist: row c, place r is the table's image of class c."""
    y = torch.from_numpy(np.random.RandomState(1).permutation(np.arange(70_000) % 10))
    mnist = data.Data("mnist", "", (1, 28, 28), 10, torch.zeros(70_000, 1), y, None, None)
    chosen = data.labelled_subset(mnist, 100, seed=5)
    assert y[chosen].tolist() == sorted(list(range(10)) * 10)
    assert chosen.unique().numel() == 99
    places = [torch.where(y == c)[0] for c in range(10)]
    assert chosen.tolist() == [places[c][r].item() for c in range(10) for r in MNIST_LABELLED[c]]
    assert not data.labelled_subset(mnist, 100, seed=5).equal(data.labelled_subset(mnist, 200, seed=5)[:100])


@pytest.mark.parametrize("n", [10, 50, 100])
def test_as_many_labelled_images_of_each_class_chosen_by_the_seed(digits, n):
    mine = data.load(str(digits), "")
    chosen = data.labelled_subset(mine, n, seed=3)
    assert mine.y_train[chosen].tolist() == sorted(list(range(10)) * (n // 10))
    assert chosen.unique().numel() == n
    assert data.labelled_subset(mine, n, seed=3).equal(chosen)
    assert not data.labelled_subset(mine, n, seed=4).equal(chosen)


@pytest.mark.parametrize(("n", "complaint"), [(15, "multiple of 10"), (5, "multiple of 10"), (0, "multiple of 10")])
def test_labelled_images_that_are_not_as_many_of_each_class(digits, n, complaint):
    with pytest.raises(InputError, match=complaint):
        data.labelled_subset(data.load(str(digits), ""), n, seed=0)


def test_more_labelled_images_than_there_are(digits):
    mine = data.load(str(digits), "")
    y = torch.where(mine.y_train == 7, 8, mine.y_train)
    with pytest.raises(InputError, match="needs 1 training images of each class, but class 7 has 0"):
        data.labelled_subset(mine._replace(y_train=y), 10, seed=0)
    assert len(data.labelled_subset(mine, 300, seed=0)) == 300
    with pytest.raises(InputError, match="needs 31 training images of each class, but class 0 has 30"):
        data.labelled_subset(mine, 310, seed=0)


def test_the_splits_that_bounds_are_reported_on(digits, monkeypatch):
    monkeypatch.setattr("codebase.data.subsets.TRAIN_IMAGES", 200)
    mine = data.load(str(digits), "")
    splits = data.binary_splits(mine)
    expected = data.binarise_once(mine.x_test[data.test_subset(mine)]).float()
    assert list(splits) == ["subset", "test", "train"]
    assert splits["subset"][0].equal(expected)
    assert splits["test"][0].equal(data.binarise_once(mine.x_test).float())
    assert splits["train"][0].equal(data.binarise_once(mine.x_train[:200]).float())


def test_labelled_splits(colour_digits):
    mine = data.load(colour_digits)
    splits = data.labelled_splits(mine)
    chosen = data.test_subset(mine)
    assert splits["subset"][0].equal(mine.x_test[chosen])
    assert splits["subset"][1].argmax(-1).equal(mine.y_test[chosen])
    assert splits["test"][0].equal(mine.x_test)
    assert splits["test"][1].shape == (120, 10)
    assert splits["train"][0].equal(mine.x_train)  # fewer than TRAIN_IMAGES
    assert splits["train"][1].argmax(-1).equal(mine.y_train)


def test_validation_images_are_the_last_training_images(tmp_path):
    """And nothing else changes: the test images, the subsets, the name."""
    whole = data.load(save_digits(tmp_path / "digits.npz", 300, 120))
    whole = whole._replace(y_train=torch.randint(10, (300,)))
    images = whole.hold_out(40)
    assert images.x_train.equal(whole.x_train[:260])
    assert images.y_train.equal(whole.y_train[:260])
    assert images.x_validation.equal(whole.x_train[260:])
    assert images.y_validation.equal(whole.y_train[260:])
    assert (images.name, images.x_test, images.n_validation) == (whole.name, whole.x_test, 40)
    binary, with_labels = data.binary_splits(images), data.labelled_splits(images)
    assert binary["validation"][0].equal(data.binarise_once(whole.x_train[260:]).float())
    assert with_labels["validation"][0].equal(whole.x_train[260:])
    assert with_labels["validation"][1].argmax(-1).equal(whole.y_train[260:])
    for name, (x,) in data.binary_splits(whole).items():
        assert binary[name][0].equal(x[:260] if name == "train" else x)
    assert whole.hold_out(0) is whole
    with pytest.raises(InputError, match="--validation 300 leaves none of the 300 training images"):
        whole.hold_out(300)


def test_the_labelled_images_of_mnist_are_no_validation_images(tmp_path):
    """The homework's are among all training images; with validation images they are drawn from the others."""
    images = data.load(save_digits(tmp_path / "digits.npz", 300, 120))._replace(name="mnist").hold_out(100)
    labelled = data.labelled_subset(images, 100, seed=0)
    assert labelled.max() < 200
    assert images.y_train[labelled].bincount().tolist() == [10] * 10
