"""The training step, Adam, and training. It knows a model only by model.loss(*batch) -> (loss, {tag: value})."""

import math

import torch
from tqdm import tqdm

from codebase import processes
from codebase.errors import InputError, NonFiniteError
from codebase.random_state import kept_random_state


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
        """Move lr and t to the GPU if the parameters are there, so that CUDA graphs see them change."""
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


def training_step(model, optimizer, batch):
    """One training step: the loss, its gradient, a step of the optimizer. Returns {tag: scalar} for the curves.

    This is the only definition of the step; codebase/fast.py compiles it, so an edit of it has an effect there, too.
    If several processes train the model, the batch is this process's rows; gradients are averaged over them.
    """
    loss, terms = model.loss(*batch)
    model.zero_grad()
    loss.backward()
    processes.average([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()
    return {tag: value.detach() for tag, value in {"train/loss": loss, **terms}.items()}


def updates(model, batches, steps, optimizer, step=training_step):
    """Train: after each step t of `steps`, yields t + 1, the number of finished steps, and what `step` has returned.

    batches[t]: a tuple of tensors on the model's device. step: as training_step. A model can have a buffer `step`, as
    the VAE has: it holds the number of finished steps while a loss is computed. A loss that changes during training (a
    warm-up) uses it, and so is right after a resume, too, and in a compiled step.
    """
    model.train()
    finished = dict(model.named_buffers()).get("step")
    for t in steps:
        if finished is not None:
            finished.fill_(t)
        yield t + 1, step(model, optimizer, batches[t])


def train(model, batches, n, optimizer=None):
    """n steps of training, without a run: no files, no curves. Returns {tag: [its value at each step]}.

    batches[t], t = 0, ..., n - 1: as in updates. optimizer: Adam if it is not given. NonFiniteError if a loss or a
    weight is not finite.
    """
    optimizer = optimizer or Adam(model.parameters())
    check_loss(model, batches)
    points = [point for _, point in tqdm(updates(model, batches, range(n), optimizer), total=n, unit="it")]
    check_weights(model, optimizer, n)
    return values_of(points, n)


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


def set_rate(optimizer, lr):
    """Change the optimizer's learning rate; in place if it is a tensor, so that a compiled step sees it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def check_loss(model, batches):
    """InputError if model.loss does not return a pair, (a scalar tensor with a gradient, {tag: scalar tensor}).

    Also if the model's weights are no tensors, which could not be loaded again.
    """
    with kept_random_state():
        buffers = [buffer.clone() for buffer in model.buffers()]
        result = model.loss(*batches[0])
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
    must = "model.loss must return a pair, (scalar tensor, {tag: scalar tensor})"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise InputError(f"{must}; it returned {described(result)}.")
    for name, value in {"the loss": result[0], **result[1]}.items():
        if not (isinstance(value, torch.Tensor) and value.shape == ()):
            raise InputError(f"{must}; {name} is {described(value)}.")
    if not result[0].requires_grad:
        raise InputError("the loss of model.loss does not depend on the model's parameters. Is it detached?")
    for key, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"the model's state_dict must hold tensors only; {key} is {described(value)}.")


def described(value):
    """In words: 'a tensor of shape (100,)', 'a float'."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(described(each) for each in value)})"
    return f"a {type(value).__name__}"


def values_of(points, step):
    """The values of the points: {tag: [value of each]}. NonFiniteError names the first step whose loss is not finite.

    points: [{"train/loss": scalar, tag: scalar, ...}] of the steps up to `step`. They are averaged over the processes.
    This is the only synchronisation with the device.
    """
    if not points:
        return {}
    tags = list(points[0])
    values = torch.stack([term for point in points for term in point.values()]).unflatten(0, (-1, len(tags)))
    processes.average([values])
    values = values.cpu()
    bad = ~values[:, 0].isfinite()  # values: (steps, terms)
    if bad.any():
        first = int(bad.nonzero()[0])
        loss, *terms = zip(tags, values[first].tolist(), strict=True)
        named = "".join(f"; {tag} is {value}" for tag, value in terms if not math.isfinite(value))
        raise NonFiniteError(
            f"the loss of step {step - len(points) + 1 + first} is {loss[1]}{named}. A smaller --lr may help."
        )
    return dict(zip(tags, values.T.tolist(), strict=True))


def named_state(model, optimizer):
    """All tensors that a step can change, by name: parameters, buffers, and what the optimizer holds."""
    named = dict(model.named_parameters())
    names = {p: name for name, p in named.items()}
    held = {f"the optimizer's {k} of group {i}": v for i, g in enumerate(optimizer.param_groups) for k, v in g.items()}
    for i, (p, state) in enumerate(optimizer.state.items()):
        name = names.get(p, f"parameter {i}")
        held |= {f"the optimizer's {key} of {name}": value for key, value in state.items()}
    named |= dict(model.named_buffers()) | held
    return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}


def check_weights(model, optimizer, step):
    """NonFiniteError names the first parameter that is not finite, or whose optimizer state is not.

    With an infinite second moment, Adam never changes the parameter again, although every loss is finite.
    """
    buffers = dict(model.named_buffers())
    for name, tensor in named_state(model, optimizer).items():
        if name not in buffers and not tensor.isfinite().all():
            raise NonFiniteError(f"{name} is not finite after step {step}.")
