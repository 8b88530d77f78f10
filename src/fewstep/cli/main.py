"""`fewstep`: the command line. Exit status 0 done, 2 bad input, 1 a fault, 130 interrupted."""

import signal
import sys
from typing import Annotated, Any, Union

import tyro

from fewstep.cli.ablate import Ablate, AblateInShort
from fewstep.cli.compare import Compare, CompareInShort
from fewstep.cli.console import console, errors
from fewstep.cli.data import Data
from fewstep.cli.doctor import Doctor
from fewstep.cli.evaluate import Evaluate
from fewstep.cli.options import check_options
from fewstep.cli.overlay import with_config
from fewstep.cli.presets import Presets
from fewstep.cli.train import Train, TrainInShort
from fewstep.errors import BadInput
from fewstep.metalearning.ranks import RankGone
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
# What --help shows of verbs whose options fill more than a screen; --help-all shows them whole.
IN_SHORT: dict[str, type] = {"train": TrainInShort, "compare": CompareInShort, "ablate": AblateInShort}


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and exit with its status.

    Example:
        >>> main(["presets", "--format", "json"])  # doctest: +SKIP
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    verbs = VERBS | IN_SHORT if {"-h", "--help"} & set(arguments) else VERBS
    console.quiet = errors.quiet = not leads()
    try:
        if launched() and arguments[:1] != ["train"]:
            raise BadInput("torchrun is for `fewstep train` alone; run every other command without it")
        if arguments and arguments[0] in VERBS:
            check_options(arguments[0], VERBS[arguments[0]], arguments[1:])
        several = (Annotated[kind, tyro.conf.subcommand(verb)] for verb, kind in verbs.items())
        command: Any = tyro.cli(
            Union[tuple(several)],  # type: ignore[call-overload]  # noqa: UP007 - made while running
            prog="fewstep",
            description="Learn to learn from a few examples in a few steps.",
            args=["--help" if word == "--help-all" else word for word in with_config(arguments, VERBS)],
            config=(tyro.conf.ConsolidateSubcommandArgs,),
        )
        status = command.run()
    except BadInput as error:
        errors.print(f"fewstep: {error}", markup=False)
        status = 2
    except RankGone as error:
        errors.print(f"fewstep: {error}", markup=False)
        status = 1
    except OSError as error:
        errors.print(f"fewstep: {error.filename or 'the system'}: {error.strerror or error}", markup=False)
        status = 2
    except KeyboardInterrupt:
        errors.print("fewstep: interrupted")
        status = 130
    if status and launched():
        # As soon as one process has ended, torchrun ends the others; this one has its own end, and words to say.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(status)


if __name__ == "__main__":
    main()
