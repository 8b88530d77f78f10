"""The fully connected network of sinusoid regression and tabular tasks."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.errors import BadInput, unknown

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


class MLP(nn.Module):
    """Linear layers with an activation between them, and a linear head.

        h₀ = x,  hᵢ₊₁ = activation(Wᵢ hᵢ + bᵢ),  y = W h + b

    Arguments:
        inputs: features of one example, all dimensions beyond the batch flattened.
        outputs: values predicted for one example; ways in classification.
        hidden: width of each hidden layer; empty for a linear model.
        activation: relu, tanh, gelu or silu.
        init: "default" as torch; "truncated_normal" draws weights from a normal of σ 0.01 cut at 2σ, with zero biases,
            as the code released with MAML does.

    Raises:
        BadInput: an unknown activation or init, a size below one, or examples with another number of features.

    Source: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, section 5.1.

    Shapes: (N, *) with the product of * equal to `inputs` -> (N, outputs).

    Example:
        >>> MLP(inputs=1, outputs=1)(torch.zeros(10, 1)).shape
        torch.Size([10, 1])
    """

    def __init__(
        self,
        inputs: int = 1,
        outputs: int = 1,
        hidden: Sequence[int] = (40, 40),
        activation: str = "relu",
        init: Literal["default", "truncated_normal"] = "default",
    ) -> None:
        super().__init__()
        if min(inputs, outputs, *hidden) < 1:
            raise BadInput(
                f"an MLP needs sizes of at least one: inputs {inputs}, hidden {tuple(hidden)}, outputs {outputs}"
            )
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        if init not in ("default", "truncated_normal"):
            raise unknown("init", init, ("default", "truncated_normal"))
        self.inputs = inputs
        self.activation = activation
        widths = [inputs, *hidden]
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        self.head = nn.Linear(widths[-1], outputs)
        if init == "truncated_normal":
            for linear in (*self.layers, self.head):
                nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        if h.shape[1] != self.inputs:
            raise BadInput(f"this MLP was built for {self.inputs} features; the examples have {h.shape[1]}")
        for layer in self.layers:
            h = ACTIVATIONS[self.activation](layer(h))
        return self.head(h)
