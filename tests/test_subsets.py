"""The images that bounds are evaluated on, and those whose labels are seen: the homework's by checksum."""

import hashlib

import numpy as np
import pytest
import torch
from conftest import save_digits

from codebase import data
from codebase.errors import InputError

TEST_SIZES = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # MNIST's images of each class
TRAIN_SIZES = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def checksum(values):
    return hashlib.sha256(values.numpy().tobytes() if torch.is_tensor(values) else str(values).encode()).hexdigest()


def labelled_only(y, classes, name="own"):
    """A data set of labels y (N,), whose images have one pixel; without labels if classes is 0."""
    x, y = torch.zeros(len(y), 1), y if classes else None
    return data.Data(name, "", (1, 1, 1), classes, x, y, x, y)


def test_real_mnist_and_its_subsets(mnist_dir):
    """The checksums fix the file order, the chosen images, their order, and the random numbers of the binarisation."""
    mnist = data.load("mnist", mnist_dir)
    assert (len(mnist.x_train), len(mnist.x_test)) == (60_000, 10_000)
    assert (mnist.y_train.bincount().tolist(), mnist.y_test.bincount().tolist()) == (TRAIN_SIZES, TEST_SIZES)
    splits = data.binary_splits(mnist)
    x = splits["subset"][0].byte()
    assert (x.shape, x.sum().item()) == ((100, 784), 10257)
    assert checksum(x) == "e987bfcffd12fe0269806e1d7c819de46d3e7902b0d7d98dc7bd3c780ceab5d3"
    assert splits["test"][0].shape == (10_000, 784)
    chosen = data.labelled_subset(mnist, 100, seed=0)
    assert checksum(mnist.x_train[chosen]) == "661bd79754bf9ee105bae5595beb334001007475c0742d641eb8f19d3fca1679"


@pytest.mark.parametrize("kind", ["test", "labelled"])
def test_the_homeworks_choice(kind):
    """Its positions in each class, the classes in turn; on labels of MNIST's numbers in any order."""
    sizes = TEST_SIZES if kind == "test" else TRAIN_SIZES
    y = torch.from_numpy(np.random.RandomState(0).permutation(np.repeat(np.arange(10), sizes)))
    mnist = labelled_only(y, 10, "mnist")
    chosen = data.test_subset(mnist) if kind == "test" else data.labelled_subset(mnist, 100, seed=5)
    assert y[chosen].tolist() == sorted(list(range(10)) * 10)
    assert chosen.unique().numel() == 99  # one image is there twice
    positions = [(y[:index] == y[index]).sum().item() for index in chosen]
    first, checksum_of_all = {
        "test": ([684, 559, 629, 192, 835, 763, 707, 359, 9, 723], "e12f8acb82837f44"),
        "labelled": ([2732, 2607, 1653, 3264, 4931, 4859, 5827, 1033, 4373, 5874], "26a89645a8b50806"),
    }[kind]
    assert positions[:10] == first
    assert checksum([positions[10 * c : 10 * c + 10] for c in range(10)]).startswith(checksum_of_all)


@pytest.mark.parametrize(
    ("classes", "first", "expected"),
    [
        (10, [220, 200, 250, 40, 100], "186c4e7fa74c3feb"),
        (3, [285, 204, 78, 24, 300], "298ee1c680be5774"),
        (0, [132, 309, 341, 196, 246], "c153e3d694abd341"),
    ],
)
def test_other_data_have_a_fixed_subset(classes, first, expected):
    """The numbers of all runs so far are of these images."""
    chosen = data.test_subset(labelled_only(torch.arange(400) % max(1, classes), classes)).tolist()
    assert chosen[:5] == first
    assert checksum(chosen).startswith(expected)


