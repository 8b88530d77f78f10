"""Choices that follow from what exists."""

from typing import TYPE_CHECKING, Literal

from fewstep.methods.presets import PRESETS

if TYPE_CHECKING:
    Preset = str
else:
    Preset = Literal[tuple(PRESETS)]
