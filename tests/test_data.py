"""Data sets, every complaint about one, subsets by checksum, batches by their order."""

import gzip
import hashlib
import socket
import threading
import time

import numpy as np
import pytest
import scipy.io
import scipy.stats
import torch
from conftest import printed_by, save_digits, save_svhn
from torchvision.datasets import MNIST, SVHN

from codebase import data
from codebase.errors import InputError

# MNIST


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A data_dir in MNIST's layout with a few images of our own, two of the files gzipped, and their checksums."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    table = []
    for i, (name, header, *_) in enumerate(data.MNIST_FILES):
        n = 30 if "train" in name else 20
        body = np.arange(n) % 10 if "labels" in name else np.random.RandomState(i).randint(0, 256, n * 784)
        content = bytes(header) + body.astype(np.uint8).tobytes()
        if i % 2:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)
        table.append((name, header, len(content), hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(data, "MNIST_FILES", table)
    return tmp_path / "data"


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # the discard port: nobody listens


def test_mnist_from_plain_and_gzipped_files(tiny_mnist):
    mnist = data.load("mnist", tiny_mnist)
    assert mnist.name == "mnist"
    assert mnist.shape == (1, 28, 28)
    assert mnist.x_train.shape == (30, 784)
    assert mnist.x_train.dtype == torch.uint8
    assert mnist.y_test.tolist() == list(range(10)) * 2
    assert mnist.x_test[1, :5].tolist() == np.random.RandomState(2).randint(0, 256, 20 * 784)[784:789].tolist()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train-images-idx3-ubyte", lambda content: content[:-100]),
        ("train-images-idx3-ubyte", lambda content: b""),
        ("train-images-idx3-ubyte", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("train-labels-idx1-ubyte.gz", lambda content: content[:-9]),
        ("train-labels-idx1-ubyte.gz", lambda content: b"no gzip at all"),
        ("train-labels-idx1-ubyte.gz", lambda content: gzip.compress(b"something else")),
    ],
)
@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_a_damaged_file_is_named_and_never_replaced_by_glyphs(tiny_mnist, file, damage, dataset):
    path = tiny_mnist / "MNIST" / "raw" / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=file) as error:
        data.load(dataset, tiny_mnist)
    assert "delete it" in str(error.value)


