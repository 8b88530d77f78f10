import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import BadInput
from fewstep.tasks import ClassData, ClassSampler, ImageDataset, PixelValues
from fewstep.tasks.image_dataset import TEST_SEED, VALIDATION_SEED

COUNTS = 6 + np.arange(12) % 4
OWNER = np.repeat(np.arange(12), COUNTS)  # the class of each image
IMAGES = torch.arange(len(OWNER), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
DATA = ClassData(IMAGES, np.cumsum(COUNTS) - COUNTS, COUNTS, tuple(f"c{i}" for i in range(12)))
OWN = {name: replace(DATA, images=IMAGES.clone()) for name in ("train", "validation", "test")}
sizes = st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(1, 2), st.integers(0, 2**64 - 1))


def numbers(x: torch.Tensor) -> np.ndarray:
    """The image numbers that constant test images carry."""
    return (x[..., 0, 0, 0] * 255).round().to(torch.int64).numpy()


@settings(max_examples=40, deadline=None)
@given(sizes, st.booleans())
def test_support_and_query_are_disjoint_and_labels_are_classes(size, rotate):
    ways, shots, queries, seed = size
    batch = ClassSampler(DATA, ways, shots, queries, seed, rotate)(range(5))
    support, query = numbers(batch.support_x), numbers(batch.query_x)
    assert support.shape == (5, ways * shots)
    assert query.shape == (5, ways * queries)
    for task in range(5):
        every = [*support[task], *query[task]]
        assert len(set(every)) == len(every), "an image appears twice in a task"
        labels = batch.support_y[task].numpy(), batch.query_y[task].numpy()
        owners = [
            set(OWNER[support[task][labels[0] == label]]) | set(OWNER[query[task][labels[1] == label]])
            for label in range(ways)
        ]
        assert all(len(owner) == 1 for owner in owners), "a label stands for one class in both halves"
        assert len(set.union(*owners)) == ways


@settings(max_examples=20, deadline=None)
@given(sizes, st.lists(st.integers(0, 10**12), min_size=1, max_size=6))
def test_a_task_depends_on_seed_and_number_alone(size, indices):
    ways, shots, queries, seed = size
    sampler = ClassSampler(DATA, ways, shots, queries, seed, True)
    together = sampler(indices)
    for position, index in enumerate(indices):
        alone = ClassSampler(DATA, ways, shots, queries, seed, True)([index])
        assert torch.equal(alone.support_x[0], together.support_x[position])
        assert torch.equal(alone.query_x[0], together.query_x[position])


def test_seeds_and_numbers_change_the_tasks():
    def classes(seed, indices):
        return ClassSampler(DATA, 5, 1, 1, seed).draw(indices)[0].tolist()

    assert classes(0, range(9)) != classes(1, range(9))
    assert classes(0, range(9))[1:] == classes(0, range(1, 9))
    assert len({tuple(row) for row in classes(0, range(500))}) > 450


def test_every_class_takes_every_label_and_every_image_is_used():
    classes, rows, _ = ClassSampler(DATA, 5, 1, 1, 0).draw(range(6000))
    seen = np.zeros((12, 5))
    np.add.at(seen, (classes, np.arange(5)), 1)
    assert ((seen - 500) ** 2 / 500).sum() < 55 + 4 * np.sqrt(110)
    support = np.bincount(rows[..., 0].reshape(-1), minlength=len(OWNER))
    expected = 6000 * 5 / 12 / COUNTS[OWNER]
    assert ((support - expected) ** 2 / expected).sum() < len(OWNER) + 4 * np.sqrt(2 * len(OWNER))


def test_a_class_is_turned_alike_in_support_and_query():
    base = torch.zeros(40, 1, 4, 4, dtype=torch.uint8)
    base[:, 0, 0, 1] = 255  # the marked pixel shows how an image was turned
    data = ClassData(base, np.arange(10) * 4, np.full(10, 4), tuple("abcdefghij"))
    sampler = ClassSampler(data, 5, 2, 2, 0, rotate=True)
    batch, turns = sampler(range(64)), sampler.draw(range(64))[2]
    for half in (batch.support_x, batch.query_x):
        expected = torch.stack([torch.stack([torch.rot90(base[0], int(k), (1, 2)) for k in row]) for row in turns])
        pairs = half.view(64, 5, 2, 1, 4, 4) * 255
        assert torch.equal(pairs, expected[:, :, None].expand_as(pairs).float())
    assert (np.bincount(turns.reshape(-1), minlength=4) > 50).all(), "all four turns occur"


def test_turned_classes_and_turned_tasks_add_up():
    data = ClassData(torch.rand(8, 1, 4, 4).mul(255).to(torch.uint8), [0, 2, 4, 6], [2] * 4, tuple("abcd")).rotated()
    sampler = ClassSampler(data, 4, 1, 1, 0, rotate=True)
    batch, (_, rows, turns) = sampler(range(20)), sampler.draw(range(20))
    for task in range(20):
        for label in range(4):
            image = torch.rot90(data.images[rows[task, label, 1]], int(turns[task, label]), (1, 2))
            assert torch.equal(batch.query_x[task, label], image.float().div(255))


