"""Batch norms whose statistics are values: they go into a pass, and come out of it.

Torch's batch norm writes what it saw into buffers of its own. In a copy of a model that one pass has for itself every
batch norm has another `forward`, `ValueNorm`, which normalises by what its `Statistics` say, and tells them what it
saw. The layer stays what it was: its class, hooks, parameters and parametrizations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from fewstep.errors import BadInput
from fewstep.models.batch_norm import apply_statistics, batch_statistics, normalise
from fewstep.models.max_pool import max_pool

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm)
"""Layers whose weights and biases are those of a norm."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Moments(NamedTuple):
    """Mean and biased variance of each channel."""

    mean: Tensor
    var: Tensor


@dataclass
class Statistics:
    """By what the batch norms of one pass normalise, and what they saw.

    Arguments:
        given: moments by name of the norm; each batch's own where None.
        frozen: names of norms that normalise by their own running statistics, whatever is given.
        differentiable: let gradients flow through the moments that are seen.
        seen: moments that norms of their batch took, by name.
        own: norms called as functions take their running statistics in evaluation.
    """

    given: Mapping[str, Moments] | None = None
    frozen: frozenset[str] = frozenset()
    differentiable: bool = False
    seen: dict[str, Moments] = field(default_factory=dict)
    own: bool = False


