"""Optimizers: AdamW, lazy Adam for the rows of a large item table, SGD for the seed model."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ranklet_training import processes
from ranklet_training.model.item_table import cut_shard
from ranklet_training.model.model import SequenceModel
from ranklet_training.model.seed import SeedModel
from ranklet_training.runs.presets import TrainConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8
Model = SequenceModel | SeedModel


class Optimizer:
    """Optimizer of one or two PyTorch optimizers."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    def state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Return the mutable state (moments) of a parameter."""
        for part in self.parts:
            if any(parameter is p for group in part.param_groups for p in group["params"]):
                state: dict[str, Any] = part.state[parameter]
                return state
        raise KeyError(f"no optimizer has this parameter of shape {tuple(parameter.shape)}")

    def step(self, rate: float) -> None:
        """Update all weights and clear their gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)


class LazyAdam(torch.optim.Optimizer):
    """Adam that updates only the rows of a sparse gradient, as LazyAdam of TensorFlow."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the rows; ``closure`` is unused."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._move(parameter, group["lr"])

    def _move(self, parameter: nn.Parameter, rate: float) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        first = state["exp_avg"][rows].lerp_(values, 1 - BETAS[0])
        second = state["exp_avg_sq"][rows].lerp_(values.square(), 1 - BETAS[1])
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = first, second
        step = state["step"].item()
        size = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
        parameter[rows] -= rate / (1 - BETAS[0] ** step) * first / size


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return the optimizer of a model, with weight decay for matrices only."""
    lazy = []
    if config.lazy_rows and isinstance(model, SequenceModel):
        lazy = [model.items.item]
        model.items.has_sparse_gradient = True
    others = [p for p in model.parameters() if not any(p is row for row in lazy)]
    groups = [
        {"params": [p for p in others if p.ndim == 2], "weight_decay": config.l2},
        {"params": [p for p in others if p.ndim != 2], "weight_decay": 0.0},
    ]
    if not isinstance(model, SequenceModel):
        return Optimizer(torch.optim.SGD(groups, lr=config.learning_rate))
    adam = torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, eps=EPSILON, fused=True)
    return Optimizer(adam, LazyAdam(lazy, config.learning_rate)) if lazy else Optimizer(adam)


def spread(model: Model, optimizer: Optimizer) -> None:
    """Give all processes the weights of the first, and each its shard of the item table."""
    if processes.count() == 1:
        return
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    state = optimizer.state_of(model.items.item)
    state |= {key: cut_shard(value) for key, value in state.items() if value.ndim}
    model.items.cut()


def sum_gradients(model: Model, loss: float) -> float:
    """Sum the gradients of all processes; return the sum of their losses.

    Those of a table in shards are summed where it is looked up.
    """
    if processes.count() == 1:
        return loss
    shared = [(p, p.grad) for p in _shared(model) if p.grad is not None]
    first, *others = (gradient.flatten() for _, gradient in shared)
    flat = processes.total(torch.cat([first.new_tensor([loss]), first, *others]))
    begin = 1
    for parameter, gradient in shared:
        end = begin + gradient.numel()
        parameter.grad = flat[begin:end].view_as(gradient)
        begin = end
    return flat[0].item()


def _shared(model: Model) -> list[nn.Parameter]:
    """Return the parameters of which each process has all values."""
    return [p for p in model.parameters() if processes.count() == 1 or p is not model.items.item]


def clip_gradients(model: Model, largest: float) -> float:
    """Clip the norm of all gradients, sparse ones included; return the norm before."""
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = _norm(model)
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients if scale < 1 else ():
        gradient.mul_(scale)
    return norm.item()


def _norm(model: Model) -> Tensor:
    """Return the norm of all gradients; that of a table in shards has parts in all processes."""
    norm = _norm_of(_shared(model))
    if processes.count() == 1:
        return norm
    return (norm.square() + processes.total(_norm_of([model.items.item]).square())).sqrt()


def _norm_of(parameters: list[nn.Parameter]) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm([g.values() if g.is_sparse else g for g in gradients])


def shrink_l1(model: nn.Module, amount: float) -> None:
    """Shrink every matrix by ``amount`` towards 0: the proximal step of L1.

    Source: Parikh and Boyd, "Proximal Algorithms", 2014, section 6.5.2 (soft thresholding).
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.sub_(parameter.clamp(-amount, amount))