def test_without_mnist_and_network_auto_says_loudly_that_it_takes_the_glyphs(tmp_path, no_network, capsys, monkeypatch):
    monkeypatch.setattr(data.glyphs, "draw", lambda *_, **__: (np.zeros((70_000, 1, 1, 1), np.uint8), np.zeros(70_000)))
    assert data.load("auto", tmp_path / "absent").name == "glyphs"
    assert "USING THE BUILT-IN GLYPHS INSTEAD" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_without_mnist_and_network_mnist_says_what_to_put_where_and_writes_nothing(tmp_path, no_network):
    with pytest.raises(data.DownloadError, match=r"train-images-idx3-ubyte.gz.*absent/MNIST/raw.*--data_dir"):
        data.load("mnist", tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def server():
    """server(answer) listens on this machine, calls answer(connection, request) each time, and returns its URL."""
    sockets = []

    def start(answer):
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                sockets.append(connection)
                answer(connection, connection.recv(65536))

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    for each in sockets:
        each.close()


def test_a_download_that_stalls_is_given_up(tmp_path, server, monkeypatch):
    """A server that sends half of the file and then nothing. The patience of 20 s is shortened to 0.5 s."""
    url = server(lambda c, _: c.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(500)))
    monkeypatch.setattr(MNIST, "mirrors", [url])
    patience, seen = socket.setdefaulttimeout, []
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda s: (seen.append(s), patience(s and 0.5)))
    began = time.monotonic()
    with pytest.raises(data.DownloadError, match="timed out"):
        data.load("mnist", tmp_path / "absent")
    assert time.monotonic() - began < 5
    assert seen == [20, None]
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_speaks_no_http(tmp_path, server, monkeypatch):
    def answer(connection, _):
        connection.sendall(b"what?\r\n\r\n")
        connection.close()

    monkeypatch.setattr(MNIST, "mirrors", [server(answer)])
    with pytest.raises(data.DownloadError, match="what"):
        data.load("mnist", tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_download_with_a_wrong_checksum_is_refused(tmp_path, server, monkeypatch):
    def answer(connection, _):
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\n" + bytes(500))
        connection.close()

    monkeypatch.setattr(MNIST, "mirrors", [server(answer)])
    with pytest.raises(data.DownloadError, match="not found or corrupted"):
        data.load("mnist", tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_download_lands_in_data_dir(tmp_path, tiny_mnist, server, monkeypatch):
    """Served by a mirror of our own, with its checksums; the second time nothing is downloaded."""
    raw = tiny_mnist / "MNIST" / "raw"
    files = {}
    for name, *_ in data.MNIST_FILES:
        path = data.find_mnist(raw, name)
        content = path.read_bytes()
        files[f"{name}.gz"] = content if path.suffix == ".gz" else gzip.compress(content)

    def answer(connection, request):
        content = files[request.split()[1].decode().strip("/")]
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        connection.close()

    monkeypatch.setattr(MNIST, "mirrors", [server(answer)])
    monkeypatch.setattr(MNIST, "resources", [(k, hashlib.md5(v).hexdigest()) for k, v in files.items()])
    monkeypatch.setattr(MNIST, "__init__", lambda self, root, download: download_to(self, root))

    def download_to(self, root):  # the constructor less the reading, which wants 60,000 images
        self.root = root
        self.download()

    new = tmp_path / "new" / "place"
    first = data.load("mnist", new)
    assert first.x_train.shape == (30, 784)
    assert {path.name for path in (new / "MNIST" / "raw").iterdir()} == set(files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "new"]
    monkeypatch.setattr(MNIST, "mirrors", [])
    assert data.load("auto", new).x_test.equal(first.x_test)


def test_real_mnist_and_its_subset(mnist_dir):
    """The binarised subset by its checksum, which fixes the file order, the table, and the random stream."""
    mnist = data.load("mnist", mnist_dir)
    assert (len(mnist.x_train), len(mnist.x_test)) == (60_000, 10_000)
    x = data.binarise_once(mnist.x_test[data.test_subset(mnist)])
    assert x.shape == (100, 784)
    assert x.sum().item() == 10257
    checksum = "e987bfcffd12fe0269806e1d7c819de46d3e7902b0d7d98dc7bd3c780ceab5d3"
    assert hashlib.sha256(x.numpy().tobytes()).hexdigest() == checksum
    splits = data.binary_splits(mnist, "cpu")
    assert splits["subset"][0].equal(x.float())
    assert splits["test"][0].shape == (10_000, 784)


# .npz files and names


def test_real_mnist_and_its_labelled_images(mnist_dir):
    """The checksum stands for the images and their order; one of class 4 is there twice."""
    mnist = data.load("mnist", mnist_dir)
    chosen = data.labelled_subset(mnist, 100, seed=0)
    assert mnist.y_train[chosen].tolist() == sorted(list(range(10)) * 10)
    assert mnist.x_train[chosen].unique(dim=0).shape == (99, 784)
    assert chosen[46] == chosen[47]


# SVHN


@pytest.mark.parametrize("split", ["train", "extra", "train+extra"])
@pytest.mark.parametrize("compressed", [True, False])
def test_svhn_is_as_torchvision_reads_it(tmp_path, monkeypatch, split, compressed):
    """Images channel first, label 10 as the digit 0; turned seven images at a time."""
    monkeypatch.setattr(data, "SVHN_ROWS", 7)
    folder = save_svhn(tmp_path / "data", monkeypatch, compressed=compressed)
    svhn = data.load("svhn", folder, "svhn", split)
    assert (svhn.name, svhn.shape) == ("svhn", (3, 32, 32))
    parts = [SVHN(folder, part) for part in split.split("+")]
    assert svhn.x_train.tolist() == np.concatenate([part.data for part in parts]).reshape(-1, 3072).tolist()
    assert svhn.y_train.tolist() == np.concatenate([part.labels for part in parts]).tolist()
    assert svhn.x_train.dtype == torch.uint8
    test = SVHN(folder, "test")
    assert svhn.x_test.tolist() == test.data.reshape(-1, 3072).tolist()
    assert svhn.y_test.tolist() == test.labels.tolist() == [*range(1, 10), 0] * 2


@pytest.mark.parametrize("damage", [lambda content: content[:-10], lambda content: b"", lambda content: content + b"x"])
@pytest.mark.parametrize("dataset", ["svhn", "auto"])
def test_a_damaged_file_of_svhn_is_named_and_never_replaced(tmp_path, monkeypatch, damage, dataset):
    folder = save_svhn(tmp_path / "data", monkeypatch)
    path = folder / "test_32x32.mat"
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"test_32x32.mat is not SVHN's file of that name, or damaged") as error:
        data.load(dataset, folder, "svhn", "train")
    assert not isinstance(error.value, data.DownloadError)
    assert path.read_bytes() == before


def test_without_svhn_and_network(tmp_path, monkeypatch, capsys):
    """svhn says what to put where and writes nothing; auto says loudly that it takes the colour glyphs."""
    save_svhn(tmp_path / "elsewhere", monkeypatch)
    drawn = []
    monkeypatch.setattr(data, "draw_glyphs", drawn.append)
    with pytest.raises(data.DownloadError, match=r"extra_32x32.mat, test_32x32.mat\) into .*absent, or say where"):
        data.load("svhn", tmp_path / "absent", "svhn")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    data.load("auto", tmp_path / "absent", "svhn")
    assert drawn == [True]  # in colour
    assert "USING THE BUILT-IN GLYPHS INSTEAD: the numbers below are not SVHN's." in capsys.readouterr().out
    with pytest.raises(data.DownloadError, match="MNIST could not"):
        data.load("mnist", tmp_path / "absent", "svhn")


def test_svhn_is_downloaded_what_is_missing_alone(tmp_path, monkeypatch, server):
    theirs = save_svhn(tmp_path / "theirs", monkeypatch)
    asked = []

    def answer(connection, request):
        name = request.split()[1].decode().strip("/")
        asked.append(name)
        content = (theirs / name).read_bytes()
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        connection.close()

    url = server(answer)
    monkeypatch.setattr(SVHN, "split_list", {k: [url + v[1], *v[1:]] for k, v in SVHN.split_list.items()})
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "test_32x32.mat").write_bytes((theirs / "test_32x32.mat").read_bytes())
    svhn = data.load("svhn", mine, "svhn")
    assert len(svhn.x_train) == 50
    assert set(asked) == {"extra_32x32.mat"}
    assert sorted(path.name for path in mine.iterdir()) == ["extra_32x32.mat", "test_32x32.mat"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "theirs"]


