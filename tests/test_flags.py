"""The flags: every error is a sentence and code 2. Errors of the parser are tested on it, the others on a script."""

import functools
import runpy

import pytest
import torch
from conftest import ROOT

from codebase.runs.flags import SHARED_FLAGS, parse_flags

SCRIPTS = ["run_vae.py", "run_gmvae.py", "run_ssvae.py", "run_fsvae.py"]


@functools.cache
def flags_of(script):
    """The table of a script's own flags."""
    return runpy.run_path(str(ROOT / script))["FLAGS"]


def complaint_of_the_parser(capsys, script, args):
    """The error message for these flags; the process must end with code 2."""
    with pytest.raises(SystemExit) as stop:
        parse_flags("", flags_of(script), [str(word) for word in args])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--z", 0), "--z: '0' is not a whole number from 1 to 1,000,000"),
        (("--z", "ten"), "--z: 'ten' is not a whole number from 1 to"),
        (("--iter_max", 0), "--iter_max: '0' is not a whole number from 1 to 1,000,000,000,000,000"),
        (("--iter_save", "-5"), "--iter_save: '-5' is not a whole number from 1 to 1,000,000,000,000,000"),
        (("--keep", -1), "--keep: '-1' is not a whole number from 0 to 1,000,000,000,000,000"),
        (("--run", -1), "--run: '-1' is not a whole number from 0 to 1,000,000,000,000,000"),
        (("--seed", 1.5), "--seed: '1.5' is not a whole number from 0 to 1,000,000,000,000,000"),
        (("--seed", 2**63), "is not a whole number from 0 to 1,000,000,000,000,000"),
        (("--lr", "nan"), "--lr: 'nan' is not a number above 0"),
        (("--lr", "-1"), "--lr: '-1' is not a number above 0"),
        (
            ("--lr_schedule", "linear"),
            "--lr_schedule: 'linear' is not one of constant, cosine, burda, and a list",
        ),
        (("--lr_schedule", "100,0"), "--lr_schedule: '100,0' is not one of"),
        (("--iw_eval", "10"), "--iw_eval chooses the IWAE bounds: add --train 0 or 2"),
        (("--iw_eval", "10,0"), "--iw_eval: '10,0' is not a list of whole numbers from 1 to 5000"),
        (("--iw_eval", "5001"), "--iw_eval: '5001' is not a list"),
        (("--iw_eval", ""), "--iw_eval: '' is not a list"),
        (("--train", 3), "--train: invalid choice: 3"),
        (("--full", "yes"), "--full: invalid int value: 'yes'"),
        (("--full", 2), "--full: invalid choice: 2"),
        (("--device", "tpu"), "--device: invalid choice: 'tpu'"),
        (("--zz", 1), "unrecognized arguments: --zz 1"),
        (("--full", 1), "add --train 0 or 2"),
        (("--train", 0, "--checkpoint", "x.pt", "--iter_max", 5), "both say which weights to load"),
        (("--resume", 1, "--overwrite", 1), "give one of them"),
        (("--train", 0, "--resume", 1), "exclude --train 0"),
        (("--train", 0, "--overwrite", 1), "exclude --train 0"),
        (("--checkpoint", "x.pt"), "add --train 0"),
        (("--train", 0, "--checkpoint", "x.pt", "--replicates", 2), "it excludes --replicates"),
    ],
)
def test_complaints_of_flags_that_all_scripts_have(capsys, script, args, complaint):
    assert complaint in complaint_of_the_parser(capsys, script, args)


@pytest.mark.parametrize(
    ("script", "args", "complaint"),
    [
        ("run_vae.py", ("--iw", 0), "--iw: '0' is not a whole number from 1 to"),
        ("run_gmvae.py", ("--iw", 0), "--iw: '0' is not a whole number from 1 to"),
        ("run_gmvae.py", ("--k", 0), "--k: '0' is not a whole number from 1 to"),
        ("run_ssvae.py", ("--iw", 5), "unrecognized arguments: --iw"),
        ("run_ssvae.py", ("--labels", 0), "--labels: '0' is not a whole number from 1 to"),
        ("run_ssvae.py", ("--gw", -1), "--gw: '-1' is not a number from 0 to"),
        ("run_ssvae.py", ("--cw", "1e10"), "--cw: '1e10' is not a number from 0 to 1,000,000,000"),
        ("run_ssvae.py", ("--cw", "inf"), "--cw: 'inf' is not a number from 0 to"),
        ("run_ssvae.py", ("--cw", "much"), "--cw: 'much' is not a number from 0 to"),
        ("run_fsvae.py", ("--iw", 0), "--iw: '0' is not a whole number from 1 to"),
        ("run_fsvae.py", ("--split", "test"), "--split: invalid choice: 'test'"),
    ],
)
def test_complaints_of_a_scripts_own_flags(capsys, script, args, complaint):
    assert complaint in complaint_of_the_parser(capsys, script, args)


@pytest.mark.parametrize(
    ("name", "args", "complaint"),
    [
        # Errors of the parser, one for each script.
        ("run_vae.py", ("--z", 0), "run_vae.py: error: argument --z: '0' is not"),
        ("run_gmvae.py", ("--k", 0), "run_gmvae.py: error: argument --k: '0' is not"),
        ("run_ssvae.py", ("--gw", -1), "run_ssvae.py: error: argument --gw: '-1' is not"),
        ("run_fsvae.py", ("--split", "test"), "run_fsvae.py: error: argument --split: invalid choice: 'test'"),
        # Errors that depend on the data and the files.
        ("run_vae.py", ("--train", 0, "--checkpoint", ""), "there is no such file"),
        ("run_vae.py", ("--train", 0, "--checkpoint", "x.pt"), "--checkpoint x.pt: there is no such file"),
        ("run_vae.py", ("--train", 0), "_run=0000 has no model-*.pt: train first."),
        ("run_vae.py", ("--batch_size", 301), "--batch_size 301 is more than the 300 training images"),
        ("run_vae.py", ("--dataset", "absent.npz"), "absent.npz does not exist"),
        ("run_vae.py", ("--dataset", "cifar"), "--dataset cifar: the choices are"),
        ("run_ssvae.py", ("--gw", 0, "--cw", 0), "--gw 0 --cw 0 leave nothing to train"),
        ("run_ssvae.py", ("--labels", 15), "--labels 15 is not a multiple of 10"),
        ("run_ssvae.py", ("--labels", 310), "but class 0 has 30"),
        ("run_ssvae.py", ("--batch_size", 301), "--batch_size 301 is more than the 300 training images"),
        ("run_fsvae.py", ("--split", "train"), "--split train is for SVHN: it cannot be used with --dat"),
        ("run_fsvae.py", ("--dataset", "minst"), "the choices are auto, mnist, svhn, glyphs"),
    ],
)
def test_a_complaint_ends_a_script_with_code_2_and_nothing_is_written(on_digits, tmp_path, name, args, complaint):
    code, _, err = on_digits(name, *args)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"digits.npz"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(vae):
    code, _, err = vae("--device", "cuda")
    assert code == 2
    assert "--device cuda: PyTorch" in err


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_every_flag_with_its_default(script, name):
    code, out, _ = script(name, "--help")
    assert code == 0
    shown = {line.split()[0]: " ".join(line.split()) for line in out.replace("\n    ", "").splitlines() if line}
    own = {flag for flag, *_ in flags_of(name)}
    for flag, default, *_ in [*flags_of(name), *(flag for flag in SHARED_FLAGS if flag[0] not in own)]:
        assert f"--{flag}" in shown
        assert default is None or f"(default: {default})" in shown[f"--{flag}"]
