"""What a learner learns and remembers: a model's weights, a rule's rates, norm weights and moments of every step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.functional import lock_of
from fewstep.metalearning.inner_loop import Meta, MomentsByNorm, Parameters
from fewstep.metalearning.meta_gradient import Fixed
from fewstep.metalearning.modes import own_modes, usable
from fewstep.metalearning.proof import functional
from fewstep.methods import Method
from fewstep.models.norm import NORMS, Moments


class MetaGradient(NamedTuple):
    """What `Learner.meta_gradient` returns.

    Arguments:
        loss: mean meta-loss over tasks, scalar.
        query_logits: (B, Q, …) after the last inner step.
        gradients: {name: tensor} for every name of `Learner.meta_parameters`.
        task_losses: (B,), the meta-loss of each task.
        statistics: batch-norm moments of the support passes, (steps, channels), for `Learner.update_buffers`.
        moved: buffers that the model's passes moved, by name: their mean over tasks, for the same.

    Example:
        >>> MetaGradient(torch.tensor(0.5), torch.zeros(1, 2, 3), {}, torch.tensor([0.5]), {}, {}).query_logits.shape
        torch.Size([1, 2, 3])
    """

    loss: Tensor
    query_logits: Tensor
    gradients: Parameters
    task_losses: Tensor
    statistics: MomentsByNorm
    moved: Parameters


class Tree(nn.Module):
    """Tensors under dotted names, so that a learner's state has `rates.blocks.0.conv.weight` as it is written."""

    def __init__(self, tensors: Mapping[str, Tensor], buffers: bool = False):
        super().__init__()
        self._places: dict[str, tuple[dict[str, Any], str]] = {}
        for name, tensor in tensors.items():
            *path, leaf = name.split(".")
            node: nn.Module = self
            for part in path:
                if part not in node._modules:
                    node.add_module(part, Tree({}))
                node = node._modules[part]  # type: ignore[assignment]
            if buffers:
                node.register_buffer(leaf, tensor)
            else:
                node.register_parameter(leaf, nn.Parameter(tensor))
            self._places[name] = node._buffers if buffers else node._parameters, leaf


def tensors_of(tree: Tree) -> dict[str, Any]:
    """The tensors by name; `named_parameters` walks through every module for them."""
    return {name: place[leaf] for name, (place, leaf) in tree._places.items()}


