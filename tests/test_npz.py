"""The user's own images: what is read from an .npz file, and every complaint about one."""

import re

import numpy as np
import pytest
import torch

from codebase import data
from codebase.errors import InputError

X, Y = (np.arange(12 * 6 * 4) * 37 % 256).astype(np.uint8).reshape(12, 6, 4), np.arange(12)


def loaded(path, **arrays):
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return data.load(path)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (9, 5), (64, 48, 3), (1, 1)])
@pytest.mark.parametrize("order", ["<i8", ">u2"])
def test_images_of_any_size_and_their_labels(tmp_path, shape, order):
    """Grey or in colour, labels in any byte order, a class that only the test images have, and up to 1,000 classes."""
    x = np.random.RandomState(0).randint(0, 256, (12, *shape)).astype(np.uint8)
    y_test = np.array([0, 999]).astype(order)
    mine = loaded(tmp_path / "my digits!.npz", x_train=x, y_train=(Y % 3).astype(order), x_test=x[5:7], y_test=y_test)
    assert mine.name.startswith("my-digits-")
    assert mine.shape == (shape[2] if len(shape) > 2 else 1, *shape[:2])
    assert (mine.classes, mine.x_dim) == (1000, np.prod(shape))
    expected = x.reshape(*x.shape[:3], -1).transpose(0, 3, 1, 2).reshape(12, -1)
    assert mine.x_train.tolist() == expected.tolist()
    assert mine.x_test.tolist() == expected[5:7].tolist()
    assert (mine.y_train.tolist(), mine.y_test.tolist()) == ((Y % 3).tolist(), [0, 999])
    assert (mine.x_train.dtype, mine.y_test.dtype) == (torch.uint8, torch.int64)


def test_the_name_tells_contents_apart(tmp_path):
    """Images, labels, shape, and which images are for training; not the folder."""
    (tmp_path / "other").mkdir()
    y, changed = Y * 80, X.copy()
    changed[7, 5, 3] ^= 1
    kinds = [
        {"x_train": X[:8], "x_test": X[8:]},
        {"x_train": X[:6], "x_test": X[6:]},  # the same bytes, but other training images
        {"x_train": X[:8].reshape(8, 4, 6), "x_test": X[8:].reshape(4, 4, 6)},
        {"x_train": changed[:8], "x_test": changed[8:]},
        {"x_train": X[:8], "x_test": X[8:], "y_train": y[:8], "y_test": y[8:]},
        {"x_train": X[:8], "x_test": X[8:], "y_train": y[:8], "y_test": y[8:][::-1]},
        {"x_train": X[:8], "x_test": X[8:], "y_train": y[:8] % 256, "y_test": y[8:] % 256},
    ]
    names = [loaded(tmp_path / "other" / "a.npz", **arrays).name for arrays in kinds]
    assert len(set(names)) == len(kinds)
    assert loaded(tmp_path / "a.npz", **kinds[0]).name == names[0] == "a-a8308c98"


def test_images_without_labels_or_of_one_class(tmp_path):
    """They load; their subset is 100 test images drawn once; a model that needs labels says why it cannot use them."""
    x = np.zeros((150, 4, 4), np.uint8)
    mine = loaded(tmp_path / "c.npz", x_train=x, x_test=x)
    assert (mine.classes, mine.y_train, mine.y_test) == (0, None, None)
    chosen = data.test_subset(mine)
    assert chosen.unique().numel() == 100
    assert chosen.equal(data.test_subset(mine))
    assert chosen.max() >= 100
    assert mine.hold_out(20).y_validation is None
    with pytest.raises(InputError, match=r"c.npz has no labels; this model needs"):
        data.require_labels(mine)
    y = np.zeros(150, int)
    with pytest.raises(InputError, match=r"c.npz has labels of one class only"):
        data.require_labels(loaded(tmp_path / "c.npz", x_train=x, y_train=y, x_test=x, y_test=y))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32"])
