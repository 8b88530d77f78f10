"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn by 20 people (Lake et al., Science 350, 2015)."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.errors import BadInput, unknown
from fewstep.tasks import resize as resizing
from fewstep.tasks.class_data import ClassData
from fewstep.tasks.image_dataset import ImageDataset
from fewstep.tasks.omniglot_fetch import fetch
from fewstep.tasks.omniglot_files import SIDE, Drawings, read, roots

__all__ = ["check", "fetch", "omniglot"]

SPLITS = ("random", "lake", "vinyals")
ROTATIONS = ("task", "classes", "off")
RESIZES = {"lanczos": resizing.lanczos, "nearest": resizing.nearest}
_VALIDATION_ALPHABETS = 5
_MAMLPP_FRACTIONS = (0.70918052988, 0.03080714725)  # train, validation; test is what remains


def omniglot(
    data_dir: str | os.PathLike[str] | None = None,
    split: str = "random",
    rotations: str = "task",
    invert: bool = True,
    resize: str = "lanczos",
    image_size: int = 28,
) -> ImageDataset:
    """Omniglot as few-shot classes, read once and kept as bytes.

    Values are float32 from 0 to 1.

    Arguments:
        data_dir: a folder that holds, itself or in a subfolder `omniglot`, the authors' images_background.zip and
            images_evaluation.zip, or both unpacked, or omniglot.npz: the pixels are the same. A folder given here is
            the only one looked at; without it FEWSTEP_DATA and then ./data are.
        split: "random" (default, since published MAML and MAML++ numbers use it): 1150 / 50 / 423 characters of both
            sets pooled, cut exactly as MAML++ does. "lake": whole alphabets, test is the authors' evaluation set (659),
            validation the last five background alphabets by name, training the other 25. "vinyals": 1028 / 172 / 423
            by the lists in omniglot_vinyals.json, read from the data folder, its `splits` or its sibling `splits`.
        rotations: "task" (default, as MAML++): each class of a training task is turned by its own random quarter turns;
            validation and test stay upright. "classes" (as Matching and Prototypical Networks): the turned copies of a
            character are three more classes, in all three splits. "off": none.
        invert: True (default, as MAML): ink is 1 and paper 0, so that zero padding looks like paper. False: the
            reverse, as the released MAML++.
        resize: "lanczos" (default): on grey values, strokes keep smooth edges. "nearest": stays binary, which is what
            MAML and MAML++ got, since Pillow ignores Lanczos for images of one bit.
        image_size: side of the images in pixels; 28 in all the papers.

    Raises:
        BadInput: an unknown option, missing or damaged data.

    Source: Lake et al. 2015; splits of Vinyals et al. 2016 (arXiv 1606.04080), Antoniou et al. 2019 (arXiv 1810.09502).

    Example:
        >>> data = omniglot("data")  # doctest: +SKIP
        >>> batch = data.tasks(ways=20, shots=1, queries=1).split("test")(range(8))  # doctest: +SKIP
    """
    for kind, value, known in (
        ("split", split, SPLITS),
        ("rotations", rotations, ROTATIONS),
        ("resize", resize, tuple(RESIZES)),
    ):
        if value not in known:
            raise unknown(f"option for {kind} of omniglot,", str(value), known)
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 1 <= image_size <= 1024:
        raise BadInput(f"image_size is {image_size!r}; it must be a whole number of pixels from 1 to 1024")
    drawings = read(data_dir)
    parts = split_classes(drawings, split, data_dir)
    count, drawers = drawings.packed.shape[:2]
    everything = ClassData(
        _pixels(drawings, resize, image_size, invert),
        np.arange(count) * drawers,
        np.full(count, drawers),
        drawings.names,
    )
    train, validation, test = (everything.select(part) for part in parts)
    if rotations == "classes":
        train, validation, test = train.rotated(), validation.rotated(), test.rotated()
    options = {"split": split, "rotations": rotations, "invert": invert, "resize": resize, "image_size": image_size}
    return ImageDataset("omniglot", train, validation, test, rotate=rotations == "task", options=options)


