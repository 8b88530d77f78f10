"""Every docstring of the library is written in one dialect.

One line that says what the thing is or does; text, and indented formulas, where they help; then the sections of
`ORDER`, each after an empty line, the runnable example last.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fewstep"
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
# Paper and Differences: what `fewstep presets` and docs/methods.md show of a preset.
ORDER = ("Arguments", "Returns", "Raises", "Paper", "Source", "Differences", "Shapes", "Example")
ON_THE_LINE = ("Paper", "Source", "Differences", "Shapes")  # may be one line: their text beside their name

FORBIDDEN = {
    r"^\s*(Args|Parameters|Equation|Sources|Examples)\b.*:": "not a section of this library",
    r"\b[Rr]aises [A-Z`]": "write a section Raises: `BadInput: an unknown name, …`",
    r"(^\s*|[.;] )[Rr]eturns\b(?!:)": "write a section Returns",
    r"^Example\b[^:]+:": "write `Example:`, and other words as a comment in it",
    rf"\S.*\b({'|'.join(ORDER)}):( |$)": "a section begins on a line of its own",
}

# Exported without an example; for each the reason.
WITHOUT_EXAMPLE: dict[str, str] = {}


def faults(text: str, verb: bool = False) -> Iterator[str]:
    """What is wrong with a docstring; that of a verb is its help and may show a command as example."""
    first, *rest = text.splitlines()
    if not first.endswith((".", ":")):
        yield f"{first!r}: the first line ends in a period, or in a colon before a formula"
    if rest and rest[0]:
        yield f"{first!r}: what follows the first line is set off by an empty line"
    yield from forbidden(first)
    names, code = [""], []
    for before, line in zip([first, *rest], rest, strict=False):
        if verb and line.startswith("Example: fewstep "):
            continue
        if names[-1] == "Example" and line.startswith(" "):
            code.append(line)
            continue
        yield from forbidden(line)
        begins = re.match(r"([A-Z]\w*|Differences from .*):( \S.*)?$", line)
        if begins and (not before or not begins[2]):
            name = begins[1].split()[0]
            if name not in ORDER:
                yield f"{line!r}: no section of this library, which are {', '.join(ORDER)}"
            elif begins[2] and name not in ON_THE_LINE:
                yield f"{line!r}: the text of this section is indented below its name"
            if before:
                yield f"{line!r}: an empty line belongs before a section"
            names.append(name)
        elif names[-1] and re.match(r"\S", line):
            yield f"{line!r}: text after section {names[-1]} that is not indented"
    known = [ORDER.index(name) for name in names if name in ORDER]
    if known != sorted(known):
        yield f"sections in the order {', '.join(names[1:])}; it is {', '.join(ORDER)}"
    if "Example" in names and not any(">>>" in line for line in code):
        yield "the example has no >>>, so nothing runs it"


def forbidden(line: str) -> Iterator[str]:
    return (f"{line!r}: {advice}" for pattern, advice in FORBIDDEN.items() if re.search(pattern, line))


@pytest.mark.parametrize("text", [
    "What it is",
    "What it\nis, on two lines.",
    "What it is.\n\nArgs:\n    x: a number.",
    "What it is.\n\nParameters:\n    x: a number.",
    "What it is.\n\nEquation: y = x",
    "What it is.\n\nRaises BadInput for sizes below 1.",
    "What it is. Then more.\n\nIt is odd. Raises BadInput for sizes below 1.",
    "What it is; raises BadInput for sizes below 1.",
    "What it is.\n\nReturns (n, k) int64.",
    "What it is.\n\nExample, of one's own:\n    >>> 1\n    1",
    "What it is.\n\nIt is odd. Example:\n    >>> 1\n    1",
    "What it is.\n\nExample:\n    not run",
    "What it is.\n\nExample: fewstep train maml",
    "What it is.\n\nWarnings:\n    it is odd.",
    "What it is.\n\nSource: a paper, whose\nname is long.",
    "What it is.\n\nArguments:\n    x: a number.\nRaises:\n    BadInput: no number.",
    "What it is.\n\nArguments: x, a number.",
    "What it is.\n\nArguments:\n    x: a number.\n\nIt is odd.",
    "What it is.\n\nRaises:\n    BadInput: no number.\n\nArguments:\n    x: a number.",
    "What it is.\n\nExample:\n    >>> 1\n    1\n\nSource: a paper.",
])  # fmt: skip
def test_another_dialect_is_seen(text):
    assert list(faults(text))


RIGHT = """What it is:

    y = x

It returns what it raises to a power.

Arguments:
    x: a number.

Returns:
    Another.

Raises:
    BadInput: no number.

Source: a paper.

Example:
    >>> print("Args:")  # Returns nothing
    Args:"""


def test_the_dialect_is_not_seen_as_another():
    assert not list(faults(RIGHT))


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((SOURCE / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES)
def test_docstrings_are_in_the_dialect(file):
    found = []
    for node in ast.walk(tree(file)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is not None:
            where = f"{file}:{node.body[0].lineno} {getattr(node, 'name', 'module')}"
            found += [f"{where}: {fault}" for fault in faults(text, verb=file.startswith("cli/"))]
    assert not found, "\n".join(found)


def exported() -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """The functions and classes in `__all__` of the package and its subpackages, by their name in the package."""
    found = {}
    for file in FILES:
        if not file.endswith("__init__.py"):
            continue
        package = ".".join(["fewstep", *Path(file).parts[:-1]])
        for name in names_in_all(tree(file)):
            node = definition(file, name)
            if node is not None:
                found[f"{package}.{name}"] = node
    return found


def names_in_all(module: ast.Module) -> list[str]:
    for node in module.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def definition(file: str, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """Where a name that a file defines or imports is defined; None for a module or a value."""
    for node in tree(file).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and node.module != "fewstep":  # from there come subpackages
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    path = "/".join(node.module.split(".")[1:])
                    places = [place for place in (f"{path}.py", f"{path}/__init__.py") if place in FILES]
                    return definition(places[0], alias.name) if places else None
    return None


EXPORTED = exported()


@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_exported_has_a_docstring_with_an_example(name):
    text = ast.get_docstring(EXPORTED[name]) or ""
    assert text, f"{name} has no docstring"
    assert ("\nExample:\n" in text) != (name in WITHOUT_EXAMPLE), f"{name}: no Example, or one that is excepted"


def test_exceptions_are_exported():
    assert set(WITHOUT_EXAMPLE) <= set(EXPORTED)
