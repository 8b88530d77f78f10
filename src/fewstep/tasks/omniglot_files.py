"""Finding and reading Omniglot's images: the authors' two zips, the same unpacked, or one packed npz."""

import io
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.errors import BadInput

SETS = {"images_background": 964, "images_evaluation": 659}  # characters in each of the authors' two sets
DRAWERS = 20
SIDE = 105  # pixels
_PACKED = (SIDE + 7) // 8  # bytes of a row at one bit a pixel
_THRESHOLD = [0] * 128 + [255] * 128
_LARGEST_MEMBER = 100_000  # bytes; the real images take a few hundred
_HOW_TO_GET_IT = (
    "get it with `fewstep data fetch omniglot --data-dir DIR`, or put images_background.zip and "
    "images_evaluation.zip from github.com/brendenlake/omniglot, folder python, there"
)
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, eq=False)
class Drawings:
    """Every image of Omniglot at one bit a pixel, classes sorted by set, alphabet and character.

    Arguments:
        packed: (classes, 20, 105, 14) uint8 bits, 1 is paper and 0 is ink.
        alphabets, characters: (classes,) names.
        background: (classes,) True for the authors' background set.
        form: "npz", "folders" or "zips".
        place: the folder it was read from.
    """

    packed: NDArray[np.uint8]
    alphabets: tuple[str, ...]
    characters: tuple[str, ...]
    background: NDArray[np.bool_]
    form: str
    place: Path

    @property
    def names(self) -> tuple[str, ...]:
        """`Alphabet/characterNN` for each class."""
        return tuple(f"{a}/{c}" for a, c in zip(self.alphabets, self.characters, strict=True))


