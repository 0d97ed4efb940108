"""The faster updates do what the plain one does: same losses, same weights, same random numbers; or are not used."""

import contextlib
import copy
import inspect
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import COMPILED, ROOT, needs_compiler, same, save_digits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from codebase import data, fast, matmul_precision
from codebase import train as train_module
from codebase.errors import InputError
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.runs import checkpoints
from codebase.train import Adam, learning_rate, train, training_step

X = torch.randint(0, 256, (60, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
COLOUR = torch.randint(0, 256, (60, 3072), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 10
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def batches_of(model, device):
    x, colour, y = (t.to(device) for t in (X, COLOUR, Y))
    if isinstance(model, FSVAE):
        return data.labelled_batches(colour, y, 10, 20, 0)
    if isinstance(model, SSVAE):
        return data.semi_supervised_batches(x, x[:40], data.one_hot(y[:40], 10), 20, 0)
    return data.binary_batches(x, 20, 0)


def trained(make, steps, device="cpu", faster=False, bfloat16=False):
    """The model and optimizer after some steps from seed 1, the losses, and a random number drawn after them."""
    torch.manual_seed(1)
    model = make().to(device)
    optimizer = Adam(model.parameters(), 1e-3)
    batches = batches_of(model, device)
    update = partial(training_step, model, optimizer, bfloat16=bfloat16)
    batch = batches[0]
    with matmul_precision.float32_outputs(model) if bfloat16 else contextlib.nullcontext():
        if faster:
            update, how = fast.make_faster(update, batch)
            assert how.startswith((COMPILED, "a CUDA graph, ready")), how
        points = [update(batch), *(update(batches[t]) for t in range(1, steps))]
    losses = {tag: torch.stack([point[tag] for point in points]).cpu() for tag in points[0]}
    return model, optimizer, losses, torch.rand(3, device=device)


MODELS = {
    "vae": partial(VAE, z_dim=3),
    "iwae": partial(VAE, z_dim=3, iw=4),
    "gmvae": partial(GMVAE, z_dim=3, k=20),
    "ssvae": partial(SSVAE, z_dim=3),
    "supervised": partial(SSVAE, gen_weight=0, z_dim=3),
    "fsvae": partial(FSVAE, z_dim=3),
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_losses_weights_and_moments_from_the_same_seed(name, device, tmp_path):
    plain, plain_adam, expected, drawn = trained(MODELS[name], 30, device)
    model, optimizer, losses, drawn_too = trained(MODELS[name], 30, device, faster=True)
    assert list(losses) == list(expected)
    for tag in losses:
        torch.testing.assert_close(losses[tag], expected[tag], rtol=1e-4, atol=1e-3)
    assert drawn.equal(drawn_too)
    torch.manual_seed(1)
    p, q, began = (nn.utils.parameters_to_vector(m.parameters()) for m in (model, plain, MODELS[name]().to(device)))
    # The norm over all weights: if a gradient is only rounding noise, Adam still makes a full step.
    assert (p - q).norm() <= 1e-2 * (q - began).norm()
    states, plain_states = optimizer.state_dict()["state"], plain_adam.state_dict()["state"]
    assert optimizer.param_groups[0]["t"] == 30
    for i, state in states.items():
        found, wanted = state["exp_avg"].flatten(), plain_states[i]["exp_avg"].flatten()
        assert torch.cosine_similarity(found, wanted, 0) > 0.999 or wanted.norm() == 0  # 0: no gradient (--gw 0)
        assert found.norm() > 0 or wanted.norm() == 0
    # The training can continue from its state.
    checkpoints.save(tmp_path, 30, model, optimizer, {}, 0.0)
    other = MODELS[name]().to(device)
    assert checkpoints.resume(tmp_path, other, Adam(other.parameters(), 1e-3), {})[0] == 30


@needs_compiler
@pytest.mark.slow
def test_compiled_in_bfloat16():
    _, _, exact, _ = trained(MODELS["vae"], 30)
    _, _, expected, _ = trained(MODELS["vae"], 30, bfloat16=True)
    _, _, losses, _ = trained(MODELS["vae"], 30, faster=True, bfloat16=True)
    for tag in losses:
        torch.testing.assert_close(losses[tag], expected[tag], rtol=3e-3, atol=3e-2)
    assert not losses["gen/rec"].equal(exact["gen/rec"])
    torch.testing.assert_close(losses["gen/rec"], exact["gen/rec"], rtol=1e-2, atol=0)


class Dtypes(TorchDispatchMode):
    """Inside: the operations that are computed, and the types of their results, {name: {types}}."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        for each in results if isinstance(results, (tuple, list)) else [results]:
            self.of.setdefault(operation.overloadpacket.__name__, set()).add(each.dtype)
        return results


@pytest.mark.parametrize("bfloat16", [False, True])
def test_bfloat16_rounds_the_factors_of_products_and_nothing_else(bfloat16):
    """The loss in the plain update: the networks' products are in bfloat16; all else, the mixture's product too,
    is not."""
    torch.manual_seed(0)
    model = GMVAE(z_dim=3, k=20)
    batch, loss, seen = batches_of(model, "cpu")[0], model.loss, Dtypes()

    def watched(*batch):
        with seen:
            return loss(*batch)

    model.loss = watched
    with matmul_precision.float32_outputs(model) if bfloat16 else contextlib.nullcontext():
        point = training_step(model, Adam(model.parameters(), 1e-9), batch, bfloat16)
    products = {torch.bfloat16 if bfloat16 else torch.float32}
    assert seen.of["addmm"] == products
    assert seen.of["mm"] == {torch.float64}  # the mixture's
    rounded = {name for name, types in seen.of.items() if torch.bfloat16 in types}
    assert rounded == ({"addmm", "_to_copy", "t"} if bfloat16 else set())  # factors are copied, weights transposed
    assert all(value.dtype == torch.float32 for value in point.values())


def test_outside_an_update_the_products_of_a_model_that_is_cast_back_are_its_own():
    model = GMVAE(z_dim=3, k=20)
    x, z = batches_of(model, "cpu")[0][0], torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16), matmul_precision.float32_outputs(model):
        assert model.enc(x).dtype == torch.float32
        rounded = model.log_prior(z)
    assert rounded.equal(model.log_prior(z))


OPTIMIZERS = {"Adam": Adam, "of torch.optim": partial(torch.optim.Adam, lr=1e-3)}


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trying_it_changes_nothing(name, started):
    """A faster update that fails half-way, or computes other numbers, is rejected with a reason, and has no effect."""
    torch.manual_seed(0)
    model = VAE(z_dim=3)
    optimizer = OPTIMIZERS[name](model.parameters())
    batch = batches_of(model, "cpu")[0]
    update = partial(training_step, model, optimizer)
    if started:
        update(batch)
    before, random = copy.deepcopy((model.state_dict(), optimizer.state_dict())), torch.get_rng_state()

    def wrong(update, batch):
        def wrong_update(batch):
            point = update(batch)
            with torch.no_grad():
                model.dec.net[4].bias.add_(0.3)  # visible only in the second loss
            return point

        return wrong_update

    def failing(update, batch):
        def failing_update(batch):
            update(batch)
            raise RuntimeError("no compiler\nand a long story")

        return failing_update

    for broken, reason in ((wrong, "ArithmeticError: its losses are"), (failing, "RuntimeError: no compiler)")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fast, "compiled", broken)
            patch.setattr(fast, "loss_compiled", broken)
            chosen, how = fast.make_faster(update, batch)
        assert chosen is update
        assert how.startswith(f"the plain one, because the faster one fails ({reason}")
        assert "story" not in how
        assert torch.get_rng_state().equal(random)
        after = model.state_dict(), optimizer.state_dict()
        torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_when_it_is_worth_compiling():
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    assert not fast.worth_compiling(cpu, fast.COMPILED_FROM - 1)
    assert fast.worth_compiling(cpu, fast.COMPILED_FROM)
    assert fast.worth_compiling(cuda, 1)
    assert not fast.worth_compiling(mps, 10**6)


# An edit of the step has an effect in the plain, the compiled and the recorded step


def edited(before="", after=""):
    """The source of training_step with lines before and after that of the optimizer, as a reader would add them."""
    source, line = inspect.getsource(training_step), "    optimizer.step()\n"
    assert source.count(line) == 1
    return source.replace(line, before + line + after)


def made_of(source):
    names = dict(vars(train_module))
    exec(source, names)
    return names["training_step"]


CLIPPED = edited(before="    torch.nn.utils.clip_grad_norm_(model.parameters(), 1)\n")
AVERAGED = edited(after="    with torch.no_grad():\n        model.average.lerp_(model.enc.net[4].bias, 0.1)\n")


class WarmUp(VAE):
    """Its loss, and a curve, have a weight that grows from 0 to 1 in the first 40 steps of training."""

    def loss(self, x):
        _, kl, rec = self.negative_elbo_bound(x)
        weight = (self.step / 40).clamp(max=1)
        return rec + weight * kl, {"train/weight": weight}


class Averaged(VAE):
    """Has a place for a running average of a bias."""

    def __init__(self):
        super().__init__(z_dim=3)
        self.register_buffer("average", torch.zeros(6))


EDITS = {  # step, model, optimizer, schedule; the first is the unedited one
    "none": (training_step, partial(VAE, z_dim=3), Adam, "constant"),
    "clipping": (made_of(CLIPPED), partial(VAE, z_dim=3), Adam, "constant"),
    "average": (made_of(AVERAGED), Averaged, Adam, "constant"),
    "AdamW": (training_step, partial(VAE, z_dim=3), partial(Adam, weight_decay=1), "constant"),
    "schedule": (training_step, partial(VAE, z_dim=3), Adam, "cosine"),
    "warm-up": (training_step, partial(WarmUp, z_dim=3), Adam, "constant"),
    "torch.optim": (training_step, partial(VAE, z_dim=3), partial(torch.optim.SGD, lr=1e-3, momentum=0.9), "constant"),
}


def trained_with(edit, device, faster):
    """The model's state_dict after 50 steps from seed 1."""
    step, make, optimizer_of, schedule = EDITS[edit]
    torch.manual_seed(1)
    model = make().to(device)
    optimizer = optimizer_of(model.parameters())
    batches = batches_of(model, device)
    update = partial(step, model, optimizer)
    if faster:
        update, how = fast.make_faster(update, batches_of(model, device)[0])
        assert how.startswith(("its loss compiled" if edit == "torch.optim" else COMPILED, "a CUDA graph, ready")), how
    torch.manual_seed(2)
    rate = learning_rate(1e-3, schedule, 50, steps_per_epoch=10)
    nothing = {"iter_max": 50, "iter_save": 50, "save": lambda step: None, "log": lambda step, values: None}
    train(model, batches, optimizer, update=update, rate=rate, **nothing)
    return model.state_dict()


@needs_compiler
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "edit", [name if name == "clipping" else pytest.param(name, marks=pytest.mark.slow) for name in list(EDITS)[1:]]
)
def test_an_edit_of_the_step_is_what_runs(edit, device):
    """The edited step gives the same weights plain and faster, and others than the unedited one. With clipping this is
    the one compilation that is tested by default."""
    if device == "cuda" and edit == "torch.optim":
        pytest.skip("its state is made too late for a graph, and the run says so")
    plain, faster, unedited = (
        trained_with(*how) for how in ((edit, device, 0), (edit, device, 1), ("none", device, 0))
    )
    unedited |= {key: torch.zeros_like(value) for key, value in plain.items() if key not in unedited}

    def distance(a, b):
        return sum((a[key] - b[key]).square().sum() for key in plain).sqrt()

    moved = distance(plain, unedited)
    assert moved > 1e-2
    assert distance(faster, plain) < 0.05 * moved


@needs_compiler
@pytest.mark.slow
def test_an_edit_reaches_a_run(tmp_path):
    """run_vae.py of an edited copy: --fast 1 gives what --fast 0 gives, and not what the original gives."""
    copy_of_all = tmp_path / "edited"
    shutil.copytree(ROOT / "codebase", copy_of_all / "codebase")
    shutil.copy(ROOT / "run_vae.py", copy_of_all)
    path = copy_of_all / Path(inspect.getsourcefile(training_step)).relative_to(ROOT)
    path.write_text(path.read_text().replace(inspect.getsource(training_step), CLIPPED))
    save_digits(tmp_path / "digits.npz")
    args = ["--dataset", "digits.npz", "--iter_max", 50, "--z", 2, "--batch_size", 20, "--device", "cpu", "--seed", 0]
    ended = []
    for run, (folder, faster) in enumerate(((ROOT, 0), (copy_of_all, 0), (copy_of_all, 1))):
        command = [sys.executable, folder / "run_vae.py", *args, "--fast", faster, "--run", run]
        done = subprocess.run([*map(str, command)], cwd=tmp_path, check=True, capture_output=True, text=True)
        assert (f"update       {COMPILED}" in done.stdout) == faster, done.stdout
        (path,) = tmp_path.glob(f"checkpoints/*run={run:04d}/model-00050.pt")
        ended.append(nn.utils.parameters_to_vector(torch.load(path).values()))
    unedited, plain, compiled = ended
    assert (plain - unedited).norm() > 1e-2
    assert (compiled - plain).norm() < 0.05 * (plain - unedited).norm()


class Counting(VAE):
    """Its loss grows with a Python number, which a compiled step must see change."""

    def __init__(self):
        super().__init__(z_dim=3)
        self.weight = 1.0

    def loss(self, x):
        loss, curves = super().loss(x)
        return loss * self.weight, curves


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_went_out_of_date_stops_the_run(device, monkeypatch):
    """A Python number that changes after the step was recorded with its first value."""
    torch.manual_seed(0)
    model = Counting().to(device)
    batch = batches_of(model, device)[0]
    update = partial(training_step, model, Adam(model.parameters()))
    if device == "cuda":
        faster, how = fast.make_faster(update, batch)
        assert how.startswith("a CUDA graph, ready"), how
    else:

        def faster(batch):  # what a recording does
            weight, model.weight = model.weight, 1.0
            point = update(batch)
            model.weight = weight
            return point

    fast.check(faster, update, batch, 7)
    model.weight = 2.0
    with pytest.raises(InputError, match=r"after step 7 the faster update differs from training_step: its losses are"):
        fast.check(faster, update, batch, 7)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_step_sees_a_python_number_change():
    torch.manual_seed(0)
    model = Counting()
    batch = batches_of(model, "cpu")[0]
    update = partial(training_step, model, Adam(model.parameters()))
    faster, how = fast.make_faster(update, batch)
    assert how.startswith(COMPILED), how
    for weight in (1.0, 2.0, 3.5, 4.25):
        model.weight = weight
        fast.check(faster, update, batch, 7)


@pytest.mark.parametrize("faster", [False, pytest.param(True, marks=[needs_compiler, pytest.mark.slow])])
def test_what_changes_during_training_sees_the_step(faster):
    """In the plain and in the compiled update, and if training resumes from a later step."""
    torch.manual_seed(1)
    model = WarmUp(z_dim=3)
    optimizer, batches, logged = Adam(model.parameters(), 1e-3), batches_of(model, "cpu"), {}
    update = partial(training_step, model, optimizer)
    if faster:
        update, how = fast.make_faster(update, batches[0])
        assert how.startswith(COMPILED), how
    for start, iter_max in ((0, 1), (1, 11), (30, 31), (31, 60)):
        train(
            model,
            batches,
            optimizer,
            update=update,
            start=start,
            iter_max=iter_max,
            iter_save=100,
            save=lambda step: None,
            log=lambda step, values: logged.update({step: values["train/weight"]}),
        )
    assert logged == pytest.approx({1: 0, 11: 10 / 40, 31: 30 / 40, 60: 1})
    assert "step" not in model.state_dict()


def test_trying_it_leaves_buffers_alone():
    """The running statistics of BatchNorm are not moved by the dry run."""
    torch.manual_seed(0)
    enc = nn.Sequential(nn.Linear(784, 6), nn.BatchNorm1d(6))
    model = VAE(z_dim=3, enc=enc)
    before = copy.deepcopy(model.state_dict())
    update = partial(training_step, model, Adam(model.parameters(), 1e-3))
    fast.dry_run(update, batches_of(model, "cpu")[0])
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@needs_compiler
@pytest.mark.slow
def test_a_run_that_is_compiled(script, tmp_path, monkeypatch):
    """The same as the plain run up to rounding; resumed, the same bit for bit; and no compilation is done twice."""
    save_digits(tmp_path / "digits.npz")
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    ended = {}
    for run, parts in (("plain", [40]), ("whole", [40]), ("parts", [10, 40])):
        monkeypatch.chdir(tmp_path.joinpath(run).absolute() if (tmp_path / run).mkdir() is None else None)
        for iter_max in parts:
            args = ["--dataset", tmp_path / "digits.npz", "--iter_max", iter_max, "--iter_save", 10, "--z", 2]
            more = ["--fast", 0 if run == "plain" else 1, "--resume", int(iter_max != parts[0])]
            code, out, err = script("run_vae.py", *args, *more, "--batch_size", 20, "--device", "cpu")
            assert code == 0, err
            assert (f"update       {COMPILED} after" in out) == (run != "plain"), out
        (path,) = (tmp_path / run / "checkpoints").glob("*/model-00040.pt")
        ended[run] = torch.load(path)
    assert "update" not in script("run_vae.py", *args, *more, "--batch_size", 20, "--device", "cpu")[1]  # nothing to do
    torch.testing.assert_close(ended["whole"], ended["plain"], rtol=1e-3, atol=1e-4)
    for key, value in ended["whole"].items():
        assert value.equal(ended["parts"][key])


def test_a_run_by_a_faster_update_without_the_compilers_minute(script, tmp_path, monkeypatch):
    """A compiler that hands back what it gets: the run says that it is compiled, and gives what --fast 0 gives."""
    save_digits(tmp_path / "digits.npz")
    monkeypatch.setattr(fast, "torch_compile", lambda function: function)
    args = ["--dataset", tmp_path / "digits.npz", "--iter_max", 30, "--z", 2, "--batch_size", 20, "--device", "cpu"]
    ended = []
    for faster in (0, 1):
        code, out, _ = script("run_vae.py", *args, "--fast", faster, "--overwrite", 1)
        assert code == 0
        assert (f"update       {COMPILED} after 0 s" in out) == faster, out
        (path,) = tmp_path.glob("checkpoints/*/model-00030.pt")
        ended.append(torch.load(path))
    assert same(*ended)


def test_without_a_compiler_a_run_says_so_once_and_goes_on(script, tmp_path, monkeypatch):
    save_digits(tmp_path / "digits.npz")

    def without(*args, **how):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(fast, "torch_compile", without)
    args = ["--dataset", tmp_path / "digits.npz", "--iter_max", 3, "--z", 2, "--batch_size", 20, "--device", "cpu"]
    code, out, _ = script("run_vae.py", *args, "--fast", 1)
    assert code == 0
    assert out.count("the plain one, because the faster one fails (RuntimeError: No working C++ compiler found)") == 1
    assert "trained 3 steps" in out


def test_the_precision_of_a_run(script, tmp_path, monkeypatch):
    """--precision says how its products are computed, and is part of its name if it is not the default."""
    save_digits(tmp_path / "digits.npz")
    monkeypatch.setattr(matmul_precision, "cpu_has_bfloat16", lambda: True)
    args = ["--dataset", tmp_path / "digits.npz", "--iter_max", 5, "--z", 2, "--batch_size", 20, "--device", "cpu"]
    images = data.load(str(tmp_path / "digits.npz"), "")
    ended = {}
    for choice, name in (("medium", "batch=20_run"), ("highest", "batch=20_precision=highest_run")):
        code, _, err = script("run_vae.py", *args, "--precision", choice)
        assert code == 0, err
        (path,) = tmp_path.glob(f"checkpoints/*_{name}=0000/model-00005.pt")
        torch.manual_seed(0)
        model = VAE(z_dim=2)
        optimizer = Adam(model.parameters(), 1e-3)
        with matmul_precision.float32_outputs(model):
            for t in range(5):
                training_step(
                    model, optimizer, data.binary_batches(images.x_train, 20, 0)[t], bfloat16=choice == "medium"
                )
        ended[choice] = torch.load(path)
        torch.testing.assert_close(ended[choice], model.state_dict(), rtol=1e-4, atol=1e-5)
    assert not ended["medium"]["dec.net.2.weight"].equal(ended["highest"]["dec.net.2.weight"])
