"""Deep generative models of Stanford CS236, homework 2: mathematics, networks, models, and the experiments around them.

The rooms, each of which imports only from those below it:

    experiment                        run names and folders, device, the course of a run and of its replicates
    summary                           the runs by configuration, and their tables
    flags                             the flags of the run scripts
    results                           the report, and results.json
    content                           do generated images show their labels?
    loading                           a trained model from its files: codebase.load
    train, fast                       the loop; its step, compiled or as a CUDA graph
    evaluate, pictures, curves        bounds with standard errors; grids of images; TensorBoard's file
    checkpoints, data                 files: weights and training states; data sets and batches
    processes                         several processes that share runs, or work on one
    precision                         how exactly matrix products are computed
    models.vae, ...                   one model = its densities and bounds
    nns                               networks
    utils                             the mathematics, tensors to tensors
"""


def called(number):
    """How a number is called where it is printed: 'kl_z' -> 'KL_z', 'test nelbo' -> 'test NELBO'."""
    *split, name = number.split(" ", 1)
    names = {
        "nelbo": "NELBO",
        "kl": "KL",
        "kl_z": "KL_z",
        "kl_y": "KL_y",
        "rec": "Rec",
        "accuracy_percent": "accuracy, %",
        "classifier_percent": "classifier's accuracy, %",
    }
    return " ".join([*split, names.get(name, name.replace("iwae_", "IWAE-"))])


from codebase import data, pictures  # noqa: E402
from codebase.errors import InputError, NonFiniteError  # noqa: E402
from codebase.loading import load  # noqa: E402

__all__ = ["InputError", "NonFiniteError", "called", "data", "load", "pictures"]
