"""The compiled step does what the plain one does: same losses, same weights, same random numbers; or is not used."""

import copy
import inspect
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import COMPILED, ROOT, needs_compiler, printed_by, same, save_digits
from torch import nn

from codebase import data, fast
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.precision import training_precision
from codebase.runs import checkpoints
from codebase.train import Adam, learning_rate, set_rate, train, training_step, updates

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


def compiled(step, model, optimizer, batch, how=COMPILED):
    """The step, compiled; it must be."""
    quick, words = fast.faster(step, model, optimizer, batch)
    assert words.startswith(how), words
    return quick


def trained(make, steps, device="cpu", faster=False, precision="float32"):
    """The model and optimizer after some steps from seed 1, the losses, and a random number drawn after them."""
    torch.manual_seed(1)
    model = make().to(device)
    optimizer = Adam(model.parameters(), 1e-3)
    batches = batches_of(model, device)
    batch = batches[0]
    with training_precision(model, precision):
        step = compiled(training_step, model, optimizer, batch) if faster else training_step
        points = [step(model, optimizer, batch), *(step(model, optimizer, batches[t]) for t in range(1, steps))]
    losses = {tag: torch.stack([point[tag] for point in points]).cpu() for tag in points[0]}
    return model, optimizer, losses, torch.rand(3, device=device)


MODELS = {
    "vae": partial(VAE, z_dim=3),
    "gmvae": partial(GMVAE, z_dim=3, k=20),
    "ssvae": partial(SSVAE, z_dim=3),
    "fsvae": partial(FSVAE, z_dim=3),
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["vae", "gmvae", "ssvae", "fsvae"])
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
    checkpoints.save(tmp_path, checkpoints.Progress(30), model, optimizer, {})
    other = MODELS[name]().to(device)
    assert checkpoints.resume(tmp_path, other, Adam(other.parameters(), 1e-3), {}).step == 30


@needs_compiler
@pytest.mark.slow
def test_compiled_in_bfloat16():
    _, _, exact, _ = trained(MODELS["vae"], 8)
    _, _, expected, _ = trained(MODELS["vae"], 8, precision="bfloat16")
    _, _, losses, _ = trained(MODELS["vae"], 8, faster=True, precision="bfloat16")
    for tag in losses:
        torch.testing.assert_close(losses[tag], expected[tag], rtol=3e-3, atol=3e-2)
    assert not losses["gen/rec"].equal(exact["gen/rec"])
    torch.testing.assert_close(losses["gen/rec"], exact["gen/rec"], rtol=1e-2, atol=0)


OPTIMIZERS = {"Adam": Adam, "of torch.optim": partial(torch.optim.Adam, lr=1e-3)}


def wrong_weight(model):
    model.dec.net[4].bias.add_(0.01)


def wrong_buffer(model):
    model.step.add_(1)


def scaled_gradient(model):
    """What a hook on a parameter does that a compiled step ignores: Adam's first steps hardly depend on the scale."""
    model.dec.net[4].bias.grad.mul_(3)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("change", [wrong_weight, wrong_buffer, scaled_gradient])
def test_a_step_that_does_something_else_is_not_used_and_changes_nothing(name, started, change):
    """In a weight, a buffer, or only the optimizer's state. The reason is given, and all is as before."""
    torch.manual_seed(0)
    model = VAE(z_dim=3)
    optimizer = OPTIMIZERS[name](model.parameters())
    batch = batches_of(model, "cpu")[0]
    if started:
        training_step(model, optimizer, batch)
    before, random = copy.deepcopy((model.state_dict(), optimizer.state_dict())), torch.get_rng_state()

    def wrong(step, model, optimizer, whole):
        def wrong_step(model, optimizer, batch):
            step_of = optimizer.step

            def changed():
                with torch.no_grad():
                    change(model)
                step_of()

            optimizer.step = changed
            try:
                return step(model, optimizer, batch)
            finally:
                del optimizer.step

        return wrong_step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "compiled", wrong)
        chosen, how = fast.faster(training_step, model, optimizer, batch)
    assert chosen is training_step
    assert how.startswith("not compiled: the plain step (ArithmeticError: "), how
    assert "is allowed)" in how
    assert torch.get_rng_state().equal(random)
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)


