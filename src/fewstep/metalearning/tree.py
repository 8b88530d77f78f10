"""Tensors under dotted names, as a module."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


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
