"""MNIST, SVHN and the glyphs: what is read, every complaint, and downloads."""

import gzip
import hashlib
import socket
import threading
import time

import numpy as np
import pytest
import torch
from conftest import contents, printed_by, save_svhn
from torchvision.datasets import MNIST, SVHN

from codebase import data
from codebase.data import download, mnist
from codebase.errors import InputError

# MNIST


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A data_dir in MNIST's layout with a few images of our own, two of the files gzipped, and their checksums."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    checksums = {}
    for i, name in enumerate(mnist.MNIST_FILES):
        n = 30 if "train" in name else 20
        shape = (n,) if "labels" in name else (n, 28, 28)
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
        body = np.arange(n) % 10 if "labels" in name else np.random.RandomState(i).randint(0, 256, shape)
        content = header + body.astype(np.uint8).tobytes()
        if i % 2:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)
        checksums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(mnist, "MNIST_FILES", checksums)
    return tmp_path / "data"


def test_mnist_from_plain_and_gzipped_files(tiny_mnist, monkeypatch):
    before = contents(tiny_mnist)
    images = data.load("mnist", tiny_mnist)
    assert images.name == "mnist"
    assert images.origin == f"MNIST from {tiny_mnist}/MNIST/raw"
    assert (images.shape, images.classes, images.x_dim) == ((1, 28, 28), 10, 784)
    assert images.x_train.shape == (30, 784)
    assert images.x_train.dtype == torch.uint8
    assert images.y_test.dtype == torch.int64
    assert images.y_test.tolist() == list(range(10)) * 2
    assert images.x_test.tolist() == np.random.RandomState(2).randint(0, 256, (20, 784)).tolist()
    assert contents(tiny_mnist) == before
    monkeypatch.chdir(tiny_mnist.parent)
    assert data.load("mnist").origin == "MNIST from data/MNIST/raw"


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("MNIST/raw/train-images-idx3-ubyte", lambda content: content[:-100]),
        ("MNIST/raw/train-images-idx3-ubyte", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("MNIST/raw/train-labels-idx1-ubyte.gz", lambda content: content[:-9]),
        ("MNIST/raw/train-labels-idx1-ubyte.gz", lambda content: gzip.compress(b"something else")),
        ("test_32x32.mat", lambda content: content[:-10]),
    ],
)
@pytest.mark.parametrize("auto", [False, True])
def test_a_damaged_file_is_named_and_never_replaced(tmp_path, monkeypatch, tiny_mnist, file, damage, auto):
    """Neither by a download nor by glyphs."""
    usual = "mnist" if "MNIST" in file else "svhn"
    folder = tiny_mnist if "MNIST" in file else save_svhn(tmp_path / "svhn", monkeypatch)
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    before = contents(folder)
    what = rf"{file} is not {usual.upper()}'s file of that name, or is damaged: delete it to download it again"
    with pytest.raises(InputError, match=what) as error:
        data.load("auto" if auto else usual, folder, usual)
    assert not isinstance(error.value, data.DownloadError)
    assert contents(folder) == before


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Neither data set can be downloaded: the addresses are port 9, discard, where no server listens."""
    save_svhn(tmp_path / "elsewhere", monkeypatch)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


@pytest.mark.parametrize(
    ("usual", "files"), [("mnist", "train-images-idx3-ubyte.gz, .*"), ("svhn", r"extra_32x32.mat, test_32x32.mat")]
)
def test_without_data_and_network(tmp_path, no_network, capsys, monkeypatch, usual, files):
    """By name: what to put where. auto: loudly the glyphs, in colour for SVHN."""
    monkeypatch.setattr(data, "draw_glyphs", lambda colour: ("glyphs", colour))
    where = "absent/MNIST/raw" if usual == "mnist" else "absent"
    with pytest.raises(
        data.DownloadError,
        match=rf"^There is no {usual.upper()} in .*/{where}, and it could not .*refused.*\. Put {files} there, or say",
    ):
        data.load(usual, tmp_path / "absent", "svhn")
    assert data.load("auto", tmp_path / "absent", usual) == ("glyphs", usual == "svhn")
    shown = f"USING THE BUILT-IN GLYPHS INSTEAD: the numbers below are not {usual.upper()}'s."
    assert shown in capsys.readouterr().out
    assert not (tmp_path / "absent").exists()


def test_only_a_new_run_without_data_dir_may_be_on_glyphs(tiny_mnist, no_network, script, monkeypatch, tmp_path):
    """Neither an evaluation, nor a resumed run, nor a wrong folder."""
    monkeypatch.delenv("DATA_DIR", raising=False)
    drawn = data.load("mnist", tiny_mnist)._replace(name="glyphs", origin="drawn digits")
    monkeypatch.setattr(data, "draw_glyphs", lambda colour: drawn)
    tiny_mnist.rename(tmp_path / "mine")
    usual = ["run_vae.py", "--batch_size", 10, "--device", "cpu"]
    train = [*usual, "--hidden", 4, "--iter_max", 1]
    assert script(*train, "--data_dir", "mine")[0] == 0
    for more in (["--train", 0], ["--resume", 1], ["--train", 0, "--data_dir", "mien"]):
        code, _, err = script(*train, *more)
        assert code == 2
        assert "error: There is no MNIST in" in err
        assert "say where they are with --data_dir; or use --dataset glyphs." in err
    for folder in ("mien", "mine/MNIST", "mine/MNIST/raw"):
        code, _, err = script(*usual, "--data_dir", folder)
        assert code == 2
        assert f"error: There is no MNIST in {folder}/MNIST/raw, and" in err
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "elsewhere", "logs", "mine"}
    assert len(list(tmp_path.glob("logs/*"))) == 1

    code, out, _ = script(*train, "--run", 1)
    assert (code, out.count("USING THE BUILT-IN GLYPHS INSTEAD")) == (0, 1)
    assert out.endswith("the same command with --train 0 and --dataset glyphs\n")
    code, _, err = script(*train, "--run", 1, "--train", 0, "--data_dir", "mine")
    assert code == 2
    assert "train first (there is model=vae_z=10_hidden=4_batch=10_run=0000, model=vae_z=10_hidden=4_data=glyphs" in err


@pytest.mark.parametrize("file", ["MNIST/raw/train-labels-idx1-ubyte.gz", "extra_32x32.mat"])
def test_files_that_are_there_stay_as_they_are_when_a_download_fails(tmp_path, tiny_mnist, no_network, file):
    folder = tiny_mnist if "MNIST" in file else tmp_path / "elsewhere"
    (folder / file).unlink()
    before = contents(folder)
    with pytest.raises(data.DownloadError, match=rf"Put {(folder / file).name} there"):
        data.load("mnist" if "MNIST" in file else "svhn", folder, "svhn")
    assert contents(folder) == before


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


def answer_once(content):
    """An answer of a server: content, then the connection is closed."""

    def answer(connection, _):
        connection.sendall(content)
        connection.close()

    return answer


HEADER = b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda connection, _: connection.sendall(HEADER + bytes(500)), "timed out"),  # and then nothing
        (answer_once(b"what?\r\n\r\n"), "what"),  # no HTTP
        (answer_once(HEADER + bytes(1000)), "not found or corrupted"),  # a wrong checksum
    ],
)
def test_a_download_that_fails_leaves_no_file(tmp_path, server, monkeypatch, answer, reason):
    """And is given up if it stalls; the timeout is reset afterwards."""
    monkeypatch.setattr(MNIST, "mirrors", [server(answer)])
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    began = time.monotonic()
    with pytest.raises(data.DownloadError, match=reason):
        data.load("mnist", tmp_path / "absent")
    assert time.monotonic() - began < 5
    assert socket.getdefaulttimeout() is None
    assert not list(tmp_path.iterdir())


def test_a_download_lands_in_data_dir(tmp_path, tiny_mnist, server, monkeypatch):
    """Served by a local mirror, with its checksums; the second time nothing is downloaded."""
    files = {}
    for path, content in contents(tiny_mnist).items():
        files[f"{path.stem}.gz"] = content if path.suffix == ".gz" else gzip.compress(content)

    def answer(connection, request):
        content = files[request.split()[1].decode().strip("/")]
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        connection.close()

    monkeypatch.setattr(MNIST, "mirrors", [server(answer)])
    monkeypatch.setattr(MNIST, "resources", [(k, hashlib.md5(v).hexdigest()) for k, v in files.items()])
    new = tmp_path / "new" / "place"
    first = data.load("mnist", new)
    assert first.x_train.shape == (30, 784)
    assert {path.name for path in (new / "MNIST" / "raw").glob("*.gz")} == set(files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "new"]
    monkeypatch.setattr(MNIST, "mirrors", [])
    assert data.load("auto", new).x_test.equal(first.x_test)


# SVHN


@pytest.mark.parametrize("split", ["train", "extra", "train+extra"])
@pytest.mark.parametrize("compressed", [True, False])
def test_svhn_is_as_torchvision_reads_it(tmp_path, monkeypatch, split, compressed):
    """Images channel first, label 10 as the digit 0; transposed seven images at a time."""
    monkeypatch.setattr(data.svhn, "CHUNK", 7)
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


def test_only_the_missing_file_of_svhn_is_downloaded(tmp_path, monkeypatch, server):
    """The server has no other file."""
    theirs = save_svhn(tmp_path / "theirs", monkeypatch)
    content = (theirs / "extra_32x32.mat").read_bytes()

    def answer(connection, request):
        assert request.split()[1] == b"/extra_32x32.mat"
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        connection.close()

    url = server(answer)
    monkeypatch.setattr(SVHN, "split_list", {k: [url + v[1], *v[1:]] for k, v in SVHN.split_list.items()})
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "test_32x32.mat").write_bytes((theirs / "test_32x32.mat").read_bytes())
    svhn = data.load("svhn", mine, "svhn")
    assert len(svhn.x_train) == 50
    assert sorted(path.name for path in mine.iterdir()) == ["extra_32x32.mat", "test_32x32.mat"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "theirs"]


@pytest.mark.slow
def test_svhn_is_never_in_memory_twice(tmp_path):
    """Reading a file of 100,000 images, 307 MB, takes less than 1.15 times that; torchvision's code takes 2."""
    program = (
        "import hashlib, resource, sys, numpy as np, scipy.io; from pathlib import Path\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "path = Path(sys.argv[1], 'extra_32x32.mat')\n"
        "if sys.argv[2] == 'write':\n"
        "    x = np.repeat(np.random.RandomState(0).randint(0, 256, 4_800_000).astype(np.uint8), 64)\n"
        "    y = np.ones((100_000, 1), np.uint8)\n"
        "    x = np.asfortranarray(x.reshape(100_000, 3, 32, 32).T)\n"
        "    scipy.io.savemat(path, {'X': x, 'y': y}, do_compression=True); sys.exit()\n"
        "from codebase.data import svhn; from torchvision.datasets import SVHN\n"
        "SVHN.split_list = {'extra': ['', path.name, hashlib.md5(path.read_bytes()).hexdigest()]}\n"
        "before = peak(); x, y = svhn.read_file(path); print(peak() - before, x.shape[0])\n"
    )
    for what in ("write", "read"):
        out = printed_by(program, tmp_path, what)
    grown, n = map(int, out.split())
    assert n == 100_000
    assert grown < 1.15 * 100_000 * 3072


def test_unknown_name():
    with pytest.raises(InputError, match="minst: the choices are auto, mnist, svhn, glyphs"):
        data.load("minst", "data")


@pytest.mark.slow
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
