"""The flags: every error is a sentence and code 2. Errors of the parser are tested on it, the others on a script."""

import runpy

import pytest
import torch
from conftest import ROOT, contents

from codebase.errors import InputError
from codebase.runs.flags import IW, SHARED_FLAGS, parse_flags

SCRIPTS = ["run_vae.py", "run_gmvae.py", "run_ssvae.py", "run_fsvae.py"]
OWN = {script: runpy.run_path(str(ROOT / script))["FLAGS"] for script in SCRIPTS}


def parsed(*args, own_flags=(), **defaults):
    return parse_flags("", own_flags, [str(word) for word in args], **defaults)


WHOLE, ABOVE_0 = "is not a whole number, 0 or more", "is not a whole number, 1 or more"


@pytest.mark.parametrize(
    ("own_flags", "args", "complaint"),
    [
        ([], ("--iter_max", 0), f"--iter_max: '0' {ABOVE_0}"),
        ([], ("--batch_size", "ten"), f"--batch_size: 'ten' {ABOVE_0}"),
        ([], ("--run", -1), f"--run: '-1' {WHOLE}"),
        ([], ("--seed", 1.5), f"--seed: '1.5' {WHOLE}"),
        ([], ("--lr", "nan"), "--lr: 'nan' is not a number above 0"),
        ([], ("--lr", 0), "--lr: '0' is not a number above 0"),
        ([], ("--lr_schedule", "linear"), "--lr_schedule: 'linear' is not constant, cosine, burda, or steps"),
        ([], ("--lr_schedule", "100,0"), "--lr_schedule: '100,0' is not constant"),
        ([], ("--iw_eval", "10,0"), "--iw_eval: '10,0' is not a list of whole numbers, 1 or more"),
        ([], ("--train", 3), "--train: invalid choice: 3"),
        ([], ("--full", "yes"), "--full: invalid int value: 'yes'"),
        ([], ("--device", "tpu"), "--device: invalid choice: 'tpu'"),
        ([], ("--zz", 1), "unrecognized arguments: --zz 1; --help lists"),
        ([], ("--iter-max=5",), "--iter-max=5; did you mean --iter_max?"),
        ([], ("-Run", 1), "did you mean --run?"),
        ([], ("--iter", 1), "unrecognized arguments: --iter 1"),
        ([], ("--resume", 1, "--overwrite", 1), "give one of them"),
        (OWN["run_vae.py"], ("--z", 0), f"--z: '0' {ABOVE_0}"),
        (OWN["run_vae.py"], ("--iw", 0), f"--iw: '0' {ABOVE_0}"),
        (OWN["run_ssvae.py"], ("--iw", 5), "unrecognized arguments: --iw"),
        (OWN["run_ssvae.py"], ("--gw", -1), "--gw: '-1' is not a number, 0 or more"),
        (OWN["run_ssvae.py"], ("--cw", "inf"), "--cw: 'inf' is not a number, 0 or more"),
    ],
)
def test_complaints_of_the_parser(capsys, own_flags, args, complaint):
    with pytest.raises(InputError) as error:
        parsed(*args, own_flags=own_flags)
    assert complaint in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_what_the_flags_imply():
    assert parsed("--run", 3).seed == 3
    assert parsed("--iw_eval", "100,1,10").iw_eval == [1, 10, 100]
    file = parsed("--checkpoint", __file__, "--train", 2, "--iter_max", 5)
    assert (file.train, file.checkpoint) == (0, __file__)  # it is evaluated, not trained
    second = parsed("--run", 3, "--seed", 7, "--replicates", 2).of_run(1)
    assert (second.run, second.seed) == (4, 8)
    assert parsed("--train", 0, "--resume", 1, "--iter_max", 10**16).step == 10**16  # no errors


@pytest.mark.parametrize(("value", "expected"), [("my data", "my data"), ("", None)])
def test_data_dir_is_by_default_that_of_the_environment(monkeypatch, value, expected):
    monkeypatch.setenv("DATA_DIR", value)
    assert parsed().data_dir == expected


def test_a_script_has_defaults_of_its_own():
    defaults = {"iter_max": 30000, "iw": 5}
    flags = parsed(own_flags=[IW], **defaults)
    assert (flags.iter_max, flags.step, flags.iw) == (30000, None, 5)
    flags = parsed("--iter_max", 20, "--iw", 1, own_flags=[IW], **defaults)
    assert (flags.iter_max, flags.step, flags.iw) == (20, 20, 1)
    assert parsed(own_flags=[IW]).iter_max == 20000


@pytest.mark.parametrize(
    ("name", "args", "complaint"),
    [
        # Errors of the parser, at least one for each script.
        ("run_vae.py", ("--z", 0), "run_vae.py: error: argument --z: '0' is not"),
        ("run_vae.py", ("--checkpoint", "x.pt"), "argument --checkpoint: 'x.pt' is not a file"),
        ("run_gmvae.py", ("--k", 0), "run_gmvae.py: error: argument --k: '0' is not"),
        ("run_ssvae.py", ("--gw", -1), "run_ssvae.py: error: argument --gw: '-1' is not"),
        ("run_fsvae.py", ("--split", "test"), "run_fsvae.py: error: argument --split: invalid choice: 'test'"),
        # Errors that depend on the data and the files.
        ("run_vae.py", ("--train", 0), "_run=0000 has no model-*.pt: train first (there is no other run of this"),
        ("run_vae.py", ("--batch_size", 301), "--batch_size 301 is more than the 300 training images"),
        ("run_vae.py", ("--dataset", "absent.npz"), "absent.npz is not a readable .npz file"),
        ("run_vae.py", ("--dataset", "cifar"), "--dataset cifar: the choices are auto, mnist, svhn, glyphs"),
        ("run_ssvae.py", ("--gw", 0, "--cw", 0), "--gw 0 --cw 0 leave nothing to train"),
        ("run_ssvae.py", ("--labels", 15), "--labels 15 is not a multiple of 10"),
        ("run_fsvae.py", ("--split", "train"), "--split train is for SVHN: it cannot be used with --dat"),
    ],
)
def test_a_complaint_ends_a_script_with_code_2_and_nothing_is_written(on_digits, tmp_path, name, args, complaint):
    code, _, err = on_digits(name, *args)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"digits.npz"}


def test_an_evaluation_with_overwrite_deletes_nothing(vae, folders):
    assert vae("--iter_max", 5)[0] == 0
    before = contents(folders()[0])
    assert vae("--train", 0, "--overwrite", 1, "--iw_eval", 2)[0] == 0
    assert contents(folders()[0]) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(vae):
    code, _, err = vae("--device", "cuda")
    assert code == 2
    assert "--device cuda: PyTorch" in err


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_every_flag_with_its_default(script, name):
    own = {"run_ssvae.py": {"iter_max": 30000}, "run_fsvae.py": {"iter_max": 1_000_000, "hidden": 500}}
    code, out, _ = script(name, "--help")
    assert code == 0
    shown = {line.split()[0]: " ".join(line.split()) for line in out.replace("\n    ", "").splitlines() if line}
    for flag, default, *_ in [*OWN[name], *SHARED_FLAGS]:
        default = own.get(name, {}).get(flag, default)
        assert f"--{flag}" in shown
        assert default is None or f"(default: {default})" in shown[f"--{flag}"]
