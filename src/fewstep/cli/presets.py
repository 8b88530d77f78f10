"""`fewstep presets`: list the presets, or explain one."""

import inspect
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from fewstep.cli.choices import Preset
from fewstep.cli.console import console
from fewstep.methods import differences, preset, to_json
from fewstep.methods.presets import PRESETS, Setting


@dataclass(frozen=True)
class Presets:
    """List the presets; with a name: its equation, parts, paper and differences from it.

    Example: fewstep presets maml++
    """

    preset: Annotated[Positional[Preset | None], arg(metavar="[NAME]", help_behavior_hint="")] = None
    """Which one to explain; all are listed if not given."""
    setting: Setting = "omniglot"
    """Whose published hyper-parameters."""
    shots: int = 1
    """Some depend on the shots."""
    format: Literal["text", "json"] = "text"
    """json prints JSON alone."""

    def run(self) -> int:
        chosen = {self.preset: PRESETS[self.preset]} if self.preset else PRESETS
        methods = {name: preset(name, setting=self.setting, shots=self.shots) for name in chosen}
        if self.format == "json":
            print(json.dumps({name: to_json(method) for name, method in methods.items()}, indent=2))
        elif self.preset is None:
            width = max(map(len, chosen))
            for name, function in chosen.items():
                console.print(f"{name:{width}}  {_lines(function)[0]}")
            console.print("\nfewstep presets NAME explains one; fewstep train NAME trains it.")
        else:
            console.print(f"{self.preset}\n", style="bold")
            console.print("\n".join(_lines(chosen[self.preset])))
            console.print("\nParts:")
            for name, value in to_json(methods[self.preset]).items():
                if name != "name":
                    console.print(f"  {name:13} {_part(value)}")
            changed = differences(methods[self.preset], preset("maml", setting=self.setting, shots=self.shots))
            console.print(f"\nDiffers from maml in: {', '.join(k.replace('__', '.') for k in changed) or 'nothing'}")
            if changed:
                console.print(f"fewstep ablate {self.preset} measures what each of them is worth")
        return 0


def _lines(function: Any) -> list[str]:
    return inspect.cleandoc(function.__doc__).splitlines()


def _part(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    inside = ", ".join(f"{k}={_part(v)}" for k, v in value.items() if k != "part" and v is not None)
    return f"{value['part']}({inside})"
