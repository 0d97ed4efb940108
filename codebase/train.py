"""The training step, Adam, and training. It knows a model only by model.loss(*batch) -> (loss, {tag: value})."""

import math

import torch
from tqdm import tqdm

from codebase import processes
from codebase.errors import NonFiniteError


class Adam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1); with a weight_decay, AdamW (Loshchilov and Hutter 2019, algorithm 2).

        m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,   g: the gradient, p.grad
        p = p - lr weight_decay p
        p = p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps),   t: the steps so far, this one included

    Unlike that of torch.optim, it can be compiled together with the gradient. The rate is a tensor: see set_rate.
    """

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
        super().__init__(parameters, {"betas": betas, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            group["lr"], group["t"] = (torch.tensor(x, dtype=torch.float64) for x in (lr, 0))
            for p in group["params"]:
                self.state[p] = {key: torch.zeros_like(p, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
        self.move()

    def move(self):
        """Put lr and t on the GPU if the parameters are there: CUDA graphs would not see them change elsewhere."""
        for group in self.param_groups:
            if group["params"][0].is_cuda:
                group["lr"], group["t"] = group["lr"].cuda(), group["t"].cuda()

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.move()

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            lr, t = group["lr"], group["t"]
            t.add_(1)
            # The bias corrections once per step: the compiler would compute a power again for each weight.
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


def training_step(model, optimizer, batch):
    """One training step: the loss, its gradient, a step of the optimizer. Returns {tag: scalar} for the curves.

    codebase/fast.py compiles this function. If several processes train the model, the batch is this process's rows.
    """
    loss, terms = model.loss(*batch)
    model.zero_grad()
    loss.backward()
    processes.average([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()
    return {tag: value.detach() for tag, value in {"train/loss": loss, **terms}.items()}


def updates(model, batches, steps, optimizer, step=training_step):
    """Train: after each step t of `steps`, yields t + 1, the number of finished steps, and what `step` has returned.

    batches[t]: a tuple of tensors on the model's device. step: as training_step. If the model has a buffer `step`, it
    holds t meanwhile, for a loss that changes during training.
    """
    model.train()
    finished = dict(model.named_buffers()).get("step")
    for t in steps:
        if finished is not None:
            finished.fill_(t)
        yield t + 1, step(model, optimizer, batches[t])


def train(model, batches, n, optimizer=None):
    """n > 0 steps of training, without a run: no files. Returns {tag: [its value at each step]}.

    batches: as in updates. optimizer: by default Adam. NonFiniteError if a loss or a weight is not finite.
    """
    torch.set_flush_denormal(True)  # numbers below 1e-38, as in Adam's old moments, make a CPU several times slower
    optimizer = optimizer or Adam(model.parameters())
    points = [point for _, point in tqdm(updates(model, batches, range(n), optimizer), total=n, unit="it")]
    check_weights(model, optimizer, n)
    return values_of(points, n)


def learning_rate(lr, schedule, iter_max, steps_per_epoch):
    """The learning rate as a function of t, the number of finished steps; None if it is constant.

    schedule: 'constant'; 'cosine', lr (1 + cos(pi t / iter_max)) / 2; steps such as '8000,16000', at each of which it
    is divided by 10; or 'burda', lr 10^(-i/7) for 3^i epochs, i = 0, ..., 7, then the last (Burda et al. 2016, s. 5).
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


def set_rate(optimizer, lr):
    """Change the optimizer's learning rate; in place if it is a tensor, so that a compiled step sees it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def values_of(points, step):
    """The points, which the steps up to `step` have returned, as {tag: [its values]}, averaged over the processes.

    NonFiniteError names the first step whose loss is not finite. This is the only synchronisation with the device.
    """
    values = torch.stack([value for point in points for value in point.values()]).reshape(len(points), -1)
    processes.average([values])
    values = dict(zip(points[0], values.T.tolist(), strict=True))
    for i, loss in enumerate(values["train/loss"]):
        if not math.isfinite(loss):
            point = ", ".join(f"{tag} {of_steps[i]}" for tag, of_steps in values.items())
            number = step - len(points) + 1 + i
            raise NonFiniteError(f"the loss of step {number} is {loss} ({point}). A smaller --lr may help.")
    return values


def named_state(model, optimizer):
    """All tensors that a step can change, by name: parameters, buffers, and what the optimizer holds."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    for i, group in enumerate(optimizer.param_groups):
        named |= {f"the optimizer's {key} of group {i}": value for key, value in group.items()}
    for name, p in model.named_parameters():
        named |= {f"the optimizer's {key} of {name}": value for key, value in optimizer.state.get(p, {}).items()}
    return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}


def check_weights(model, optimizer, step):
    """NonFiniteError names the first parameter that is not finite, or whose optimizer state is not.

    With an infinite second moment, Adam would never change the parameter again.
    """
    buffers = dict(model.named_buffers())
    for name, tensor in named_state(model, optimizer).items():
        if name not in buffers and not tensor.isfinite().all():
            raise NonFiniteError(f"{name} is not finite after step {step}.")