class Learned(nn.Module):
    """A model and a method, and the tensors that the outer loop learns of both.

    Raises:
        BadInput: nothing to adapt; a layer that has no weights yet or was compiled.
    """

    def __init__(self, model: nn.Module, method: Method):
        super().__init__()
        self.model, self.method = model, method
        self._forward = functional(model)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        norms, self.adapted = self._choice()
        if not self.adapted and method.steps:
            raise BadInput(f"{method.name} adapts {method.adapted}, but the model has no trainable parameter like that")
        rows = max(method.steps, 1)
        with torch.no_grad():
            self.rates = Tree(method.rule.rates({n: trainable[n] for n in self.adapted}, method.steps))
            per_step = [n for n in norms if n not in self.adapted] if method.norm.affine == "per_step" else []
            if method.norm.affine == "per_step" and norms and not per_step:
                raise BadInput(f"norm.affine is per_step, but {method.adapted} lets the inner loop adapt norm weights")
            self.norm = Tree({n: trainable[n].detach().expand(rows, *trainable[n].shape).clone() for n in per_step})
            self.running = Tree(self._initial_moments(rows), buffers=True)
        self._remember()

    def _choice(self) -> tuple[list[str], tuple[str, ...]]:
        """Names of the trainable weights of norms, and of what the inner loop adapts."""
        trainable = [name for name, p in self.model.named_parameters() if p.requires_grad]
        layers = {f"{name}." if name else "": m for name, m in self.model.named_modules() if isinstance(m, NORMS)}
        names = {prefix + name for prefix, m in layers.items() for name, _ in m.named_parameters(recurse=False)}
        norms = [name for name in trainable if name in names]
        return norms, tuple(self.method.adapted(trainable, set(norms)))

    def _initial_moments(self, rows: int) -> Parameters:
        """Running statistics of every inner step: those the model has, or zeros and ones."""
        anchor, moments = next(self.model.parameters()), {}
        for name, channels in self._forward.norms.items():
            norm = self.model.get_submodule(name)
            for part, empty in (("mean", 0.0), ("var", 1.0)):
                own = getattr(norm, f"running_{part}")
                start = anchor.new_full((channels,), empty) if own is None else own.detach()
                moments[f"{name}.{part}"] = start.expand(rows, channels).clone()
        return moments

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """Every tensor the outer loop learns, as `model.<name>`, `rates.<name>` or `norm.<name>`.

        A norm weight that is learned for each step appears as `norm.<name>`, not as `model.<name>`.
        """
        rates, norm = tensors_of(self.rates), tensors_of(self.norm)
        model = {name: p for name, p in self.model.named_parameters() if name not in norm}
        parts = ("model", model), ("rates", rates), ("norm", norm)
        return {f"{part}.{name}": p for part, of in parts for name, p in of.items() if p.requires_grad}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def has_batch_norm(self) -> bool:
        return self._forward.normalises

    def train(self, mode: bool = True) -> "Learned":
        """Sets no layer of the model, see above; put layers into a mode by `learner.model`."""
        self.training = mode
        return self

    def frozen(self) -> Meta:
        """A copy of everything a task starts from, without a graph: what adaptation and evaluation use."""
        with own_modes(next(self.model.parameters()), False):
            learned, fixed = self.learned_and_fixed()
            return tree_map(torch.clone, fixed.with_learned(learned))

    def learned_and_fixed(self) -> tuple[Parameters, Fixed]:
        """The learned tensors under their meta-parameter names, and all else that tasks start from."""
        moments = tensors_of(self.running)
        running = {n: Moments(moments[f"{n}.mean"], moments[f"{n}.var"]) for n in self._forward.norms}
        with lock_of(self.model):  # from now on it does not matter what becomes of the model
            learned: Parameters = {name: p.detach() for name, p in self.meta_parameters().items()}
            own = (*self.model.named_parameters(), *self.model.named_buffers())
            rest = {name: t.detach() for name, t in own if f"model.{name}" not in learned}
        found = learned, Fixed(rest, running)
        return usable(found) if any(t.is_inference() for t in learned.values()) else found

    @torch.no_grad()
    def update_buffers(self, result: MetaGradient) -> None:
        """Move running statistics, and buffers that the model moves itself, to where a meta-batch has left them.

        running ← (1 − momentum) running + momentum · seen,   buffer ← mean of the tasks' buffers
        """
        self.update_running(result.statistics)
        buffers = dict(self.model.named_buffers())
        for name, moved in result.moved.items():
            if name in buffers:
                buffers[name].copy_(moved)

    @torch.no_grad()
    def update_running(self, statistics: MomentsByNorm) -> None:
        """Move the running statistics of every inner step alone, see `update_buffers`."""
        buffers = tensors_of(self.running)
        for name, moments in statistics.items():
            if name not in self._forward.norms:  # it keeps its running statistics itself
                continue
            for part in ("mean", "var"):
                seen = getattr(moments, part)
                buffers[f"{name}.{part}"][: len(seen)].lerp_(seen, self.method.norm.momentum)

    def check_unchanged(self, statistics: str = "batch") -> None:
        """Follow a model that was changed after the learner was made.

        Raises:
            BadInput: the learner holds something that rests on what was changed; names it.
        """
        for name, now in self._copied(statistics):
            before = self._started[name]
            if now.device.type == "cpu" and not torch.equal(now, before.to(now)):
                raise BadInput(
                    f"{name} was changed after the learner was made, which has a copy of it for every inner step: make "
                    "the learner after loading weights, or load them into the learner"
                )
        if not self._forward.outdated:
            return
        _, adapted = self._choice()
        if adapted != self.adapted:
            name = sorted(set(adapted) ^ set(self.adapted))[0]
            what = "would be adapted now" if name in adapted else "cannot be adapted any more (frozen, or gone)"
            raise BadInput(f"{name} {what}: make the learner after freezing, releasing or exchanging layers")
        self._forward = functional(self.model)

    def _copied(self, statistics: str) -> list[tuple[str, Tensor]]:
        """What of the model the learner has taken copies of, which a later change of the model does not reach."""
        norm = tensors_of(self.norm)
        found: list[tuple[str, Tensor]] = []
        if norm:
            found += [(name, p) for name, p in self.model.named_parameters() if name in norm]
        if statistics == "running":
            ends = tuple(f"{name}.running_{part}" for name in self._forward.norms for part in ("mean", "var"))
            found += [(name, b) for name, b in self.model.named_buffers() if name in ends]
        return found

    def _remember(self) -> None:
        self._started = {name: t.detach().clone() for name, t in self._copied("running")}

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As of any module; the model's weights may be changed by it at any time."""
        found = super().load_state_dict(*args, **options)
        self._remember()
        return found