@pytest.mark.slow
def test_svhn_is_never_in_memory_twice(tmp_path):
    """Reading a file of 100,000 images, 307 MB, takes less than 1.15 times that; the like of torchvision's takes 2."""
    program = (
        "import hashlib, resource, sys, numpy as np, scipy.io; from pathlib import Path\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "path = Path(sys.argv[1], 'extra_32x32.mat')\n"
        "if sys.argv[2] == 'write':\n"
        "    x = np.repeat(np.random.RandomState(0).randint(0, 256, 4_800_000).astype(np.uint8), 64)\n"
        "    y = np.ones((100_000, 1), np.uint8)\n"
        "    x = np.asfortranarray(x.reshape(100_000, 3, 32, 32).T)\n"
        "    scipy.io.savemat(path, {'X': x, 'y': y}, do_compression=True); sys.exit()\n"
        "from codebase import data; from torchvision.datasets import SVHN\n"
        "SVHN.split_list = {'extra': ['', path.name, hashlib.md5(path.read_bytes()).hexdigest()]}\n"
        "before = peak(); x, y = data.read_svhn_file(path); print(peak() - before, x.shape[0])\n"
    )
    for what in ("write", "read"):
        out = printed_by(program, tmp_path, what)
    grown, n = map(int, out.split())
    assert n == 100_000
    assert grown < 1.15 * 100_000 * 3072


def test_npz(tmp_path):
    mine = data.load(str(save_digits(tmp_path / "my digits!.npz", 30, 20)), "unused")
    assert mine.name.startswith("my-digits-")
    assert mine.x_train.shape == (30, 784)
    assert mine.y_test.tolist() == list(range(10)) * 2
    with np.load(tmp_path / "my digits!.npz") as file:
        assert mine.x_train[3].tolist() == file["x_train"][3].ravel().tolist()


def test_npz_name_tells_contents_apart(tmp_path):
    (tmp_path / "other").mkdir()
    names = {
        data.load(str(save_digits(tmp_path / "a.npz", seed=0)), "").name,
        data.load(str(save_digits(tmp_path / "other" / "a.npz", seed=1)), "").name,
    }
    assert len(names) == 2


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
        ({"x_test": None}, "no array x_test; it has x_train, y_train, y_test"),
        ({"x_train": np.zeros((5, 28, 28))}, r"x_train must hold .*uint8.*\(5, 28, 28\) float64"),
        ({"x_train": np.zeros((5, 28, 28, 2), np.uint8)}, r"x_train must hold .*height, width, 3.*\(5, 28, 28, 2\)"),
        ({"x_train": np.zeros((5, 32, 28), np.uint8)}, "x_train and x_test must hold images of the same size"),
        ({"x_train": np.zeros((5, 28, 28, 3), np.uint8)}, "x_train and x_test must hold images of the same size"),
        ({"y_train": None}, "no array y_train; it has x_train, x_test, y_test"),
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


