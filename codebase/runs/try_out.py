"""A trial of a new model before its training, so that an error in it does not come hours later, at a checkpoint."""

import contextlib
import tempfile
from pathlib import Path

import torch

from codebase import evaluate
from codebase.errors import InputError, NonFiniteError


def try_out(run, model, batches, draw, splits):
    """Compute the loss of one batch and the bounds of two images, and draw the pictures, as a training does later.

    The arguments are as in run.train_or_load. Weights, buffers, random numbers and files are as before. InputError if
    the loss or the weights are not what the training expects; other errors are those of the model's own code. What
    `draw` writes to run.logs goes to a folder that is deleted at the end.
    """
    logs, before = run.logs, [buffer.clone() for buffer in model.buffers()]
    with evaluate.evaluating(model), tempfile.TemporaryDirectory() as folder:
        try:
            with torch.enable_grad():
                model.train()
                check_loss(model.loss(*batches[0]))
                model.eval()
            for key, value in model.state_dict().items():
                if not isinstance(value, torch.Tensor):
                    raise InputError(f"the model's state_dict must hold tensors only; {key} is {described(value)}.")
            for split in splits.values():
                two = tuple(rows[:2] for rows in split)
                with contextlib.suppress(NonFiniteError):  # the training may make them finite
                    evaluate.elbo(model, two), evaluate.iwae(model, two, [2])
                evaluate.latent_units(model, two)
            run.logs = Path(folder)
            draw(None, None)
        finally:
            run.logs = logs
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)


def check_loss(result):
    """InputError if this is not what model.loss should return: (a scalar tensor, {tag: scalar tensor})."""
    must = "model.loss must return a pair, (scalar tensor, {tag: scalar tensor})"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise InputError(f"{must}; it returned {described(result)}.")
    for name, value in {"the loss": result[0], **result[1]}.items():
        if not (isinstance(value, torch.Tensor) and value.shape == ()):
            raise InputError(f"{must}; {name} is {described(value)}.")
    if not result[0].requires_grad:
        raise InputError("the loss of model.loss does not depend on the model's parameters. Is it detached?")


def described(value):
    """In words: 'a tensor of shape (100,)', 'a float'."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(described(each) for each in value)})"
    return f"a {type(value).__name__}"
