"""Networks for few-shot tasks, built of plain torch modules, and a batch norm that is quick to differentiate twice."""

from fewstep.models.closed_form import cross_entropy_gradients
from fewstep.models.conv4 import Conv4
from fewstep.models.mlp import MLP
from fewstep.models.resnet12 import ResNet12

__all__ = ["MLP", "Conv4", "ResNet12", "cross_entropy_gradients"]
