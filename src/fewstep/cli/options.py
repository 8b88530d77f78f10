"""Options: from records of plain fields to what tyro parses and shows, and from records back to arguments.

A field is written once: its name is the option, its type the kind of value, its line in the docstring the help.
"""

import inspect
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from tyro.conf import Positional, UseAppendAction, arg

from fewstep.errors import BadInput
from fewstep.metalearning.execution import COMPILED
from fewstep.metalearning.learner import Learner
from fewstep.methods import Method, Recipe
from fewstep.methods.ablation import KNOWN_AS
from fewstep.methods.records import arguments, choices, parts_of, required
from fewstep.training.choices import Choices, Images
from fewstep.training.experiment import Experiment

SWITCHES = ("--compile", "--no-compile")  # options that take no value
METAVARS = {int: "N", float: "X", bool: "BOOL", Path: "PATH"}
NAMED = {"data_dir": "PATH", "set": "FIELD=VALUE", "seeds": "N …", "compile": "",
         "preset": "PRESET", "entries": "PRESET|RUN …"}  # fmt: skip
T = TypeVar("T")
HELP_WIDTH = 53  # of a line at 80 columns


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train, and where and how the machine does it; None means the preset's own.

    Arguments:
        epochs: Each ends with a validation; else the preset's.
        iterations: Outer steps in an epoch; else the preset's.
        tasks: Tasks in a meta-batch; else the preset's.
        validation_tasks: Tasks of each validation (600).
        device: cpu, cuda, cuda:N; auto is cuda where there is one.
        threads: Processor threads.
        strategy: auto, loop, vectorized, recompute: equal results.
        micro_batch: Tasks taken at a time: less memory, equal results.
        compile: Compile with torch: minutes at the first step.
    """

    epochs: int | None = None
    iterations: int | None = None
    tasks: int | None = None
    validation_tasks: int = 600
    device: str = "auto"
    threads: int | None = None
    strategy: Literal["auto", "loop", "vectorized", "recompute"] = "auto"
    micro_batch: int | None = None
    compile: bool = False

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
    """What is measured, and where it goes.

    Arguments:
        directory: For trainings, comparison.csv and .json.
        config: TOML file of options; the command line wins.
        seeds: Train each preset with each of these seeds (0).
        count: Test tasks, the same for all (600).
        format: text, or json to print JSON alone.
    """

    directory: Path | None = None
    config: Path | None = None
    seeds: tuple[int, ...] = (0,)
    count: int = 600
    format: Literal["text", "json"] = "text"


@dataclass(frozen=True, kw_only=True)
class TrainingVerb(Budget, Choices, Images):
    """The options of every verb that trains."""

    def of(self, kind: type[T]) -> T:
        """Those of the options that a record of this kind has."""
        return kind(**{name: getattr(self, name) for name in option_names(kind)})

    def experiment(self, preset: str, seed: int = 0) -> Experiment:
        return Experiment(preset, seed, **vars(self.of(Choices)), **vars(self.of(Images)))


def option_names(kind: type) -> list[str]:
    """The options of a verb or of a record of options.

    Example:
        >>> option_names(Budget)[:2]
        ['epochs', 'iterations']
    """
    return [f.name for f in fields(kind)]  # type: ignore[arg-type]


def parser(verb: Any, hidden: Collection[str], laid: Mapping[str, Any]) -> type:
    """A record of the options of a verb as tyro parses and shows it; its `verb()` makes the verb.

    Arguments:
        hidden: options that the help leaves out.
        laid: values that take the place of defaults.
    """
    hints, shown = get_type_hints(verb), []
    order = [name for base in verb.__mro__ for name in inspect.get_annotations(base)]  # the verb's own first
    for f in sorted(fields(verb), key=lambda f: order.index(f.name)):
        hint = hints[f.name]
        one = get_args(hint)[0] if NoneType in get_args(hint) else hint
        metavar = NAMED.get(f.name, METAVARS.get(one, "NAME"))
        how: Any = UseAppendAction if f.name == "set" else Positional if f.default is MISSING else None
        option = arg(metavar=metavar, help=help_line(verb, f), help_behavior_hint="")
        if f.name not in hidden:
            default = field(default=laid.get(f.name, f.default))
            shown.append((f.name, Annotated[how[hint] if how else hint, option], default))
    doc = inspect.cleandoc(verb.__doc__).partition("Arguments:")[0]
    namespace = {"__doc__": doc, "verb": lambda self: verb(**vars(self))}
    return make_dataclass(verb.__name__, shown, namespace=namespace, kw_only=True)


def help_line(record: type, f: Field) -> str:
    """What a docstring says of a field: the record's own, or, of a short name, that of the part, and its values.

    Example:
        >>> [help_line(Choices, f) for f in fields(Choices) if f.name in ("order", "clamp")]
        ['Derivative order: second, first, annealed (DA).', 'Clamp outer gradients to ± this.']
    """
    if not f.metadata:
        return arguments(record)[f.name]
    kind: Any = Method
    *inside, last = f.metadata["path"].split(".")
    for name in inside:
        kind = get_type_hints(kind)[name]
    kind = next((part for part in parts_of(kind).values() if last in get_type_hints(part)), kind)
    says, hint = arguments(kind)[last], get_type_hints(kind)[last]
    says = says[0].upper() + says[1:]
    values = {word: part.__name__ for word, part in parts_of(hint).items() if not required(part)}
    values = values or {word: word for word in choices(hint)}
    if not values:
        return says.split(". ")[0].rstrip(".") + "."
    listed = ", ".join(word + (f" ({KNOWN_AS[of]})" if of in KNOWN_AS else "") for word, of in values.items()) + "."
    whole = f"{re.split('[.,:;]', says)[0]}: {listed}"
    return whole if len(whole) <= HELP_WIDTH else textwrap.shorten(listed, HELP_WIDTH, placeholder=" …")


def check_options(verb: str, kind: type, arguments: Iterable[str]) -> None:
    """Check that the verb has the options among the arguments.

    Raises:
        BadInput: one that it does not have; names the nearest.
    """
    names = [name.replace("_", "-") for name in option_names(kind)]
    known = ["--help", "--help-all", *(f"--{name}" for name in names)]
    known += [off for off in SWITCHES if off.removeprefix("--no-") in names]
    for argument in arguments:
        flag = argument.split("=", 1)[0].replace("_", "-")
        if flag.startswith("--") and flag != "--" and flag not in known:
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
