"""The training loop. It knows a model only by model.loss(*batch) -> (loss, {tag: value})."""

import time

import torch
from tqdm import tqdm

LOG_EVERY = 100  # steps between two points of a curve, and between two looks at the loss: each is a device sync


class NonFiniteError(ArithmeticError):
    """The loss or the weights are no longer finite numbers."""


def adam(model, lr):
    """The homework's optimiser: Adam, no schedule. Fused: the same update, in one kernel for all tensors."""
    return torch.optim.Adam(model.parameters(), lr=lr, fused=True)


def train(
    model,
    batches,  # endless iterator of tuples of tensors on the model's device, from step `start` on
    optimizer,
    *,
    start=0,  # steps already done
    iter_max,  # steps in all
    iter_save,  # steps between two checkpoints; the last step is always one
    save,  # save(step): write a checkpoint
    log,  # log(step, {tag: value}): write a point of each curve
    stop=lambda: False,  # asked after every step: True ends the training there, which is then the last step
):
    """Minimise model.loss on the batches, from step `start` to step `iter_max`. Returns the last step, and the seconds.

    A loss or weights that are not finite stop it with NonFiniteError before anything is saved of them.
    """
    model.train()
    began = time.monotonic()
    step = start
    losses = []  # of the steps since the last look, on the device
    with tqdm(total=iter_max, initial=start, mininterval=0.5, unit="it", disable=start >= iter_max) as bar:
        for step in range(start + 1, iter_max + 1):
            # Update the weights.
            loss, summaries = model.loss(*next(batches))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())

            # Look at the loss, every LOG_EVERY steps; the only device syncs of the loop.
            stopping = stop()
            saving = step % iter_save == 0 or step == iter_max or stopping
            logging = step % LOG_EVERY == 0 or step == iter_max
            if logging or saving:
                value = check_losses(torch.stack(losses), step)
                losses.clear()
                if logging:
                    log(step, {"train/loss": value} | {tag: s.item() for tag, s in summaries.items()})
                bar.set_postfix(loss=f"{value:.2f}", refresh=False)
                bar.update(step - bar.n)

            if saving:
                check_weights(model, step)
                save(step)
            if stopping:
                break
    return step, time.monotonic() - began


def check_losses(losses, step):
    """The last of the losses, as a number; NonFiniteError names the first step whose loss was not finite."""
    losses = losses.cpu()
    if not losses.isfinite().all():
        first = int((~losses.isfinite()).nonzero()[0])
        raise NonFiniteError(
            f"the loss of step {step - len(losses) + 1 + first} is {losses[first].item()}; "
            "the last checkpoint is kept. A smaller --lr may help."
        )
    return losses[-1].item()


def check_weights(model, step):
    """NonFiniteError names the first parameter that is not finite."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise NonFiniteError(f"{name} is not finite after step {step}; the last checkpoint is kept.")
