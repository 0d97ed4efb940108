"""The states of torch's random number generators, {device: state}: the CPU's, and that of the GPU in use."""

import contextlib

import torch


def random_state():
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state):
    """Restore the generators. Devices that this machine does not have are ignored."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def kept_random_state():
    """After the block, the generators are as they were before it."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
