"""Methods: the record, its parts, and the presets made of them."""

from fewstep.methods.method import Method, differences, from_json, to_json
from fewstep.methods.parts import All, AllButNorm, Norm, Outer, Recipe
from fewstep.methods.presets import PRESETS, Setting, preset, preset_names
from fewstep.methods.rules import PerLayerPerStep, Rule, Sgd
from fewstep.methods.schedules import (
    Annealed,
    Constant,
    Cosine,
    FirstOrder,
    FirstThenSecond,
    LastStep,
    SecondOrder,
    Uniform,
)

__all__ = [
    "PRESETS",
    "All",
    "AllButNorm",
    "Annealed",
    "Constant",
    "Cosine",
    "FirstOrder",
    "FirstThenSecond",
    "LastStep",
    "Method",
    "Norm",
    "Outer",
    "PerLayerPerStep",
    "Recipe",
    "Rule",
    "SecondOrder",
    "Setting",
    "Sgd",
    "Uniform",
    "differences",
    "from_json",
    "preset",
    "preset_names",
    "to_json",
]
