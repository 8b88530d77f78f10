import numpy as np
import pytest
import torch

from fewstep.errors import BadInput
from fewstep.tasks import ClassData


def test_from_labels_gathers_classes_and_keeps_the_order_of_images():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    data = ClassData.from_labels(images, [2, 0, 2, 1, 0, 2], ("a", "b", "c"))
    assert [data.of_class(c).flatten().tolist() for c in range(3)] == [[1, 4], [3], [0, 2, 5]]


def test_rotated_copies_share_the_pixels(labelled):
    turned = labelled.rotated()
    assert len(turned) == 4 * len(labelled)
    assert turned.images is labelled.images
    assert turned.names[:3] == ("c0", "c0 turned 90", "c0 turned 180")
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
    one = ClassData(image, np.array([0]), np.array([1]), ("x",)).rotated()
    assert [one.of_class(k)[0, 0].flatten().tolist() for k in range(4)] == [
        torch.rot90(image[0, 0], k).flatten().tolist() for k in range(4)
    ]


def test_select_keeps_the_given_order(labelled):
    some = labelled.select([5, 2])
    assert some.names == ("c5", "c2")
    assert torch.equal(some.of_class(1), labelled.of_class(2))


BYTES = torch.zeros(4, 1, 2, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (BYTES.float(), [0], [4], ("a",)),
            r"must be a uint8 tensor \(n, channels, height, width\), not torch.float32",
        ),
        ((BYTES[0], [0], [4], ("a",)), r"not torch.uint8 \(1, 2, 3\)"),
        ((BYTES, [0, 2], [4], ("a",)), "one entry for each class"),
        ((BYTES, [], [], ()), "there are no classes"),
        ((BYTES, [0, 4], [4, 0], ("a", "empty")), "class 'empty' has no images"),
        ((BYTES, [2], [3], ("a",)), "reach outside the 4 images"),
        ((BYTES, [0], [4], ("a",), [1]), "images of 2 x 3 pixels cannot be turned by 90 degrees"),
        ((BYTES, [0], [4], ("a",), [4]), "rotations are quarter turns, 0 to 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        ClassData(*arguments)


def test_labels_out_of_range_are_refused():
    with pytest.raises(BadInput, match="labels must be 4 numbers, one for each image, from 0 to 1"):
        ClassData.from_labels(BYTES, [0, 1, 2, 0], ("a", "b"))