def split_classes(drawings: Drawings, split: str, data_dir: str | os.PathLike[str] | None = None) -> list[list[int]]:
    """Class numbers of the training, validation and test split."""
    names = drawings.names
    if split == "lake":
        held_out = sorted({a for a, b in zip(drawings.alphabets, drawings.background, strict=True) if b})
        held_out = held_out[-_VALIDATION_ALPHABETS:]
        where = [
            2 if not b else int(a in held_out) for a, b in zip(drawings.alphabets, drawings.background, strict=True)
        ]
        return [[i for i, part in enumerate(where) if part == wanted] for wanted in range(3)]
    if split == "random":
        # MAML++: the seed of the shuffle is itself drawn from seed 0, and both bounds are cut off, not rounded.
        order = np.arange(len(names), dtype=np.int32)
        np.random.RandomState(np.random.RandomState(0).randint(1, 999999)).shuffle(order)
        by_name = sorted(range(len(names)), key=lambda i: names[i])
        shuffled = [by_name[i] for i in order]
        first = int(_MAMLPP_FRACTIONS[0] * len(names))
        second = int(sum(_MAMLPP_FRACTIONS) * len(names))
        return [shuffled[:first], shuffled[first:second], shuffled[second:]]
    return _vinyals(names, data_dir)


def check(data_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What is there, after reading every image: form, place, counts and the size of each split, fit for JSON.

    Raises:
        BadInput: missing or damaged data.

    Example:
        >>> check("data")["splits"]["random"]  # doctest: +SKIP
        [1150, 50, 423]
    """
    drawings = read(data_dir)
    splits: dict[str, Any] = {}
    for split in SPLITS:
        try:
            splits[split] = [len(part) for part in split_classes(drawings, split, data_dir)]
        except BadInput as error:
            splits[split] = str(error)
    return {
        "name": "omniglot",
        "form": drawings.form,
        "place": str(drawings.place),
        "classes": len(drawings.names),
        "images": int(np.prod(drawings.packed.shape[:2])),
        "alphabets": len(set(drawings.alphabets)),
        "splits": splits,
    }


def _pixels(drawings: Drawings, resize: str, size: int, invert: bool) -> torch.Tensor:
    """(classes * 20, 1, size, size) uint8; a few classes at a time, since all of it unpacked takes 360 MB."""
    shape = drawings.packed.shape[:2]
    images = np.empty((*shape, size, size), np.uint8)
    for start in range(0, shape[0], 8):
        pages = np.unpackbits(drawings.packed[start : start + 8], axis=-1, count=SIDE).reshape(-1, SIDE, SIDE)
        images[start : start + 8] = RESIZES[resize](pages * np.uint8(255), size).reshape(-1, shape[1], size, size)
    if invert:
        np.subtract(255, images, out=images)
    return torch.from_numpy(images.reshape(-1, 1, size, size))


def _vinyals(names: tuple[str, ...], data_dir: str | os.PathLike[str] | None) -> list[list[int]]:
    places = [place for root in roots(data_dir) for place in (root, root / "splits", root.parent / "splits")]
    path = next((p / "omniglot_vinyals.json" for p in places if (p / "omniglot_vinyals.json").is_file()), None)
    if path is None:
        raise BadInput(
            "split vinyals needs its class lists, omniglot_vinyals.json (lists train, val and test of "
            f"Alphabet/characterNN), in one of: {', '.join(map(str, places))}; put it there, or use split "
            "random or lake"
        )
    number = {name: i for i, name in enumerate(names)}
    try:
        lists = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = [[number[name] for name in lists[key]] for key in ("train", "val", "test")]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"{path} is not a class list of Omniglot ({type(error).__name__}: {error}); it needs the lists "
            "train, val and test of Alphabet/characterNN"
        ) from error
    everything = [i for part in parts for i in part]
    if len(set(everything)) != len(everything) or not all(parts):
        raise BadInput(f"{path} names a class twice or leaves a split empty; its lists must be disjoint")
    return parts
