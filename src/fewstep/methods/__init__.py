"""Methods: the record, its parts, and the presets made of them."""

from fewstep.methods.ablation import Variant, ablation
from fewstep.methods.changes import as_change, changed
from fewstep.methods.meta_losses import Distance, QueryLoss
from fewstep.methods.method import Method, differences, from_json
from fewstep.methods.parts import All, AllButNorm, Body, Head, Matching, Norm, Outer, Recipe
from fewstep.methods.presets import PRESETS, Setting, preset, preset_names
from fewstep.methods.records import to_json
from fewstep.methods.rules import PerLayerPerStep, PerParameter, Rule, Sgd
from fewstep.methods.schedules import (
    Annealed,
    Constant,
    Cosine,
    FirstOrder,
    FirstThenSecond,
    LastStep,
    Linear,
    SecondOrder,
    Uniform,
)
from fewstep.methods.sharpness import Sharpness

__all__ = [
    "PRESETS",
    "All",
    "AllButNorm",
    "Annealed",
    "Body",
    "Constant",
    "Cosine",
    "Distance",
    "FirstOrder",
    "FirstThenSecond",
    "Head",
    "LastStep",
    "Linear",
    "Matching",
    "Method",
    "Norm",
    "Outer",
    "PerLayerPerStep",
    "PerParameter",
    "QueryLoss",
    "Recipe",
    "Rule",
    "SecondOrder",
    "Setting",
    "Sgd",
    "Sharpness",
    "Uniform",
    "Variant",
    "ablation",
    "as_change",
    "changed",
    "differences",
    "from_json",
    "preset",
    "preset_names",
    "to_json",
]
