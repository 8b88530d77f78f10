import sys

import pytest
import torch

from fewstep.errors import BadInput
from fewstep.tasks import ClassData, strokes
from fewstep.tasks.contact_sheet import alphabets, contact_sheet


def test_rows_are_classes_and_ink_is_black():
    data = strokes(classes=(4, 4, 6), drawers=3)
    sheet = contact_sheet(data, rows=[5, 0], columns=4, zoom=2)
    assert sheet.size == (4 * 32 * 2, 2 * 32 * 2)
    assert sheet.getpixel((0, 0)) == 255
    image = data.test.of_class(5)[1, 0]
    y, x = divmod(int(image.argmax()), 28)
    assert sheet.getpixel(((32 + 2 + x) * 2, (2 + y) * 2)) == 255 - int(image.max())
    assert sheet.crop((3 * 64, 0, 4 * 64, 128)).getextrema() == (255, 255), "there is no fourth sample"


def test_colour_images_keep_their_colours():
    data = ClassData(torch.full((2, 3, 8, 8), 9, dtype=torch.uint8), [0], [2], ("a",))
    assert contact_sheet(data, 1, 2).getpixel((5, 5)) == (9, 9, 9)


def test_nothing_to_show_is_refused():
    with pytest.raises(BadInput, match="at least one row and column, and classes from 0 to 3"):
        contact_sheet(strokes(classes=(4, 4, 4), drawers=1), rows=[4])


def test_the_picture_of_the_readme(real, tmp_path, monkeypatch):
    module = sys.modules[contact_sheet.__module__]
    monkeypatch.setattr(module, "omniglot", lambda _: real)
    monkeypatch.setattr(module, "strokes", lambda: strokes(classes=(2, 2, 4)))
    alphabets(str(tmp_path / "a.png"), rows=2, columns=3)
    assert 1000 < (tmp_path / "a.png").stat().st_size < 150_000
