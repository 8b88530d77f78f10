import hashlib
import time

import numpy as np
import pytest
import torch

from fewstep.errors import BadInput
from fewstep.tasks import strokes
from fewstep.tasks.stroke_programs import programs
from fewstep.tasks.strokes import draw

IDS, HANDS = np.arange(400) % 100 * 7919, np.arange(400) // 100 * 3


@pytest.mark.parametrize(
    ("size", "digest"),
    [
        (28, "82244ebfcbd74cd091f5feb2ac12f09423e4fc21109c012880f44bb951988b63"),
        (40, "98af329b201caae410bb2e4bd4ef7cefb435e711c0f0e48e0fbcb90e390e8bf2"),
    ],
)
def test_every_machine_draws_the_same_bytes(size, digest):
    images = draw(IDS, HANDS, sample_seed=5, image_size=size)
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest() == digest


def test_an_image_depends_on_its_numbers_alone():
    images = draw(IDS, HANDS)
    order = np.random.RandomState(0).permutation(400)[:37]
    assert torch.equal(draw(IDS[order], HANDS[order]), images[order])
    assert not torch.equal(draw(IDS[:9], HANDS[:9], sample_seed=1), images[:9])
    assert len({image.numpy().tobytes() for image in images}) == 400


def test_ink_is_like_omniglot_at_28_pixels():
    ink = draw(np.arange(300), np.arange(300) % 20).float() / 255
    amount = ink.flatten(1).mean(1)
    assert 0.06 < amount.mean() < 0.1, "Omniglot, Lanczos on grey: 0.084"
    assert amount.min() > 0.015
    assert (ink.amax((1, 2, 3)) > 0.9).all()
    grey = ((ink > 0.02) & (ink < 0.9)).sum() / (ink > 0.02).sum()
    assert 0.5 < grey < 0.85, "edges are anti-aliased"
    edge = torch.cat([ink[:, 0, [0, -1]].flatten(1), ink[:, 0, :, [0, -1]].flatten(1)], 1).amax(1)
    assert (edge > 0.4).float().mean() < 0.01, "nobody writes over the edge of the page"


def test_characters_have_one_to_four_strokes_and_keep_to_the_page():
    program = programs(np.arange(2000))
    present = (program.segments > 0).sum(1)
    assert set(present.tolist()) == {1, 2, 3, 4}
    assert np.abs(program.points).max() < 0.75
    assert len(np.unique(program.points.reshape(2000, -1), axis=0)) == 2000


def test_splits_are_disjoint_and_do_not_move():
    small, large = strokes(classes=(5, 5, 5), drawers=2), strokes(classes=(9, 7, 6), drawers=3)
    names = [set(split.names) for split in (large.train, large.validation, large.test)]
    assert len(set.union(*names)) == 9 + 7 + 6
    assert torch.equal(small.test.of_class(4), large.test.of_class(4)[:2])
    assert small.test.names == large.test.names[:5]
    assert set(strokes(classes=(5, 5, 5), drawers=2, seed=1).train.names).isdisjoint(set.union(*names))


def test_rotations():
    classes = (4, 3, 2)
    assert strokes(classes, 2).tasks(2).train.rotate
    assert not strokes(classes, 2, rotations="off").tasks(2).train.rotate
    turned = strokes(classes, 2, rotations="classes")
    assert [len(split) for split in (turned.train, turned.validation, turned.test)] == [16, 12, 8]
    assert turned.tasks(2).description["options"]["rotations"] == "classes"


def test_pixels_alone_tell_classes_apart_better_than_chance_and_far_from_well():
    batch = strokes(classes=(5, 5, 100)).tasks(5, 1, 5).test(range(150))
    nearest = torch.cdist(batch.query_x.flatten(2), batch.support_x.flatten(2)).argmin(-1)
    accuracy = (nearest == batch.query_y).float().mean()
    assert 0.36 < accuracy < 0.58, "Omniglot without rotations: 0.44"


def test_a_thousand_images_take_a_fraction_of_a_second():
    draw(IDS[:50], HANDS[:50])
    seconds = []
    for start in range(3):
        begin = time.process_time()
        draw(np.arange(1000) + 1000 * start, np.arange(1000) % 20)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.4, "0.1 on an idle core"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": (5, 0, 5)}, "must be three whole numbers of at least 1"),
        ({"drawers": 0}, "drawers is 0; it must be a whole number of at least 1"),
        ({"seed": -1}, "seed is -1; it must be a whole number from 0 to 1048575"),
        ({"image_size": 9}, "image_size is 9; it must be a whole number of pixels from 14 to 256"),
        ({"rotations": "tasks"}, "unknown option for rotations of strokes, 'tasks'; did you mean 'task'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(BadInput, match=message):
        strokes(**options)


def test_bad_numbers_are_named():
    with pytest.raises(BadInput, match="class_ids and drawer_ids must be two lists of equal length"):
        draw([1, 2], [1])