def test_unknown_name():
    with pytest.raises(InputError, match="minst: the choices are auto, mnist, svhn, glyphs"):
        data.load("minst", "data")


def test_glyphs_are_a_data_set_of_60000_and_10000():
    drawn = data.load("glyphs", "unused")
    assert (drawn.name, drawn.shape) == ("glyphs", (1, 28, 28))
    assert drawn.x_train.shape == (60_000, 784)
    assert drawn.x_test.shape == (10_000, 784)
    assert drawn.y_train.bincount().shape == (10,)
    x, y = data.glyphs.draw(70_000, data.GLYPHS_SEED)
    assert drawn.x_train.equal(torch.from_numpy(x[:60_000]).flatten(1))
    assert drawn.x_test.equal(torch.from_numpy(x[60_000:]).flatten(1))
    assert drawn.y_test.tolist() == y[60_000:].tolist()


# Subsets and batches


def test_homework_subset_takes_positions_within_the_class():
    """On labels in any order: entry r of class c is the image that is the table's [c][r]-th of its class."""
    y = torch.from_numpy(np.random.RandomState(0).permutation(np.repeat(np.arange(10), 1200)))
    empty = torch.zeros(0, 784, dtype=torch.uint8)
    chosen = data.test_subset(data.Data("mnist", "", data.GREY, 10, empty, y, empty, y))
    assert chosen.shape == (100,)
    for i, index in enumerate(chosen.tolist()):
        c, r = divmod(i, 10)
        assert y[index] == c
        assert (y[:index] == c).sum() == data.MNIST_TEST_SUBSET[c][r]


@pytest.mark.parametrize(("classes", "each"), [(2, 50), (3, 33), (26, 3), (200, 1)])
def test_the_subset_is_about_a_hundred_images_as_many_of_each_class(classes, each):
    y = torch.arange(classes * 60) % classes
    mine = data.Data("own", "", data.GREY, classes, None, y, y, y)
    assert data.test_subset(mine).unique().numel() == classes * each
    assert y[data.test_subset(mine)].bincount().tolist() == [each] * classes


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
    mnist = data.Data("mnist", "", data.GREY, 10, torch.zeros(70_000, 1), y, None, None)
    chosen = data.labelled_subset(mnist, 100, seed=5)
    assert y[chosen].tolist() == sorted(list(range(10)) * 10)
    assert chosen.unique().numel() == 99
    for i, index in enumerate(chosen.tolist()):
        assert (y[:index] == i // 10).sum() == data.MNIST_LABELLED[i // 10][i % 10]
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
    with pytest.raises(InputError, match="takes 1 training images of each class, but class 7 has 0"):
        data.labelled_subset(mine._replace(y_train=y), 10, seed=0)
    assert len(data.labelled_subset(mine, 300, seed=0)) == 300
    with pytest.raises(InputError, match="takes 31 training images of each class, but class 0 has 30"):
        data.labelled_subset(mine, 310, seed=0)


def test_binarise_is_bernoulli_of_the_grey_value():
    """Every grey value: its share of ones by a binomial test; 0 and 255 always black and white. Fails once in 1,000."""
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


def test_the_splits_that_bounds_are_reported_on(digits):
    mine = data.load(str(digits), "")
    splits = data.binary_splits(mine, "cpu")
    expected = data.binarise_once(mine.x_test[data.test_subset(mine)]).float()
    assert list(splits) == ["subset", "test", "train"]
    assert splits["subset"][0].equal(expected)
    assert splits["test"][0].equal(data.binarise_once(mine.x_test).float())
    assert splits["train"][0].equal(data.binarise_once(mine.x_train[: len(expected)]).float())


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
    """Images that tell which they are, whatever is drawn: row i has the bits of i, black or white."""
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


def test_labelled_splits(colour_digits):
    mine = data.load(colour_digits)
    splits = data.labelled_splits(mine, "cpu")
    chosen = data.test_subset(mine)
    assert splits["subset"][0].equal(mine.x_test[chosen])
    assert splits["subset"][1].argmax(-1).equal(mine.y_test[chosen])
    assert splits["test"][0].equal(mine.x_test)
    assert splits["test"][1].shape == (120, 10)
    assert splits["train"][0].equal(mine.x_train[: len(chosen)])
    assert splits["train"][1].argmax(-1).equal(mine.y_train[: len(chosen)])