class PooledBatchNorm(nn.BatchNorm2d):
    """Batch norm, then max-pooling 2×2, in a third of the passes over the maps that the two take apart.

        y = max over 2×2 of γ x̂ + β

    An affine map keeps or turns the order of numbers, so the pixels that stay are known before anything is normalised,
    and only they are. Parameters and buffers are those of `torch.nn.BatchNorm2d`.

    Shapes: (N, C, H, W) -> (N, C, H // 2, W // 2).

    Example:
        >>> import torch
        >>> PooledBatchNorm(3, track_running_stats=False)(torch.randn(4, 3, 9, 8)).shape
        torch.Size([4, 3, 4, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        own = self.__dict__.get("forward")
        if isinstance(own, ValueNorm):  # of a subclass inside a pass
            return own.normalised(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            return max_pool(super().forward(x))
        return normalise(x, self.weight, self.bias, self.eps, pool=True)[0]


class ValueNorm:
    """The `forward` of a batch norm inside one pass.

    Arguments:
        norm: the layer, whose parameters and running statistics it reads at every call.
        name: of the layer in its model.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> norm.forward = ValueNorm(norm, "norm")
        >>> norm.forward.statistics = now = Statistics()
        >>> norm(torch.tensor([[1.0, 2.0], [3.0, 2.0]])).shape, now.seen["norm"].mean
        (torch.Size([2, 2]), tensor([2., 2.]))
    """

    def __init__(self, norm: _BatchNorm, name: str):
        self.norm, self.name, self.statistics = norm, name, Statistics()
        self.pool = isinstance(norm, PooledBatchNorm)
        # A subclass may have a `forward` of its own around torch's batch norm.
        own = type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward, PooledBatchNorm.forward)
        self.inside = None if own else _Inside(self)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.inside is None:
            return self.normalised(float32(x), self.norm.weight, self.norm.bias, self.norm.eps)
        with self.inside:
            return type(self.norm).forward(self.norm, float32(x), *args, **kwargs)

    def normalised(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """Batch norm of x by what the statistics say, and pooled where the layer pools."""
        moments = self.given
        if moments is None and not self._differentiable:
            y, mean, var = normalise(x, weight, bias, eps, self.pool)
            self.tell(mean, var)
            return y
        if moments is None:
            moments = Moments(*batch_statistics(x))
            self.tell(*moments)
        y = apply_statistics(x, *moments, weight, bias, eps)
        return max_pool(y) if self.pool else y

    @property
    def given(self) -> Moments | None:
        """The moments to normalise by; those of the batch where None."""
        if self.name in self.statistics.frozen:
            return Moments(self.norm.running_mean, self.norm.running_var)  # type: ignore[arg-type]
        return None if self.statistics.given is None else self.statistics.given.get(self.name)

    @property
    def _differentiable(self) -> bool:
        return self.statistics.differentiable and torch.is_grad_enabled()

    def tell(self, mean: Tensor, var: Tensor) -> None:
        """Say by which moments of its batch the layer has normalised.

        Raises:
            BadInput: a second time in a pass whose moments queries are to be normalised by.
        """
        if self.statistics.differentiable and self.name in self.statistics.seen:
            raise BadInput(
                f"{self.name} normalises several times in one pass, so that queries have no one mean and variance of "
                "the support set: take statistics batch or frozen"
            )
        self.statistics.seen[self.name] = Moments(mean, var)


class _Inside(TorchFunctionMode):
    """Inside it, torch's batch norm is that of a `ValueNorm`."""

    def __init__(self, norm: ValueNorm):
        super().__init__()
        self.norm = norm

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return (self._batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))

    def _batch_norm(
        self, x: Tensor, running_mean: Any, running_var: Any, weight: Tensor | None = None, bias: Tensor | None = None,
        training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        del running_mean, running_var, training, momentum  # the pass decides
        return self.norm.normalised(x, weight, bias, eps)


class FreeNorms(TorchFunctionMode):
    """Inside it, batch and instance norms that a model calls as functions on buffers of its own follow the statistics.

    As hand-written networks have them: F.batch_norm(x, self.mean, self.var, training=self.training). They go by the
    name of their running mean. In training they move their buffers as torch does.

    Arguments:
        tensors: those of the pass, by name. now: its statistics. names: of running means that are meant.
    """

    def __init__(self, tensors: Mapping[str, Tensor], now: Statistics, names: frozenset[str] | None):
        super().__init__()
        self.buffers, self.now, self.names = {id(t): name for name, t in tensors.items()}, now, names
        self.met: set[str] = set()

    @staticmethod
    def watch(tensors: Mapping[str, Tensor]) -> "FreeNorms":
        """One that changes nothing, and notes which norms the model calls in training."""
        return FreeNorms(tensors, Statistics(), None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in (F.batch_norm, F.instance_norm):
            return func(*args, **kwargs)
        order = BATCH_NORM if func is F.batch_norm else INSTANCE_NORM
        given = {**order, **dict(zip(order, args, strict=False)), **kwargs}
        training = given[list(order)[5]]
        name = self.buffers.get(id(given["running_mean"]))
        if self.names is None and training and name is not None:
            self.met.add(name)
        if self.names is None or name not in self.names or self.now.own:
            return func(**given)
        if func is F.batch_norm:
            return self._batch_norm(name, **given)
        # An instance norm takes every example by itself, as in training.
        alone = {} if training else {"use_input_stats": True, "running_mean": None, "running_var": None}
        return func(**{**given, **alone})

    def _batch_norm(
        self, name: str, input: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None,
        bias: Tensor | None, training: bool, momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        moments = None if self.now.given is None else self.now.given.get(name)
        if moments is None:
            moments = Moments(*batch_statistics(input))
            self.now.seen[name] = moments if self.now.differentiable else Moments(*(m.detach() for m in moments))
        if training:
            count = input.numel() // input.shape[1]
            with torch.no_grad():
                running_mean.lerp_(moments.mean.to(running_mean.dtype), momentum)
                running_var.lerp_(moments.var.to(running_var.dtype) * count / max(count - 1, 1), momentum)
        return apply_statistics(input, *moments, weight, bias, eps)


BATCH_NORM = {"input": None, "running_mean": None, "running_var": None, "weight": None, "bias": None,
              "training": False, "momentum": 0.1, "eps": 1e-5}  # fmt: skip
INSTANCE_NORM = {"input": None, "running_mean": None, "running_var": None, "weight": None, "bias": None,
                 "use_input_stats": True, "momentum": 0.1, "eps": 1e-5}  # fmt: skip


def float32(x: Any) -> Any:
    """What autocast rounded, in float32 again; anything else as it is."""
    rounded = isinstance(x, Tensor) and x.dtype == torch.bfloat16 and torch.is_autocast_enabled(x.device.type)
    return x.float() if rounded else x


def exchange(model: nn.Module) -> dict[str, ValueNorm]:
    """Give every batch norm of a model a `ValueNorm` for its `forward`; those, by name.

    Example:
        >>> list(exchange(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))))
        ['1']
    """
    norms = {}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and "forward" not in module.__dict__:
            norms[name] = module.__dict__["forward"] = ValueNorm(module, name)
    return norms


class Values(NamedTuple):
    """Of norms for which one function normalises: the moments of each to do it by, its batch's own where None."""

    norms: list[ValueNorm]
    given: list[Moments] | None

    def tell(self, means: Tensor, variances: Tensor) -> None:
        """Say by which moments of their batches the norms have normalised, one a row."""
        for norm, mean, var in zip(self.norms, means.unbind(), variances.unbind(), strict=True):
            norm.statistics.seen[norm.name] = Moments(mean, var)


def values_of(layers: Sequence[nn.Module], others: Sequence[nn.Module] = ()) -> Values | None:
    """What one function needs to stand for norms that pool and the layers around them, where it may; else None."""
    norms, given = [], []
    for layer in layers:
        norm = _value_norm(layer)
        if norm is None or not norm.pool or norm.inside is not None:
            return None
        moments = norm.given
        if torch.is_grad_enabled() and (moments is not None or norm.statistics.differentiable):
            return None
        norms.append(norm)
        given += [moments] if moments is not None else []
    if not unhooked(*layers, *others) or 0 < len(given) < len(norms):
        return None
    return Values(norms, given or None)


def _value_norm(layer: nn.Module) -> ValueNorm | None:
    own = layer.__dict__.get("forward")
    if own is None and type(layer) is PooledBatchNorm and not layer.track_running_stats:
        return ValueNorm(layer, "")  # outside of any pass
    return own if isinstance(own, ValueNorm) else None


def unhooked(*layers: nn.Module) -> bool:
    """Whether a call of each layer is one of the `forward` of its class, or of its `ValueNorm`: without hooks."""
    for layer in layers:
        own = layer.__dict__
        if any(map(own.get, HOOKS)) or ("forward" in own and not isinstance(own["forward"], ValueNorm)):
            return False
    return True
