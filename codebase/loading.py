"""A trained model from its files, for a notebook: codebase.load."""

import re
from pathlib import Path

from codebase.errors import InputError
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.runs import checkpoints


def load(path, model=None, device="cpu"):
    """The trained model of a run, in evaluation mode. InputError if there are no weights, or if they do not fit.

    path: a run's folder under checkpoints/, for its newest weights, or a file of weights, also of the homework's own
    code. model: a model to fill; without it, it is one of the four models, with the homework's networks.
    """
    path = Path(path)
    if path.is_dir():
        steps = checkpoints.steps(path)
        if not steps:
            raise InputError(f"{path.absolute()} holds no weights (model-*.pt).")
        path = checkpoints.weights_path(path, steps[-1])
    if model is None:
        model = model_of(checkpoints.read(path), path)
    checkpoints.load_weights(model, path)
    return model.to(device).eval()


def model_of(weights, path):
    """A new model, whose class and sizes are inferred from the weights. InputError if they are another model's."""
    try:
        name, sizes = checkpoints.sizes(weights)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} has other networks than the homework's: give the model, too: load(path, VAE(enc=..., dec=...))."
        ) from error
    model = {"VAE": VAE, "GMVAE": GMVAE, "SSVAE": SSVAE, "FSVAE": FSVAE}[name](**sizes)
    of_run = re.match(r"model=([^=]+)_[^=_]+=", path.absolute().parent.name)  # model=NAME_FLAG=...
    if of_run and of_run[1] != type(model).__name__.lower():  # a model of one's own may have weights of these shapes
        raise InputError(
            f"{path} is of the model {of_run[1]}, although its weights look like those of {type(model).__name__}: give "
            "the model, too: load(path, model)."
        )
    return model