def test_binary_images_are_taken_as_they_are(tmp_path, dtype):
    """Of values 0 and 1: neither the training batches nor the test images are drawn again, and [0, 1] is [0, 1]."""
    x = (X % 2).astype(dtype)
    mine = loaded(tmp_path / "b.npz", x_train=x, x_test=x[:3])
    expected = torch.from_numpy(X % 2).flatten(1).float()
    (batch,) = data.binary_batches(mine.x_train, 12, 0)[0]
    assert batch.equal(expected)
    assert data.binary_splits(mine)["test"][0].equal(expected[:3])
    assert data.scaled(mine.x_train).equal(expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_rounded_to_bytes(tmp_path, dtype):
    x = np.random.RandomState(0).rand(6, 4, 4).astype(dtype)
    mine = loaded(tmp_path / "f.npz", x_train=x, x_test=x[:3])
    difference = data.scaled(mine.x_train) - torch.from_numpy(x.astype(np.float64)).flatten(1)
    assert difference.abs().max() <= 0.51 / 255


IMAGES = r"x_train and x_test must hold images of one size, .*, or both of them values from 0 to 1; they are .*"
LABELS = r"bad.npz: the labels are left out: y_train and y_test must hold whole numbers from 0 .*; they are "


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"x_test": None}, "x_test is not a file in the archive"),
        ({"y_train": None}, "y_train is not a file in the archive"),
        ({"y_train": np.array([{}] * 12)}, "not a readable .npz file of plain arrays"),
        (
            {"x_train": X[..., None].repeat(2, -1)},
            rf"{IMAGES}uint8 \(12, 6, 4, 2\) from 0 to 255 and uint8 \(12, 6, 4\)",
        ),
        ({"x_train": X.reshape(12, 4, 6)}, rf"{IMAGES}uint8 \(12, 4, 6\)"),
        ({"x_train": X[..., None].repeat(3, -1)}, rf"{IMAGES}uint8 \(12, 6, 4, 3\)"),
        ({"x_test": X[:, 0, 0]}, rf"{IMAGES} and uint8 \(12,\)"),
        ({"x_train": X / 255 + 0.5}, rf"{IMAGES}float64 .* from 0.5 to 1.5 and uint8 "),
        ({"x_train": X / 255, "x_test": X / 255 + 0.5}, rf"{IMAGES}from 0.0 to 1.0 and float64 .* from 0.5 to 1.5"),
        ({"x_train": np.where(X == 37, np.nan, X / 255)}, rf"{IMAGES}float64 .* from nan to nan"),
        ({"x_train": X + 0.5}, rf"{IMAGES}float64 .* from 0.5 to 255.5"),
        ({"x_train": X.astype(np.int8), "x_test": X.astype(np.int8)}, rf"{IMAGES}int8 .* from -128 to 127"),
        ({"x_train": X.astype("U3"), "x_test": X.astype("U3")}, rf"{IMAGES}<U3 \(12, 6, 4\) and"),
        ({"x_train": X % 2}, rf"{IMAGES} from 0 to 1 and uint8 .* from 0 to 255"),  # only one of them is binary
    ],
)
def test_complaints(tmp_path, change, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        loaded(tmp_path / "bad.npz", **{"x_train": X, "y_train": Y, "x_test": X, "y_test": Y} | change)
    assert "bad.npz" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("of_type", [np.int64, np.int16, np.float32])
def test_whole_numbers_from_0_to_255_are_bytes(tmp_path, of_type):
    plain = loaded(tmp_path / "a.npz", x_train=X, x_test=X)
    same = loaded(tmp_path / "a.npz", x_train=X.astype(of_type), x_test=X.astype(of_type))
    assert same.x_train.equal(plain.x_train)
    assert same.name == plain.name


@pytest.mark.parametrize("form", [Y.astype(float), Y[:, None], np.eye(12), np.eye(12, dtype=bool)])
def test_labels_in_other_forms(tmp_path, form):
    assert loaded(tmp_path / "a.npz", x_train=X, y_train=form, x_test=X, y_test=Y).y_train.tolist() == Y.tolist()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"y_train": Y[:4]}, r"int64 \(4,\) from 0 to 3 and int64 \(12,\) from 0 to 11"),
        ({"y_train": np.ones((12, 12))}, r"float64 \(12, 12\)"),
        ({"y_test": Y / 2}, r".* and float64 \(12,\)"),
        ({"y_test": Y * np.nan}, r".* and float64 \(12,\)"),
        ({"y_test": Y + 996}, r".* and int64 \(12,\) from 996 to 1007"),
        ({"y_test": Y - 1}, r".* and int64 \(12,\) from -1 to 10"),
        ({"y_test": Y.astype(str)}, r".* and <U"),
    ],
)
def test_labels_that_cannot_be_used_stop_only_a_model_that_needs_them(tmp_path, capsys, change, complaint):
    mine = loaded(tmp_path / "bad.npz", **{"x_train": X, "y_train": Y, "x_test": X, "y_test": Y} | change)
    assert (mine.classes, mine.y_train, mine.y_test) == (0, None, None)
    assert re.search(LABELS + complaint, capsys.readouterr().out)
    with pytest.raises(InputError, match=r"bad.npz has no labels; this model needs labels"):
        data.require_labels(mine)


def test_a_class_without_a_training_image_is_named(tmp_path):
    arrays = {"x_train": X, "x_test": X, "y_test": Y % 3 + 1}
    from_1 = loaded(tmp_path / "a.npz", y_train=Y % 3 + 1, **arrays)
    in_order = loaded(tmp_path / "a.npz", y_train=np.sort(Y % 4), **arrays).hold_out(4)
    for mine, what in ((from_1, "class 0;.*training images.$"), (in_order, "class 3;.* the last ones: shuffle them")):
        with pytest.raises(InputError, match=f"no training image of {what}"):
            data.require_labels(mine)


def test_images_without_a_label(tmp_path):
    """-1 in y_train: the SSVAE draws its labelled images from the others; the FSVAE needs all labels."""
    y = np.where(Y < 8, Y % 2, -1)
    mine = loaded(tmp_path / "a.npz", x_train=X, y_train=y, x_test=X, y_test=Y % 2)
    data.require_labels(mine)
    assert data.labelled_subset(mine, 8, 0).sort()[0].tolist() == list(range(8))
    with pytest.raises(InputError, match="needs the labels of all training images"):
        data.labelled_batches(mine.x_train, mine.y_train, 2, 3, 0)
    with pytest.raises(InputError, match=r"--validation 3 holds out images without a label \(-1\)"):
        data.require_labels(mine.hold_out(3))


def test_a_file_that_is_no_npz(tmp_path, digits):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "short.npz").write_bytes(digits.read_bytes()[:10_000])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "folder.npz").mkdir()
    for name in ("array", "short", "empty", "folder"):
        with pytest.raises(InputError, match=rf"{name}.npz is not a readable"):
            data.load(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match=r"absent.npz is not a readable .npz file .*No such file"):
        data.load(tmp_path / "absent.npz")
