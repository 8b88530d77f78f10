"""`fewstep`: the command line. Exit status 0 done, 2 bad input, 1 a fault, 130 interrupted."""

import sys
from typing import Annotated, Any

import tyro

from fewstep.cli.console import errors
from fewstep.cli.data import Data
from fewstep.cli.doctor import Doctor
from fewstep.cli.evaluate import Evaluate
from fewstep.cli.overlay import with_config
from fewstep.cli.presets import Presets
from fewstep.cli.train import Train
from fewstep.errors import BadInput

VERBS: dict[str, type] = {"train": Train, "evaluate": Evaluate, "presets": Presets, "data": Data, "doctor": Doctor}
Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Presets, tyro.conf.subcommand("presets")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and exit with its status.

    Example:
        >>> main(["presets", "--format", "json"])  # doctest: +SKIP
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command: Any = tyro.cli(
            Command,  # type: ignore[arg-type]
            prog="fewstep",
            description="Learn to learn from a few examples in a few steps.",
            args=with_config(arguments, VERBS),
            config=(tyro.conf.ConsolidateSubcommandArgs,),
        )
        status = command.run()
    except BadInput as error:
        errors.print(f"fewstep: {error}", markup=False)
        status = 2
    except OSError as error:
        errors.print(f"fewstep: {error.filename or 'the system'}: {error.strerror or error}", markup=False)
        status = 2
    except KeyboardInterrupt:
        errors.print("fewstep: interrupted")
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
