"""The user's own images: what is read from an .npz file, and every complaint about one."""

import numpy as np
import pytest
import torch
from conftest import save_digits

from codebase import data
from codebase.errors import InputError


def test_npz(tmp_path):
    mine = data.load(str(save_digits(tmp_path / "my digits!.npz", 30, 20)), "unused")
    assert mine.name.startswith("my-digits-")
    assert mine.x_train.shape == (30, 784)
    assert mine.y_test.tolist() == list(range(10)) * 2
    with np.load(tmp_path / "my digits!.npz") as file:
        assert mine.x_train[3].tolist() == file["x_train"][3].ravel().tolist()


def test_npz_name_tells_contents_apart(tmp_path):
    """Images, labels, shape, and which images are for training; not the folder."""
    (tmp_path / "other").mkdir()
    x, y = np.random.RandomState(0).randint(0, 256, (12, 6, 4)).astype(np.uint8), np.arange(12) * 80
    other = x.copy()
    other[7, 5, 3] ^= 1
    kinds = [
        {"x_train": x[:8], "x_test": x[8:]},
        {"x_train": x[:6], "x_test": x[6:]},  # the same bytes, but other training images
        {"x_train": x[:8].reshape(8, 4, 6), "x_test": x[8:].reshape(4, 4, 6)},
        {"x_train": other[:8], "x_test": other[8:]},
        {"x_train": x[:8], "x_test": x[8:], "y_train": y[:8], "y_test": y[8:]},
        {"x_train": x[:8], "x_test": x[8:], "y_train": y[:8], "y_test": y[8:][::-1]},
        {"x_train": x[:8], "x_test": x[8:], "y_train": y[:8] % 256, "y_test": y[8:] % 256},
    ]
    names = set()
    for arrays in kinds:
        np.savez(tmp_path / "other" / "a.npz", **arrays)
        names.add(data.load(tmp_path / "other" / "a.npz").name)
    assert len(names) == len(kinds)
    np.savez(tmp_path / "a.npz", **kinds[-1])
    assert data.load(tmp_path / "a.npz").name in names


def test_labels_in_another_byte_order(tmp_path):
    path = save_digits(tmp_path / "digits.npz")
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"y_train": arrays["y_train"].astype(">i8"), "y_test": arrays["y_test"].astype(">u2")})
    mine = data.load(str(path), "")
    assert mine.y_train.tolist() == arrays["y_train"].tolist()
    assert mine.y_test.dtype == torch.int64


