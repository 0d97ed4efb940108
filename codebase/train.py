"""The training loop. It knows a model only by model.loss(*batch) -> (loss, {tag: value})."""

import contextlib
import functools
import math
import sys
import time

import torch
from tqdm import tqdm

from codebase import NonFiniteError

LOG_EVERY = 100  # steps between two points of a curve, and between two looks at the loss: each is a device sync


class Lasting:
    """Standard error for a progress bar: whoever reads it may leave, the training goes on."""

    def write(self, text):
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self):
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name):
        return getattr(sys.stderr, name)


def adam(model, lr):
    """The homework's optimiser: Adam, no schedule. Fused: the same update, in one kernel for all tensors."""
    parameters = list(model.parameters())
    return torch.optim.Adam(parameters, lr=lr, fused=True, capturable=parameters[0].is_cuda)  # by a CUDA graph


def plain_update(model, optimizer, batch, bfloat16=False):
    """One step of Adam on model.loss(*batch). Returns the loss and its terms, {tag: scalar}, on the device.

    bfloat16: round the factors of the networks' products to bfloat16, on a CPU; to be called inside
    precision.cast_back(model).
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss, summaries = model.loss(*batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return {"train/loss": loss.detach()} | {tag: term.detach() for tag, term in summaries.items()}


def train(
    model,
    batches,  # endless iterator of tuples of tensors on the model's device, from step `start` on
    optimizer,
    *,
    update=None,  # update(batch): plain_update(model, optimizer, batch), if None, or what codebase/fast.py makes of it
    start=0,  # steps already done
    iter_max,  # steps in all
    iter_save,  # steps between two checkpoints; the last step is always one
    save,  # save(step): write a checkpoint
    log,  # log(step, {tag: value}): write a point of each curve
    stop=lambda: False,  # asked after every step: True ends the training there, which is then the last step
):
    """Minimise model.loss on the batches, from step `start` to step `iter_max`. Returns the last step, and the seconds.

    A model may have a buffer `step`, as the VAE has: it holds the number of finished steps while a loss is computed. A
    loss that changes during training (a warm-up) uses it, and so is right after a resume and in a compiled step.
    A loss or weights that are not finite stop it with NonFiniteError before anything is saved of them.
    """
    model.train()
    update = update or functools.partial(plain_update, model, optimizer)
    began = time.monotonic()
    step = start
    finished = dict(model.named_buffers()).get("step")
    points = []  # the loss and its terms at each step since the last look, on the device
    bar = tqdm(total=iter_max, initial=start, mininterval=0.5, unit="it", file=Lasting(), disable=start >= iter_max)
    with bar:
        for step in range(start + 1, iter_max + 1):
            if finished is not None:
                finished.fill_(step - 1)
            points.append(update(next(batches)))

            # Look at the loss, every LOG_EVERY steps; the only device syncs of the loop.
            stopping = stop()
            saving = step % iter_save == 0 or step == iter_max or stopping
            logging = step % LOG_EVERY == 0 or step == iter_max
            if logging or saving:
                values = check_losses(points, step)
                points.clear()
                if logging:
                    log(step, values)

            if saving:
                check_weights(model, optimizer, step)
                save(step)
            if logging or saving:
                bar.set_postfix(loss=f"{values['train/loss']:.2f}", refresh=False)
                bar.update(step - bar.n)
            if stopping:
                break
    return step, time.monotonic() - began


def check_losses(points, step):
    """The values of the last point. NonFiniteError names the first step whose loss was not finite, and its terms.

    points: [{"train/loss": scalar, tag: scalar, ...}] of the steps up to `step`.
    """
    values = torch.stack([term for point in points for term in point.values()]).cpu().unflatten(0, (len(points), -1))
    bad = ~values[:, 0].isfinite()  # values: (steps, terms)
    if bad.any():
        first = int(bad.nonzero()[0])
        loss, *terms = ((tag, value) for tag, value in zip(points[0], values[first].tolist(), strict=True))
        named = "".join(f"; {tag} is {value}" for tag, value in terms if not math.isfinite(value))
        raise NonFiniteError(
            f"the loss of step {step - len(points) + 1 + first} is {loss[1]}{named}. "
            "The last checkpoint is kept. A smaller --lr may help."
        )
    return dict(zip(points[-1], values[-1].tolist(), strict=True))


def check_weights(model, optimizer, step):
    """NonFiniteError names the first parameter that is not finite, or whose running moments in Adam are not.

    An infinite second moment would leave the parameter where it is for good, with every loss finite.
    """
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        for what, tensor in {name: parameter, **{f"Adam's {key} of {name}": state[key] for key in state}}.items():
            if not tensor.isfinite().all():
                raise NonFiniteError(f"{what} is not finite after step {step}. The last checkpoint is kept.")