def test_another_curve_is_noticed(monkeypatch):
    model = VAE(z_dim=3)
    args = model, Adam(model.parameters()), batches_of(model, "cpu")[0]

    def wrong(step, model, optimizer, whole):
        return lambda *args: {tag: value + (tag == "gen/rec") for tag, value in step(*args).items()}

    monkeypatch.setattr(fast, "compiled", wrong)
    assert "ArithmeticError: gen/rec of step 1 differs by 1 where" in fast.faster(training_step, *args)[1]


def test_a_step_that_fails_half_way_has_no_effect():
    torch.manual_seed(0)
    model = VAE(z_dim=3)
    args = model, Adam(model.parameters()), batches_of(model, "cpu")[0]
    before = copy.deepcopy((model.state_dict(), args[1].state_dict()))

    def failing(step, model, optimizer, whole):
        def failing_step(*args):
            step(*args)
            raise RuntimeError("no compiler\nand a long story")

        return failing_step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "compiled", failing)
        chosen, how = fast.faster(training_step, *args)
    assert (chosen, how) == (training_step, "not compiled: the plain step (RuntimeError: no compiler)")
    torch.testing.assert_close((model.state_dict(), args[1].state_dict()), before, rtol=0, atol=0)


def test_when_it_is_worth_compiling():
    for device, steps, worth in (("cpu", -1, False), ("cpu", 0, True), ("cuda", 0, True), ("mps", 10**6, False)):
        assert fast.worth_compiling(torch.device(device), fast.COMPILED_FROM + steps) == worth


# An edit of the step has an effect in the plain and in the compiled step


def edited(before="", after=""):
    """The source of training_step with lines before and after that of the optimizer, as a reader would add them."""
    source, line = inspect.getsource(training_step), "    optimizer.step()\n"
    assert source.count(line) == 1
    return source.replace(line, before + line + after)


def made_of(source):
    names = dict(vars(sys.modules["codebase.train"]))
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


