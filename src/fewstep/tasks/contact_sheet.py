"""Contact sheets: a row of samples for each class, to look at a data set before training on it.

`python -m fewstep.tasks.contact_sheet OUT.png [OMNIGLOT_DIR]` draws the embedded alphabet beside Omniglot.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fewstep.errors import BadInput
from fewstep.tasks.class_data import ClassData
from fewstep.tasks.image_dataset import ImageDataset
from fewstep.tasks.omniglot import omniglot
from fewstep.tasks.strokes import strokes

_GAP = 2  # pixels of paper around each image


def contact_sheet(
    data: ImageDataset | ClassData, rows: int | Sequence[int] = 10, columns: int = 10, zoom: int = 1, paper: bool = True
) -> Image.Image:
    """Images in a grid: classes down, samples of a class across.

    Arguments:
        data: classes, or a data set, whose test classes are shown.
        rows: the class numbers to show, or how many, spread evenly over all.
        columns: samples of each class; places without a sample stay empty.
        zoom: whole factor of enlargement.
        paper: show grey images as black ink on white paper, for data whose ink is 255.

    Raises:
        BadInput: nothing to show, a class number out of range.

    Example:
        >>> contact_sheet(strokes(classes=(4, 4, 4)), rows=4, columns=6).size
        (192, 128)
    """
    classes = data.test if isinstance(data, ImageDataset) else data
    if isinstance(rows, int):
        shown = min(rows, len(classes))
        rows = [i * len(classes) // shown for i in range(shown)]
    numbers = list(rows)
    if not numbers or columns < 1 or zoom < 1 or min(numbers) < 0 or max(numbers) >= len(classes):
        raise BadInput(f"a contact sheet needs at least one row and column, and classes from 0 to {len(classes) - 1}")
    channels, height, width = classes.images.shape[1:]
    grid = torch.zeros(channels, len(numbers) * (height + 2 * _GAP), columns * (width + 2 * _GAP), dtype=torch.uint8)
    for row, number in enumerate(numbers):
        for column, image in enumerate(classes.of_class(number)[:columns]):
            top, left = row * (height + 2 * _GAP) + _GAP, column * (width + 2 * _GAP) + _GAP
            grid[:, top : top + height, left : left + width] = image
    pixels = grid.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    if channels == 3:
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return Image.fromarray(255 - pixels[0].numpy() if paper else pixels[0].numpy())


def alphabets(path: str, omniglot_dir: str | None = None, rows: int = 10, columns: int = 10, zoom: int = 2) -> None:
    """The picture of the README: the embedded alphabet on the left, Omniglot on the right, both of test classes."""
    halves = [
        ("strokes (embedded)", contact_sheet(strokes(), rows, columns, zoom)),
        ("Omniglot (Lake et al.)", contact_sheet(omniglot(omniglot_dir), rows, columns, zoom)),
    ]
    title, space = 28, 24
    width, height = halves[0][1].size
    sheet = Image.new("L", (2 * width + space, height + title), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for side, (text, half) in enumerate(halves):
        left = side * (width + space)
        sheet.paste(half, (left, title))
        pen.text((left + width // 2, 4), text, fill=0, font=font, anchor="ma")
    pen.line((width + space // 2, 0, width + space // 2, height + title), fill=190)
    # Sixteen greys are enough for a picture of ink and halve the file.
    Image.fromarray((np.asarray(sheet) // 17 * 17).astype(np.uint8)).quantize(16).save(path, optimize=True)


if __name__ == "__main__":
    alphabets(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
