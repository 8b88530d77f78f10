"""`fewstep`: the command line. Exit status 0 done, 2 bad input, 1 a fault, 130 interrupted."""

import signal
import sys
from typing import Annotated, Any, Union

import tyro

from fewstep.cli.ablate import Ablate
from fewstep.cli.compare import Compare
from fewstep.cli.console import console, errors
from fewstep.cli.data import Data
from fewstep.cli.doctor import Doctor
from fewstep.cli.evaluate import Evaluate
from fewstep.cli.options import check_options, option_names, parser
from fewstep.cli.overlay import laid
from fewstep.cli.presets import Presets
from fewstep.cli.train import Train
from fewstep.errors import BadInput
from fewstep.metalearning.ranks import RankGone
from fewstep.training.choices import Choices, Images
from fewstep.training.torchrun import launched, leads

VERBS: dict[str, type] = {
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "ablate": Ablate,
    "presets": Presets,
    "data": Data,
    "doctor": Doctor,
}
# What --help leaves out, so that it fills no more than a screen; --help-all shows it too.
HIDDEN: dict[str, list[str]] = {
    "train": ["strategy", "micro_batch", "compile", *option_names(Images)],
    "compare": option_names(Choices) + option_names(Images),
    "ablate": option_names(Choices) + option_names(Images),
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and exit with its status.

    Example:
        >>> main(["presets", "--format", "json"])  # doctest: +SKIP
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    console.quiet = errors.quiet = not leads()
    try:
        if launched() and arguments[:1] != ["train"]:
            raise BadInput("torchrun is for `fewstep train` alone; run every other command without it")
        if arguments and arguments[0] in VERBS:
            check_options(arguments[0], VERBS[arguments[0]], arguments[1:])
        command = parsed(arguments)
        status = command.run()
    except BadInput as error:
        errors.print(f"fewstep: {error}")
        status = 2
    except RankGone as error:
        errors.print(f"fewstep: {error}")
        status = 1
    except OSError as error:
        errors.print(f"fewstep: {error.filename or 'the system'}: {error.strerror or error}")
        status = 2
    except KeyboardInterrupt:
        errors.print("fewstep: interrupted")
        status = 130
    if status and launched():
        # As soon as one process has ended, torchrun ends the others; this one still ends by itself.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(status)


def parsed(arguments: list[str]) -> Any:
    """The verb that the arguments, and the file they name, ask for; exits where that is help, or not understood."""
    wanted = arguments[0] if arguments else ""
    hidden = HIDDEN if {"-h", "--help"} & set(arguments) else {}
    kinds = dict(VERBS)
    for verb in ("train", "evaluate", "compare", "ablate"):
        kinds[verb] = parser(VERBS[verb], hidden.get(verb, ()), laid(arguments, VERBS[verb]) if verb == wanted else {})
    several = (Annotated[kind, tyro.conf.subcommand(verb)] for verb, kind in kinds.items())
    found: Any = tyro.cli(
        Union[tuple(several)],  # type: ignore[call-overload]  # noqa: UP007 - made while running
        prog="fewstep",
        description="Learn to learn from a few examples in a few steps.",
        args=["--help" if word == "--help-all" else word for word in arguments],
        config=(tyro.conf.ConsolidateSubcommandArgs,),
    )
    return found.verb() if hasattr(found, "verb") else found


if __name__ == "__main__":
    main()
