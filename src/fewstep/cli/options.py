"""Options that several verbs share, and the way between records of options and arguments."""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from fewstep.errors import BadInput
from fewstep.metalearning.execution import COMPILED
from fewstep.metalearning.learner import Learner
from fewstep.methods import Recipe
from fewstep.training.choices import NAME, PATH, N, own

SWITCHES = ("--compile", "--no-compile")  # options that take no value


@dataclass(frozen=True, kw_only=True)
class BudgetInShort:
    """How long to train, and where; None means the preset's own."""

    epochs: Annotated[int | None, N] = None
    """Each ends with a validation; else the preset's."""
    iterations: Annotated[int | None, N] = None
    """Outer steps in an epoch; else the preset's."""
    tasks: Annotated[int | None, N] = None
    """Tasks in a meta-batch; else the preset's."""
    validation_tasks: Annotated[int, N] = 600
    """Tasks of each validation (600)."""
    device: Annotated[str, NAME] = "auto"
    """cpu, cuda, cuda:N; auto is cuda where there is one."""
    threads: Annotated[int | None, N] = None
    """Processor threads."""


@dataclass(frozen=True, kw_only=True)
class Budget(BudgetInShort):
    """The same, and how the machine does it."""

    strategy: Annotated[Literal["auto", "loop", "vectorized", "recompute"], NAME] = "auto"
    """auto, loop, vectorized, recompute: equal results."""
    micro_batch: Annotated[int | None, N] = None
    """Tasks taken at a time: less memory, equal results."""
    compile: Annotated[bool, own("")] = False
    """Compile with torch: minutes at the first step."""

    def tell(self, learner: Learner) -> None:
        """How the machine does it.

        Raises:
            BadInput: what does not go together, an empty micro-batch.
        """
        if self.compile and self.strategy not in ("auto", *COMPILED):
            raise BadInput(f"--strategy {self.strategy} cannot be compiled; leave it out, or --compile")
        learner.strategy, learner.micro_batch, learner.compiled = self.strategy, self.micro_batch, self.compile

    def filled(self, recipe: Recipe) -> "Budget":
        """The same with the recipe's length where none is given."""
        return replace(
            self,
            epochs=recipe.epochs if self.epochs is None else self.epochs,
            iterations=recipe.iterations if self.iterations is None else self.iterations,
            tasks=recipe.tasks if self.tasks is None else self.tasks,
        )


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What is measured, and where it goes."""

    directory: Annotated[Path | None, PATH] = None
    """For trainings, comparison.csv and .json."""
    config: Annotated[Path | None, PATH] = None
    """TOML file of options; the command line wins."""
    seeds: Annotated[tuple[int, ...], own("N …")] = (0,)
    """Train each preset with each of these seeds (0)."""
    count: Annotated[int, N] = 600
    """Test tasks, the same for all (600)."""
    format: Annotated[Literal["text", "json"], NAME] = "text"
    """text, or json to print JSON alone."""


def option_names(kind: type) -> list[str]:
    """The options of a verb, those of records inside it included.

    Example:
        >>> option_names(Budget)[:2]
        ['epochs', 'iterations']
    """
    hints = get_type_hints(kind)
    nested = ((f.name, hints[f.name]) for f in fields(kind))
    return [n for name, hint in nested for n in (option_names(hint) if is_dataclass(hint) else [name])]  # type: ignore[arg-type]


def check_options(verb: str, kind: type, arguments: Iterable[str]) -> None:
    """Raise BadInput for an option the verb does not have; names the nearest."""
    names = [name.replace("_", "-") for name in option_names(kind)]
    known = ["--help", "--help-all", *(f"--{name}" for name in names)]
    known += [off for off in SWITCHES if off.removeprefix("--no-") in names]
    for argument in arguments:
        flag = argument.split("=", 1)[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            near = get_close_matches(flag, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else "."
            every = "--help-all" if verb in ("train", "compare", "ablate") else "--help"
            raise BadInput(f"{verb} has no option {flag}{hint} `fewstep {verb} {every}` lists them")


def as_arguments(*records: Any) -> list[str]:
    """The arguments that say what records of options hold beyond their defaults.

    Example:
        >>> as_arguments(Budget(epochs=3, strategy="loop", compile=True))
        ['--epochs', '3', '--strategy', 'loop', '--compile']
    """
    words: list[str] = []
    for record in records:
        for f in fields(record):
            value = getattr(record, f.name)
            if f.default is not MISSING and value != f.default:
                flag = f"--{f.name.replace('_', '-')}"
                for one in value if isinstance(value, tuple) else (value,):
                    words += [flag] if flag in SWITCHES else [flag, str(one)]
    return words