def roots(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """Folders that may hold data: the one given, alone; else FEWSTEP_DATA, if set, then ./data."""
    if data_dir is not None:
        return [Path(data_dir)]
    named = os.environ.get("FEWSTEP_DATA")
    return [*([Path(named)] if named else []), Path("data")]


def read(data_dir: str | os.PathLike[str] | None = None) -> Drawings:
    """Omniglot from the first place that holds it; in one place npz before folders before zips (the pixels are equal).

    Raises:
        BadInput: no place that holds it, one of the two sets alone, a damaged file.
    """
    places = [place for root in roots(data_dir) for place in (root, root / "omniglot")]
    for place in places:
        if (place / "omniglot.npz").is_file():
            return _read_npz(place)
        found = {
            (form, name)
            for name in SETS
            for form, exists in (("folders", (place / name).is_dir()), ("zips", (place / f"{name}.zip").is_file()))
            if exists
        }
        for form, members in (("folders", _folder_members), ("zips", _zip_members)):
            if all((form, name) in found for name in SETS):
                return _read_members(place, form, {name: members(place, name) for name in SETS})
        if found:
            here = sorted(f"{name}.zip" if form == "zips" else f"{name}/" for form, name in found)
            missing = sorted(set(SETS) - {name for _, name in found}) or sorted(SETS)
            raise BadInput(
                f"{place} holds {' and '.join(here)} but not {' and '.join(missing)} in the same form; both "
                f"sets are needed: {_HOW_TO_GET_IT}"
            )
    raise BadInput(
        f"Omniglot is not in any of: {', '.join(map(str, places))}; {_HOW_TO_GET_IT}, or name the folder "
        "with --data-dir or FEWSTEP_DATA"
    )


def _read_npz(place: Path) -> Drawings:
    path = place / "omniglot.npz"
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array, not an archive of several")
            packed, background = archive["images"], archive["background"]
            alphabets, characters = map(str, archive["alphabet"]), map(str, archive["character"])
            drawings = Drawings(packed, tuple(alphabets), tuple(characters), background, "npz", place)
    except (*_UNREADABLE, TypeError) as error:
        raise BadInput(
            f"{path} cannot be read ({_reason(error)}); it is damaged or not Omniglot's npz: "
            f"delete it and {_HOW_TO_GET_IT}"
        ) from error
    classes = sum(SETS.values())
    expected = (classes, DRAWERS, SIDE, _PACKED)
    if packed.shape != expected or packed.dtype != np.uint8:
        raise BadInput(
            f"{path} holds images of shape {packed.shape} {packed.dtype}, not {expected} uint8; it is not "
            "Omniglot's npz"
        )
    sizes = {(len(drawings.alphabets),), (len(drawings.characters),), background.shape}
    if sizes != {(classes,)}:
        raise BadInput(f"{path} does not name the alphabet, character and set of each of its {classes} classes")
    return drawings


def _read_members(place: Path, form: str, sets: dict[str, Iterator[tuple[str, str, bytes]]]) -> Drawings:
    packed, keys = [], []
    for name, members in sets.items():
        classes: dict[tuple[str, str], list[tuple[str, NDArray[np.uint8]]]] = {}
        for source, inner, content in members:
            parts = inner.split("/")
            if len(parts) != 3:
                raise BadInput(
                    f"{source} is not where Omniglot keeps its images, {name}/Alphabet/characterNN/; "
                    "unpack the archive again"
                )
            classes.setdefault((parts[0], parts[1]), []).append((parts[2], decode(source, content)))
        short = [f"{'/'.join(key)} has {len(images)}" for key, images in classes.items() if len(images) != DRAWERS]
        if len(classes) != SETS[name] or short:
            detail = f"; {short[0]} images, not {DRAWERS}" if short else ""
            raise BadInput(
                f"{name} in {place} holds {len(classes)} of {SETS[name]} characters{detail}; it is "
                f"incomplete: {_HOW_TO_GET_IT}"
            )
        for key in sorted(classes):
            packed.append(np.stack([image for _, image in sorted(classes[key], key=lambda item: item[0])]))
            keys.append((*key, name == "images_background"))
    alphabets, characters, background = zip(*keys, strict=True)
    return Drawings(np.stack(packed), alphabets, characters, np.array(background), form, place)


def _zip_members(place: Path, name: str) -> Iterator[tuple[str, str, bytes]]:
    path = place / f"{name}.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.is_dir() or _litter(info.filename):
                    continue
                source = f"{info.filename} in {path}"
                if info.file_size > _LARGEST_MEMBER:
                    raise BadInput(f"{source} has {info.file_size} bytes; it is not an Omniglot image")
                yield source, info.filename.removeprefix(f"{name}/"), archive.read(info)
    except _UNREADABLE as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{path} cannot be read ({_reason(error)}); the archive is damaged: delete it and {_HOW_TO_GET_IT}"
        ) from error


def _folder_members(place: Path, name: str) -> Iterator[tuple[str, str, bytes]]:
    folder = place / name
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _litter(str(path.relative_to(folder))):
            if path.stat().st_size > _LARGEST_MEMBER:
                raise BadInput(f"{path} has {path.stat().st_size} bytes; it is not an Omniglot image")
            yield str(path), path.relative_to(folder).as_posix(), path.read_bytes()


def _litter(name: str) -> bool:
    """What operating systems leave in folders and archives."""
    parts = name.replace("\\", "/").split("/")
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in parts)


def decode(source: str, content: bytes) -> NDArray[np.uint8]:
    """One PNG of 105 x 105 pixels at one bit a pixel, (105, 14) uint8; `source` is what an error calls it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked before decoding
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                if image.size == (SIDE, SIDE):
                    bits = image if image.mode == "1" else image.convert("L").point(_THRESHOLD, "1")
                    return np.frombuffer(bits.tobytes(), np.uint8).reshape(SIDE, _PACKED)  # one bit a pixel already
                size = image.size
    except _UNREADABLE as error:
        raise BadInput(
            f"{source} is not a readable PNG image ({_reason(error)}); remove it or get the archive again"
        ) from error
    raise BadInput(f"{source} has {size[0]} x {size[1]} pixels, not {SIDE} x {SIDE}; it is not an Omniglot image")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
