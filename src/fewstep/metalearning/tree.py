"""Tensors under dotted names, as a module."""

from collections.abc import Mapping

from torch import Tensor, nn


class Tree(nn.Module):
    """Tensors under dotted names, so that a learner's state has `rates.blocks.0.conv.weight` as it is written."""

    def __init__(self, tensors: Mapping[str, Tensor], buffers: bool = False):
        super().__init__()
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