@pytest.mark.parametrize(("classes", "each"), [(2, 50), (3, 33), (10, 10), (26, 3), (200, 1)])
def test_the_subset_is_about_a_hundred_images_as_many_of_each_class(classes, each):
    mine = labelled_only(torch.arange(classes * 60) % classes, classes)
    chosen = data.test_subset(mine)
    assert chosen.unique().numel() == classes * each
    assert mine.y_test[chosen].tolist() == [c for c in range(classes) for _ in range(each)]
    sparse = mine._replace(classes=3 * classes, y_test=3 * mine.y_test)  # two of three classes have no images
    assert sparse.y_test[data.test_subset(sparse)].bincount().tolist() == [each, 0, 0] * (classes - 1) + [each]
    few = mine._replace(y_test=mine.y_test[: classes + 1])
    assert data.test_subset(few).unique().numel() == min(classes + 1, classes * each)


@pytest.mark.parametrize("name", ["own", "mnist"])
@pytest.mark.parametrize("n", [10, 100, 300])
def test_as_many_labelled_images_of_each_class_chosen_by_the_seed(name, n):
    """Also of MNIST if there are validation images, and then none of these."""
    images = labelled_only(torch.arange(400) % 10, 10, name).hold_out(40)
    chosen = data.labelled_subset(images, n, seed=3)
    assert images.y_train[chosen].tolist() == [c for c in range(10) for _ in range(n // 10)]
    assert chosen.unique().numel() == n
    assert chosen.max() < 360
    assert data.labelled_subset(images, n, seed=3).equal(chosen)
    assert not data.labelled_subset(images, n, seed=4).equal(chosen)
    if n == 10:
        assert chosen.tolist() == [280, 1, 262, 343, 164, 345, 306, 147, 18, 19]


@pytest.mark.parametrize(
    ("n", "complaint"),
    [
        (15, "--labels 15 is not a multiple of 10"),
        (5, "multiple of 10"),
        (0, "multiple of 10"),
        (410, "need 41 training images of each class, but class 0 has 40: --labels 400 is the most"),
        (10, "need 1 training images of each class, but class 7 has 0"),
    ],
)
def test_labelled_images_that_cannot_be_chosen(n, complaint):
    y = torch.arange(400) % 10
    images = labelled_only(torch.where(y == 7, 8, y) if "class 7" in complaint else y, 10)
    with pytest.raises(InputError, match=complaint):
        data.labelled_subset(images, n, seed=0)


def test_the_splits_that_bounds_are_reported_on(digits, monkeypatch):
    monkeypatch.setattr("codebase.data.subsets.TRAIN_IMAGES", 200)
    mine = data.load(digits)
    chosen = data.test_subset(mine)
    expected = {"subset": (mine.x_test[chosen], mine.y_test[chosen]), "test": (mine.x_test, mine.y_test)}
    expected |= {"train": (mine.x_train[:200], mine.y_train[:200])}
    binary, labelled = data.binary_splits(mine), data.labelled_splits(mine)
    assert list(binary) == list(labelled) == ["subset", "test", "train"]
    for name, (x, y) in expected.items():
        assert binary[name][0].equal(data.binarise_once(x).float())
        assert labelled[name][0].equal(x)
        assert labelled[name][1].equal(torch.eye(10)[y])


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
    assert images.sizes() == {"train": 260, "test": 120, "validation": 40}
    binary, with_labels = data.binary_splits(images), data.labelled_splits(images)
    assert binary["validation"][0].equal(data.binarise_once(whole.x_train[260:]).float())
    assert with_labels["validation"][0].equal(whole.x_train[260:])
    assert with_labels["validation"][1].argmax(-1).equal(whole.y_train[260:])
    for name, (x,) in data.binary_splits(whole.hold_out(0)).items():
        assert binary[name][0].equal(x[:260] if name == "train" else x)
    assert whole.hold_out(0).sizes() == whole.sizes() == {"train": 300, "test": 120, "validation": 0}
    with pytest.raises(InputError, match="--validation 300 leaves none of the 300 training images"):
        whole.hold_out(300)
