"""The training loop. It knows a model only by model.loss(*batch) -> (loss, {tag: value})."""

import functools
import math
import time

import torch
from tqdm import tqdm

from codebase import processes
from codebase.errors import NonFiniteError

LOG_EVERY = 100  # steps between two points of a curve; each needs a synchronisation with the device


class Adam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1); with a weight_decay, AdamW (Loshchilov and Hutter 2019, algorithm 2).

        m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,   g: the gradient, p.grad
        p = p - lr weight_decay p
        p = p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps),   t: the steps so far, this one included

    The same numbers as torch.optim.Adam, up to rounding. This class exists because torch.compile can compile it
    together with the gradient, but not torch.optim's. Any optimizer of torch.optim can be used instead.
    The learning rate, param_groups[i]["lr"], is a tensor: change it in place.
    """

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
        super().__init__(parameters, {"betas": betas, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            group["lr"], group["t"] = (torch.tensor(x, dtype=torch.float64) for x in (lr, 0))
            for p in group["params"]:
                self.state[p] = {key: torch.zeros_like(p, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
        self.move()

    def move(self):
        """Move lr and t to the GPU if the parameters are there, so that a CUDA graph sees them change."""
        for group in self.param_groups:
            if group["params"][0].is_cuda:
                group["lr"], group["t"] = group["lr"].cuda(), group["t"].cuda()

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.move()

    @torch.no_grad()
    def step(self):
        """One step for every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            lr, t = group["lr"], group["t"]
            t.add_(1)
            # Bias corrections, computed once per step outside the kernel: exp(t log beta) is beta^t. The compiler would
            # compute a power again for each weight.
            rate = (lr / (1 - torch.exp(t * math.log(beta1)))).float()
            scale = ((1 - torch.exp(t * math.log(beta2))) ** -0.5).float()
            moved = [p for p in group["params"] if p.grad is not None]
            # On a GPU all parameters at once; on a CPU one at a time, because one fits into its cache.
            for p in [moved] if lr.is_cuda else [[each] for each in moved]:
                g = [each.grad for each in p]
                m, v = ([self.state[each][key] for each in p] for key in ("exp_avg", "exp_avg_sq"))
                if group["weight_decay"]:
                    torch._foreach_mul_(p, (1 - lr * group["weight_decay"]).float())
                torch._foreach_lerp_(m, g, 1 - beta1)
                torch._foreach_mul_(v, beta2)
                for v_i, g_i in zip(v, g, strict=True):  # _foreach_addcmul_ rounds differently when compiled
                    v_i.addcmul_(g_i, g_i, value=1 - beta2)
                root = torch._foreach_sqrt(v)
                torch._foreach_mul_(root, scale)
                torch._foreach_add_(root, group["eps"])
                change = torch._foreach_mul(m, rate)
                torch._foreach_div_(change, root)
                torch._foreach_sub_(p, change)


def training_step(model, optimizer, batch, bfloat16=False):
    """One training step: the loss, its gradient, a step of the optimizer. Returns {tag: scalar} for the curves.

    This is the only definition of the step. codebase/fast.py compiles it, or records it as a CUDA graph. So a change
    that is made here (clipping, an average of the weights, ...) has an effect in every case. A number that changes
    during training should be a tensor, as model.step and param_groups[i]["lr"] are: a CUDA graph keeps the first value
    of a Python number.
    bfloat16: on a CPU, round the factors of the networks' products to bfloat16; requires float32_outputs(model).
    If several processes train the model, the batch is this process's rows; gradients and terms are averaged over them.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss, terms = model.loss(*batch)
    model.zero_grad()
    loss.backward()
    point = {"train/loss": loss.detach()} | {tag: term.detach() for tag, term in terms.items()}
    processes.average([*(p.grad for p in model.parameters() if p.grad is not None), *point.values()])
    optimizer.step()
    return point


def learning_rate(lr, schedule, iter_max, steps_per_epoch):
    """The learning rate as a function of t, the number of finished steps; None if it is constant.

    schedule: 'constant'; 'cosine', lr (1 + cos(pi t / iter_max)) / 2; steps such as '8000,16000', at each of which it
    is divided by 10; or 'burda', lr 10^(-i/7) for 3^i epochs, i = 0, 1, ..., 7 (Burda et al. 2016, section 5; 3,280
    epochs in all, and then the last rate).
    """
    if schedule == "constant":
        return None
    if schedule == "cosine":
        return lambda t: lr * (1 + math.cos(math.pi * t / iter_max)) / 2
    if schedule == "burda":
        epochs = [sum(3**j for j in range(i + 1)) for i in range(7)]  # at the end of each rate but the last
        return lambda t: lr * 10 ** (-sum(n * steps_per_epoch <= t for n in epochs) / 7)
    steps = [int(step) for step in schedule.split(",")]
    return lambda t: lr * 0.1 ** sum(step <= t for step in steps)


def train(model, batches, optimizer, *, iter_max, iter_save, save, log, start=0, update=None, rate=None, stop=None):
    """Minimise model.loss on the batches, from step `start` to step iter_max. Returns the last step, and the seconds.

    batches[t]: a tuple of tensors on the model's device, the batch after t steps. update(batch): one training step,
    training_step(model, optimizer, batch) or what codebase/fast.py makes of it. rate(t): the learning rate after t
    steps; None: the optimizer's own. save(step) is called every iter_save steps and at the last one;
    log(step, {tag: value}) every LOG_EVERY steps. If stop(step) is true after a step, that step is the last one.

    A model can have a buffer `step`, as the VAE has: it holds the number of finished steps while a loss is computed. A
    loss that changes during training (a warm-up) uses it, and so is right after a resume, too, and in a compiled step.
    If a loss or a weight is not finite, NonFiniteError ends the training, and that step is not saved.
    """
    model.train()
    update = update or functools.partial(training_step, model, optimizer)
    began = time.monotonic()
    step = start
    finished = dict(model.named_buffers()).get("step")
    points = []  # the loss and its terms at each step since the last check, on the device
    hidden = start >= iter_max or processes.torchrun_rank_and_size()[0] > 0
    bar = tqdm(total=iter_max, initial=start, mininterval=0.5, unit="it", disable=hidden)
    with bar:
        for step in range(start + 1, iter_max + 1):
            if finished is not None:
                finished.fill_(step - 1)
            if rate is not None:
                set_rate(optimizer, rate(step - 1))
            points.append(update(batches[step - 1]))

            # The only synchronisations with the device: the losses since the last check are read.
            stopping = stop is not None and stop(step)
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


def set_rate(optimizer, lr):
    """Change the optimizer's learning rate; in place if it is a tensor, so that a CUDA graph sees it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


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
            f"the loss of step {step - len(points) + 1 + first} is {loss[1]}{named}. A smaller --lr may help."
        )
    return dict(zip(points[-1], values[-1].tolist(), strict=True))


def check_weights(model, optimizer, step):
    """NonFiniteError names the first parameter that is not finite, or whose optimizer state is not.

    With an infinite second moment, Adam never changes the parameter again, although every loss is finite.
    """
    for name, parameter in model.named_parameters():
        state = {f"the optimizer's {key} of {name}": each for key, each in optimizer.state.get(parameter, {}).items()}
        for what, tensor in {name: parameter, **state}.items():
            if isinstance(tensor, torch.Tensor) and not tensor.isfinite().all():
                raise NonFiniteError(f"{what} is not finite after step {step}.")
