"""Fixtures: small data sets, run scripts called in a temporary folder, and models whose log p(x) is known."""

import hashlib
import os
import runpy
import shutil
import subprocess
import sys
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from crc32c import crc32c
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from torchvision.datasets import SVHN

from codebase import evaluate, pictures
from codebase.models.fsvae import FSVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.train import Adam, train
from codebase.utils import log_mean_exp, log_normal

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)  # the models here are small: several threads would be slower
pywrap_tensorflow.crc32c = crc32c  # TensorBoard's own function is in Python, and slow

# Older versions of PyTorch do not compile loss.backward().
COMPILED = "compiled, ready" if hasattr(torch._dynamo.config, "trace_autograd_ops") else "compiled in parts"

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler")


def pytest_xdist_auto_num_workers(config):
    """The number of processes of -n auto: one per core, at most four, because each takes a second and 500 MB to start.
    0 (only this process) for single tests, and for slow tests, which measure memory and use all cores themselves."""
    few = all("::" in arg for arg in config.args)
    return 0 if few or config.option.markexpr != "not slow" else min(4, os.cpu_count())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # a training sets it


@pytest.fixture
def mnist_dir():
    """The folder of the real MNIST, if there is one: $DATA_DIR, or data/ in the repository."""
    folder = Path(os.environ.get("DATA_DIR", ROOT / "data")).absolute()
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip("no MNIST here; DATA_DIR=... says where it is")
    return folder


def save_digits(path, n_train=300, n_test=120, seed=0, colour=False):
    """An .npz of images that show their labels: a bar, whose place is the label, and noise; grey 28, or colour 32."""
    random = np.random.RandomState(seed)
    arrays = {}
    for split, n in (("train", n_train), ("test", n_test)):
        y = np.arange(n) % 10
        x = random.randint(0, 40, (n, 32, 32, 3) if colour else (n, 28, 28))
        for i, label in enumerate(y):
            x[i, 4:24, 2 * label + 4 : 2 * label + 7] += 200
        arrays |= {f"x_{split}": x.astype(np.uint8), f"y_{split}": y}
    np.savez(path, **arrays)
    return path


def save_svhn(folder, monkeypatch, sizes=(("train", 30), ("extra", 50), ("test", 20)), compressed=True):
    """Files in SVHN's format, and their checksums."""
    folder.mkdir()
    splits = {}
    for i, (split, n) in enumerate(sizes):
        name = f"{split}_32x32.mat"
        x = np.random.RandomState(i).randint(0, 256, (32, 32, 3, n)).astype(np.uint8)
        y = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
        scipy.io.savemat(folder / name, {"X": x, "y": y}, do_compression=compressed)
        md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
        splits[split] = [f"http://127.0.0.1:9/{name}", name, md5]
    monkeypatch.setattr(SVHN, "split_list", splits)
    return folder


@pytest.fixture
def digits(tmp_path):
    """The path of a small .npz data set, in tmp_path."""
    return save_digits(tmp_path / "digits.npz")


@pytest.fixture
def colour_digits(tmp_path):
    return save_digits(tmp_path / "digits.npz", colour=True)