def test_colour_npz_becomes_channel_first(tmp_path):
    x = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    y = np.arange(12) % 10
    np.savez(tmp_path / "c.npz", x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    mine = data.load(tmp_path / "c.npz")
    assert (mine.shape, mine.classes) == ((3, 32, 32), 10)
    assert mine.x_train.shape == (12, 3072)
    assert mine.x_train.reshape(12, 3, 32, 32)[7, 2, 10, 20] == x[7, 10, 20, 2]


@pytest.mark.parametrize("shape", [(9, 5), (64, 48, 3), (1, 1)])
def test_npz_of_any_size(tmp_path, shape):
    """Any height and width, grey or in colour, a class that only the test images have, and up to 1,000 classes."""
    x = np.random.RandomState(0).randint(0, 256, (12, *shape)).astype(np.uint8)
    np.savez(tmp_path / "c.npz", x_train=x, y_train=np.arange(12) % 3, x_test=x[:2], y_test=[0, 999])
    mine = data.load(tmp_path / "c.npz")
    assert mine.shape == (shape[2] if len(shape) > 2 else 1, *shape[:2])
    assert mine.classes == 1000
    assert mine.x_dim == np.prod(shape) == mine.x_test.shape[1]
    channel_first = x[7].reshape(*shape[:2], -1).transpose(2, 0, 1)
    assert mine.x_train[7].tolist() == channel_first.ravel().tolist()


def test_npz_without_labels(tmp_path):
    """It loads, its subset is 100 test images drawn once; a model that needs labels says that there are none."""
    x = np.random.RandomState(0).randint(0, 256, (150, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "c.npz", x_train=x, x_test=x)
    mine = data.load(tmp_path / "c.npz")
    assert (mine.classes, mine.y_train, mine.y_test) == (0, None, None)
    chosen = data.test_subset(mine)
    assert chosen.unique().numel() == 100
    assert chosen.equal(data.test_subset(mine))
    assert chosen.max() >= 100
    with pytest.raises(InputError, match=r"c.npz has no labels \(y_train, y_test\); this model needs"):
        data.require_labels(mine)


def test_npz_with_labels_of_one_class(tmp_path):
    x, y = np.zeros((5, 4, 4), np.uint8), np.zeros(5, int)
    np.savez(tmp_path / "c.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(InputError, match=r"c.npz has labels of one class only"):
        data.require_labels(data.load(tmp_path / "c.npz"))


def test_npz_with_a_channel_of_one(tmp_path):
    x, y = np.zeros((5, 28, 28, 1), np.uint8), np.arange(5)
    np.savez(tmp_path / "c.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert data.load(str(tmp_path / "c.npz"), "").x_test.shape == (5, 784)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"x_test": None}, "x_test is not a file in the archive"),
        ({"x_train": np.zeros((5, 28, 28))}, "x_train is of float64 values and x_test of uint8: use one type"),
        ({"x_train": np.zeros((5, 28, 28, 2), np.uint8)}, r"x_train must hold .*height, width, 3.*\(5, 28, 28, 2\)"),
        ({"x_train": np.zeros((5, 32, 28), np.uint8)}, "x_train and x_test must hold images of the same size"),
        ({"x_train": np.zeros((5, 28, 28, 3), np.uint8)}, "x_train and x_test must hold images of the same size"),
        ({"y_train": None}, "y_train is not a file in the archive"),
        ({"x_train": np.zeros((0, 28, 28), np.uint8)}, "N at least 1"),
        ({"x_test": np.zeros(7, np.uint8)}, r"x_test must hold .*\(7,\)"),
        ({"y_train": np.arange(4)}, r"y_train must hold 5 whole numbers.*\(4,\)"),
        ({"y_train": np.eye(5)}, r"y_train must hold 5 whole numbers.*\(5, 5\)"),
        ({"y_test": np.arange(5.0)}, "y_test must hold 5 whole numbers.*float64"),
        ({"y_test": np.arange(5) + 996}, "labels from 0 to at most 999; its labels are from 996 to 1000"),
        ({"y_test": np.arange(5) - 1}, "labels from 0 to at most 999; its labels are from -1 to 3"),
        ({"y_train": np.array([{}] * 5)}, "not a readable .npz file of plain arrays"),
    ],
)
def test_npz_complaints(tmp_path, change, complaint):
    x, y = np.zeros((5, 28, 28), np.uint8), np.arange(5)
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y} | change
    np.savez(tmp_path / "bad.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=complaint) as error:
        data.load(str(tmp_path / "bad.npz"), "")
    assert "bad.npz" in str(error.value)
    assert "\n" not in str(error.value)


def npz_of_images(path, x_train, x_test):
    np.savez(path, x_train=x_train, x_test=x_test)
    return data.load(str(path), "")


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_binary_images_are_taken_as_they_are(tmp_path, dtype):
    """Of values 0 and 1: neither the training batches nor the test images are drawn again, and [0, 1] is [0, 1]."""
    x = np.random.RandomState(0).randint(0, 2, (6, 4, 4))
    mine = npz_of_images(tmp_path / "b.npz", x.astype(dtype), x[:3].astype(dtype))
    expected = torch.from_numpy(x).flatten(1).float()
    (batch,) = data.binary_batches(mine.x_train, 6, 0)[0]
    assert batch.equal(expected)
    assert data.binary_splits(mine)["test"][0].equal(expected[:3])
    assert data.scaled(mine.x_train).equal(expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_images(tmp_path, dtype):
    x = np.random.RandomState(0).rand(6, 4, 4).astype(dtype)
    mine = npz_of_images(tmp_path / "f.npz", x, x[:3])
    difference = data.scaled(mine.x_train) - torch.from_numpy(x.astype(np.float64)).flatten(1)
    assert difference.abs().max() <= 0.51 / 255


@pytest.mark.parametrize("order", [1, -1])
def test_binary_images_beside_others_are_refused(tmp_path, order):
    x = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    with pytest.raises(InputError, match="is of 0 and 1 alone: scale them alike"):
        npz_of_images(tmp_path / "d.npz", *(x, x % 2)[::order])
    assert npz_of_images(tmp_path / "d.npz", *(x, 0 * x)[::order]).x_train.max() in (0, 31)  # black ones are images


@pytest.mark.parametrize(
    ("x", "seen"),
    [
        (np.arange(16.0) / 15 + 0.1, "float64 from 0.1 to 1.1"),
        (np.arange(16.0), "float64 from 0.0 to 15.0"),
        (np.full(16, np.nan), "float64 from nan to nan"),
        (np.arange(16), "int64 from 0 to 15"),
        (np.arange(16, dtype=np.int8) - 1, "int8 from -1 to 14"),
        (np.full(16, "a"), "<U1"),
        (np.zeros(16, complex), "complex128"),
    ],
)
def test_other_values_are_refused_with_the_remedy(tmp_path, x, seen):
    with pytest.raises(InputError, match="must hold uint8 values from 0 to 255, floats from 0 to 1") as error:
        npz_of_images(tmp_path / "v.npz", x.reshape(1, 4, 4), x.reshape(1, 4, 4))
    assert f"it holds {seen}. Scale them to one of these ranges." in str(error.value)


def test_npz_that_is_none(tmp_path, digits):
    whole = digits.read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "folder.npz").mkdir()
    for name in ("array", "short", "empty", "text", "folder"):
        with pytest.raises(InputError, match=rf"{name}.npz is not a readable"):
            data.load(str(tmp_path / f"{name}.npz"), "")
    with pytest.raises(InputError, match=r"absent.npz does not exist"):
        data.load(str(tmp_path / "absent.npz"), "")
