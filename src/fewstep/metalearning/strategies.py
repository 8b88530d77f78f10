"""Strategies of the meta-gradient, by name; their results are equal."""

from fewstep.metalearning.meta_gradient import loop, vectorized
from fewstep.metalearning.recompute import recompute

STRATEGIES = {"loop": loop, "vectorized": vectorized, "recompute": recompute}