def test_values_and_types():
    data = ClassData(torch.full((4, 3, 2, 2), 51, dtype=torch.uint8), [0, 2], [2, 2], ("a", "b"))
    batch = ClassSampler(data, 2, 1, 1, 0, values=PixelValues(mean=(0.2, 0.0, 0.1), std=(1.0, 0.1, 0.5)))([0])
    assert batch.support_x.dtype == torch.float32
    assert batch.support_y.dtype == torch.int64
    assert torch.allclose(batch.support_x[0, 0, :, 0, 0], torch.tensor([0.0, 2.0, 0.2]), atol=1e-6)


def test_evaluation_tasks_ignore_the_seed_of_the_run():
    dataset = ImageDataset("own", **OWN, rotate=True)
    one, two = dataset.tasks(seed=0), dataset.tasks(seed=1, rotate=False, queries=2, evaluation_queries=1)
    assert torch.equal(one.test(range(9)).query_x, two.test(range(9)).query_x)
    assert torch.equal(one.validation(range(9)).query_x, two.validation(range(9)).query_x)
    assert not torch.equal(one.test(range(9)).query_x, one.validation(range(9)).query_x)
    assert one.train.rotate
    assert not one.test.rotate
    assert not two.train.rotate
    assert {VALIDATION_SEED, TEST_SEED}.isdisjoint({one.train.seed, two.train.seed})
    for seed in (VALIDATION_SEED, -1, 0.5, True):
        with pytest.raises(BadInput, match=r"it must be a whole number from 0 to 2\^63 - 1"):
            dataset.tasks(seed=seed)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((13, 1, 1), "the train split has 12 classes, too few for 13 ways"),
        ((5, 5, 2), r"class 'c0' of the train split has 6 images; shots \+ queries needs 7; 3 of 12 classes are short"),
        ((0, 1, 1), "ways is 0; it must be a whole number of at least 1"),
        ((5, -1, 1), "shots is -1"),
        ((5, 1, 1.5), "queries is 1.5"),
    ],
)
def test_sizes_the_data_cannot_give_are_refused(size, message):
    with pytest.raises(BadInput, match=message):
        ImageDataset("own", **OWN).tasks(*size)


def test_other_bad_input():
    with pytest.raises(BadInput, match="task numbers must be a flat list of whole numbers from 0 up"):
        ClassSampler(DATA, 5, 1, 1, 0)([-1])
    with pytest.raises(BadInput, match=r"seed is -1; it must lie between 0 and 2\^64 - 1"):
        ClassSampler(DATA, 5, 1, 1, -1)
    tall = ClassData(torch.zeros(4, 1, 2, 3, dtype=torch.uint8), [0, 2], [2, 2], ("a", "b"))
    with pytest.raises(BadInput, match="images of 2 x 3 pixels cannot be turned"):
        ClassSampler(tall, 2, 1, 1, 0, rotate=True)
    with pytest.raises(BadInput, match="the splits of own hold images of different shapes"):
        ImageDataset("own", DATA, DATA, tall)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"test": DATA.select(range(5))}, "the train and test splits of own share images of 5 classes"),
        ({"validation": DATA.select([3]).rotated()}, "train and validation splits of own share .* 4 classes"),
        ({"train": DATA.select([0, 1]), "test": DATA.select([1, 2])}, "train and test splits of own share .* 1 class;"),
        ({"test": ClassData(IMAGES[3:], [0], [4], ("c",))}, "train and test .* 1 class;"),  # of two
    ],
)
def test_splits_that_share_images_are_refused(splits, message):
    with pytest.raises(BadInput, match=message):
        ImageDataset("own", **{**OWN, "train": DATA} | splits)


def test_splits_may_share_the_tensor_that_their_images_lie_in():
    parts = [DATA.select(range(4 * k, 4 * k + 4)) for k in range(3)]
    assert len(ImageDataset("own", *parts).test) == 4
    apart = [ClassData(IMAGES[6 * k : 6 * k + 6], [0], [6], ("c",)) for k in range(3)]  # views that begin elsewhere
    assert len(ImageDataset("own", *apart).test) == 1


def test_sampling_a_large_meta_batch_takes_milliseconds():
    images = torch.zeros(23000, 1, 28, 28, dtype=torch.uint8)
    data = ClassData(images, np.arange(1150) * 20, np.full(1150, 20), tuple(map(str, range(1150))))
    sampler = ClassSampler(data, 20, 1, 1, 0, rotate=True)
    sampler(range(8))
    seconds = []
    for start in range(30):
        begin = time.perf_counter()
        sampler(range(8 * start, 8 * start + 8))
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.015, "about 2 ms on an idle machine; an outer step takes a second"
