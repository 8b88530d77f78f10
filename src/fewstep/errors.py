"""The one exception a user's mistake raises."""

from collections.abc import Iterable
from difflib import get_close_matches


class BadInput(ValueError):
    """Input that cannot be used: says what is wrong, where, and what to do.

    The command line prints its message as one sentence and exits with status 2; every other exception is a fault.

    Example:
        >>> raise BadInput("runs/x holds no checkpoint; train first")
        Traceback (most recent call last):
        fewstep.errors.BadInput: runs/x holds no checkpoint; train first
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """The error for a name that does not exist, with the nearest that does.

    Example:
        >>> unknown("preset", "mamll", ["maml", "fomaml"]).args[0]
        "unknown preset 'mamll'; did you mean 'maml'? Known: fomaml, maml"
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return BadInput(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}")