def printed_by(program, *args, cwd=ROOT):
    """What a Python program prints. A shell starts it, because on Linux a process inherits the peak memory, ru_maxrss,
    of the process that starts it."""
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", program, *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """script('run_vae.py', '--z', 2, ...) runs it in tmp_path. Returns (exit code, standard output, standard error).

    The picture of the curves is a black one, and no picture is compressed: both would take longer than the run.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "curves", lambda history: pictures.Picture(np.zeros((4, 6, 3), np.uint8), ""))
    monkeypatch.setattr(Image.Image, "save", partialmethod(Image.Image.save, compress_level=0))

    def call(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        code = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        except KeyboardInterrupt:
            code = 130  # what a shell calls the end by SIGINT
        out, err = capsys.readouterr()
        return code, out, err

    return call


# The run scripts on small data

NUMBER = r"-?\d+\.\d\d ± \d+\.\d\d"
STATES = {"training.pt"}
EVAL = {"eval/nelbo_test", "eval/nelbo_train"}  # the held-out curves


def with_usual(script, digits, iter_save, name, *args):
    """script(name, ...) on these images, with small numbers, unless other ones are given."""
    usual = {"--dataset": digits, "--iter_max": 30, "--iter_save": iter_save, "--batch_size": 50, "--device": "cpu"}
    if "--train" in args and args[args.index("--train") + 1] == 0:
        del usual["--iter_max"]  # it would select a checkpoint
    return script(name, *(x for flag, value in usual.items() if flag not in args for x in (flag, value)), *args)


@pytest.fixture
def few_draws(monkeypatch):
    """The reports of run scripts average the ELBO over two draws of z instead of ten."""
    monkeypatch.setattr(evaluate, "ELBO_SAMPLES", 2)


@pytest.fixture
def on_digits(script, digits, few_draws):
    """on_digits('run_vae.py', '--z', 2, ...): small digits, 30 steps, a checkpoint every 20, unless told otherwise."""
    return partial(with_usual, script, digits, 20)


@pytest.fixture
def vae(on_digits):
    return partial(on_digits, "run_vae.py")


@pytest.fixture
def trained(vae, tmp_path, tmp_path_factory):
    """`vae`, where it has been called once: the checkpoints are of the steps 20 and 30."""
    kept = tmp_path_factory.getbasetemp() / "trained"  # trained once, and then copied
    if kept.exists():
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    else:
        assert vae()[0] == 0
        shutil.copytree(tmp_path, kept)
    return vae


@pytest.fixture
def fsvae(script, colour_digits, few_draws):
    """As `vae`, on small colour digits, a checkpoint every 10 steps."""
    return partial(with_usual, script, colour_digits, 10, "run_fsvae.py")


@pytest.fixture
def folders(tmp_path):
    """The folders of the only run: its checkpoints and its logs."""

    def find():
        (name,) = {path.name for path in (*tmp_path.glob("checkpoints/*"), *tmp_path.glob("logs/*"))}
        return tmp_path / "checkpoints" / name, tmp_path / "logs" / name

    return find


def weights(folder, step):
    return torch.load(folder / f"model-{step:05d}.pt", weights_only=True)


def curves(logs):
    """What TensorBoard shows: {tag: [(step, value), ...]}."""
    events = EventAccumulator(str(logs)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def pictures_shown(logs):
    """The pictures that TensorBoard shows, in its order: {name: [(step, file's bytes), ...]}."""
    events = EventAccumulator(str(logs), size_guidance={"images": 0}).Reload()
    shown = {tag: events.Images(tag) for tag in sorted(events.Tags()["images"])}
    return {tag.split("/")[-1]: [(e.step, e.encoded_image_string) for e in found] for tag, found in shown.items()}


def run_steps(model, batches, n):
    """n steps of the scripts' training, at their learning rate."""
    train(model, batches, n, Adam(model.parameters(), 1e-3))


def saved(folder):
    """The names of what a run has saved."""
    return {path.name for path in folder.glob("*")} - {".lock"}


def contents(folder):
    """All files in a folder, and what they hold."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(a, b):
    """Are two nested structures of dicts, lists and tensors equal?"""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a.equal(b) if isinstance(a, torch.Tensor) else a == b


class Trap:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class LinearGaussian(VAE):
    """A VAE whose log p(x) is known: p(z) = N(0, I), p(x|z) = N(x; W z, s I) with orthogonal columns of W, in float64.

    The true posterior is then N(z; C W'x / s, diag(C)), C = 1 / (1 + diag(W'W) / s); q(z|x) is that, with its mean
    moved by `shift` and its variance multiplied by `widen`.
    """

    is_density = True

    def __init__(self, x_dim=6, z_dim=3, s=0.3, shift=0.0, widen=1.0, iw=1):
        super().__init__(z_dim, iw, x_dim=x_dim)
        columns = torch.linalg.qr(torch.randn(x_dim, z_dim, dtype=torch.float64))[0]
        self.w = columns * torch.arange(1, z_dim + 1)
        self.s, self.shift, self.widen = torch.tensor(s, dtype=torch.float64), shift, widen
        self.double()

    def true_posterior(self, x):
        v = 1 / (1 + self.w.square().sum(0) / self.s)
        m = v * (x @ self.w) / self.s
        return m, v.expand_as(m)

    def posterior(self, x):
        m, v = self.true_posterior(x)
        return m + self.shift, v * self.widen

    def mean_x(self, z):
        return z @ self.w.T

    def log_likelihood(self, x, z):
        return log_normal(x, self.mean_x(z), self.s)

    def draw(self, n):
        """n images from p(x)."""
        z = torch.randn(n, self.w.shape[1], dtype=torch.float64)
        return self.mean_x(z) + self.s.sqrt() * torch.randn(n, len(self.w), dtype=torch.float64)

    sample_x = draw

    def log_p(self, x):
        """log p(x) = log N(x; 0, W W' + s I). (n,)"""
        covariance = self.w @ self.w.T + self.s * torch.eye(len(self.w), dtype=torch.float64)
        zero = torch.zeros(len(self.w), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zero, covariance).log_prob(x)


class GivenLabel:
    """log p(x|y) is known: given y, x minus an offset of that label is as in LinearGaussian; p(y) = 1/C."""

    is_density, mean_x, sample_x = True, None, None

    def __init__(self, classes=3, **linear_gaussian):
        super().__init__(z_dim=3, classes=classes, x_dim=6)
        self.given_y = LinearGaussian(**linear_gaussian)
        self.offsets = torch.randn(classes, 6, dtype=torch.float64)
        self.directions = torch.randn(6, classes, dtype=torch.float64)
        self.double()

    def posterior(self, x, y):
        return self.given_y.posterior(x - y @ self.offsets)

    def log_likelihood(self, x, z, y):
        return self.given_y.log_likelihood(x - y @ self.offsets, z)

    def draw(self, n):
        """n images from p(x|y), for random labels y: (x, y)."""
        y = torch.eye(len(self.offsets), dtype=torch.float64)[torch.randint(len(self.offsets), (n,))]
        return self.given_y.draw(n) + y @ self.offsets, y

    def log_p(self, x, y):
        """log p(x|y). (n,)"""
        return self.given_y.log_p(x - y @ self.offsets)


class ConditionalLinearGaussian(GivenLabel, FSVAE):
    """An FSVAE whose log p(x|y) is known."""


class LabelledLinearGaussian(GivenLabel, SSVAE):
    """An SSVAE whose log p(x) is known. The classifier is an arbitrary one: q(y|x) is not the true posterior."""

    def log_q_y(self, x):
        return (x @ self.directions).log_softmax(-1)

    def draw(self, n):
        """n images from p(x)."""
        return super().draw(n)[0]

    def log_p_given_y(self, x):
        """log p(x|y) of every y. (C, n)"""
        return super().log_p(x, self.every_y)

    def log_p(self, x):
        """log p(x). (n,)"""
        return log_mean_exp(self.log_p_given_y(x), dim=0)
