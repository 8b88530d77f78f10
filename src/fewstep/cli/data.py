"""`fewstep data`: list, check and fetch data sets."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from fewstep.cli.console import console, errors
from fewstep.errors import BadInput, unknown
from fewstep.tasks.datasets import DATASETS, DESCRIPTIONS
from fewstep.tasks.omniglot import check, fetch


@dataclass(frozen=True)
class Data:
    """List data sets, check that one can be read, or fetch it from its authors.

    Example: fewstep data fetch omniglot --data-dir data
    """

    action: Positional[Literal["list", "check", "fetch"]] = "list"
    """What to do."""
    name: Positional[str] = "omniglot"
    """Which data set to check or fetch."""
    data_dir: str | None = None
    """Where it lies or shall lie; else $FEWSTEP_DATA, ./data."""
    format: Literal["text", "json"] = "text"
    """json prints JSON alone."""

    def run(self) -> int:
        if self.action == "list":
            return self._list()
        if self.name not in DATASETS:
            raise unknown("data set", self.name, DATASETS)
        if self.name != "omniglot":
            message = f"{self.name} is made, not read: there is nothing to {self.action}"
            print(json.dumps({"name": self.name, "note": message}) if self.format == "json" else message)
            return 0
        if self.action == "fetch":
            target = self.data_dir or os.environ.get("FEWSTEP_DATA") or "data"
            fetch(Path(target), report=errors.print)
        found = check(self.data_dir)
        if self.format == "json":
            print(json.dumps(found))
            return 0
        for key, value in found.items():
            if key == "splits":
                for split, sizes in value.items():
                    shown = " / ".join(map(str, sizes)) if isinstance(sizes, list) else f"not usable: {sizes}"
                    console.print(f"split {split:8} {shown}")
            else:
                console.print(f"{key:14} {value}")
        return 0

    def _list(self) -> int:
        if self.format == "json":
            print(json.dumps(DESCRIPTIONS))
            return 0
        for name, description in DESCRIPTIONS.items():
            console.print(f"{name:10} {description}")
        try:
            console.print(f"\nomniglot is here: {check(self.data_dir)['place']}")
        except BadInput as error:
            console.print(f"\n{error}")
        return 0