EDITS = {  # step, model, optimizer, schedule; the first is the unedited one, the last has its own test
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
    if faster:
        how = "compiled in parts" if edit == "torch.optim" else COMPILED
        step = compiled(step, model, optimizer, batches_of(model, device)[0], how)
    torch.manual_seed(2)
    rate = learning_rate(1e-3, schedule, 50, steps_per_epoch=10)
    rate = rate or (lambda t: optimizer.param_groups[0]["lr"])
    set_rate(optimizer, rate(0))
    for t, _ in updates(model, batches, range(50), optimizer, step):
        set_rate(optimizer, rate(t))
    return model.state_dict()


@needs_compiler
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "edit", [name if name == "clipping" else pytest.param(name, marks=pytest.mark.slow) for name in list(EDITS)[1:-1]]
)
def test_an_edit_of_the_step_is_what_runs(edit, device):
    """The edited step gives the same weights plain and faster, and others than the unedited one. With clipping this is
    the one compilation that is tested by default."""
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
def test_a_step_of_an_optimizer_of_torch_is_compiled_in_parts():
    """In another process: once PyTorch has compiled a whole step, it cannot compile one in parts."""
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_fast
ways = ("torch.optim", "cpu", 0), ("torch.optim", "cpu", 1), ("none", "cpu", 0)
plain, faster, unedited = (test_fast.trained_with(*how) for how in ways)
print(*(sum((plain[key] - other[key]).square().sum() for key in plain).sqrt().item() for other in (faster, unedited)))
"""
    off, moved = map(float, printed_by(program).split())
    assert moved > 1e-2
    assert off < 0.05 * moved


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


@needs_compiler
@pytest.mark.slow
def test_a_compiled_step_sees_a_python_number_change():
    torch.manual_seed(0)
    model = Counting()
    args = model, Adam(model.parameters()), batches_of(model, "cpu")[0]
    quick = compiled(training_step, *args)
    for weight in (1.0, 2.0, 3.5, 4.25):
        model.weight = weight
        fast.compare(fast.changes(quick, *args), fast.changes(training_step, *args))


@needs_compiler
@pytest.mark.slow
def test_a_hook_on_a_parameter_is_obeyed_or_the_step_is_plain():
    torch.manual_seed(0)
    model = VAE(z_dim=3)
    model.dec.net[4].bias.register_hook(lambda gradient: 3 * gradient)
    args = model, Adam(model.parameters()), batches_of(model, "cpu")[0]
    chosen, _ = fast.faster(training_step, *args)
    fast.compare(fast.changes(chosen, *args), fast.changes(training_step, *args))


@pytest.mark.parametrize("faster", [False, pytest.param(True, marks=[needs_compiler, pytest.mark.slow])])
def test_what_changes_during_training_sees_the_step(faster):
    """In the plain and in the compiled step, and if training resumes from a later step."""
    torch.manual_seed(1)
    model = WarmUp(z_dim=3)
    optimizer, batches = Adam(model.parameters(), 1e-3), batches_of(model, "cpu")
    step = compiled(training_step, model, optimizer, batches[0]) if faster else training_step
    seen = {}
    for steps in (range(0, 11), range(30, 60)):
        seen |= {t: point["train/weight"] for t, point in updates(model, batches, steps, optimizer, step)}
    assert [float(seen[t]) for t in (1, 11, 31, 60)] == pytest.approx([0, 10 / 40, 30 / 40, 1])
    assert "step" not in model.state_dict()


def test_trying_it_leaves_every_group_of_the_optimizer_alone():
    model = VAE(z_dim=3)
    optimizer = Adam([{"params": model.enc.parameters()}, {"params": model.dec.parameters()}])
    fast.changes(training_step, model, optimizer, batches_of(model, "cpu")[0])
    assert [float(group["t"]) for group in optimizer.param_groups] == [0, 0]


def test_trying_it_leaves_buffers_alone():
    """The running statistics of BatchNorm are not moved by the comparison."""
    torch.manual_seed(0)
    enc = nn.Sequential(nn.Linear(784, 6), nn.BatchNorm1d(6))
    model = VAE(z_dim=3, enc=enc)
    before = copy.deepcopy(model.state_dict())
    found = fast.changes(training_step, model, Adam(model.parameters(), 1e-3), batches_of(model, "cpu")[0])
    assert not found["enc.1.running_mean"][0].equal(found["enc.1.running_mean"][1])
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
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
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

    monkeypatch.setattr(torch, "compile", without)
    args = ["--dataset", tmp_path / "digits.npz", "--iter_max", 3, "--z", 2, "--batch_size", 20, "--device", "cpu"]
    code, out, _ = script("run_vae.py", *args, "--fast", 1)
    assert code == 0
    assert out.count("not compiled: the plain step (RuntimeError: No working C++ compiler found)") == 1
    assert "trained 3 steps" in out


def test_the_precision_of_a_run(script, tmp_path):
    """--precision says how its products are computed, and is part of its name if it is not the default."""
    save_digits(tmp_path / "digits.npz")
    args = ["--dataset", tmp_path / "digits.npz", "--iter_max", 5, "--z", 2, "--batch_size", 20, "--device", "cpu"]
    images = data.load(str(tmp_path / "digits.npz"), "")
    ended = {}
    for choice, name in (("bfloat16", "batch=20_precision=bfloat16_run"), ("float32", "batch=20_run")):
        code, _, err = script("run_vae.py", *args, "--precision", choice)
        assert code == 0, err
        (path,) = tmp_path.glob(f"checkpoints/*_{name}=0000/model-00005.pt")
        torch.manual_seed(0)
        model = VAE(z_dim=2)
        with training_precision(model, choice):
            train(model, data.binary_batches(images.x_train, 20, 0), 5)
        ended[choice] = torch.load(path)
        torch.testing.assert_close(ended[choice], model.state_dict(), rtol=1e-4, atol=1e-5)
    assert not ended["bfloat16"]["dec.net.2.weight"].equal(ended["float32"]["dec.net.2.weight"])
