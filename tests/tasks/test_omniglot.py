"""Splits, options and pixels, on the tiny archive and on the real one."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import BadInput
from fewstep.tasks import omniglot
from fewstep.tasks.omniglot import check, split_classes
from fewstep.tasks.omniglot_files import SETS, decode, read
from fewstep.tasks.resize import lanczos, nearest


@pytest.fixture(scope="module")
def drawings(real_data):
    return read(real_data)


@pytest.mark.parametrize(("method", "filter_"), [(lanczos, "LANCZOS"), (nearest, "NEAREST")])
@pytest.mark.parametrize(("side", "size"), [(105, 28), (105, 84), (105, 105), (28, 64), (7, 3)])
def test_resizing_equals_pillow_to_the_bit(method, filter_, side, size):
    images = np.random.RandomState(size).randint(0, 256, (9, side, side)).astype(np.uint8)
    images[:4] = 255 * (images[:4] > 30)
    wanted = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling[filter_])) for image in images]
    assert np.array_equal(method(images, size), np.stack(wanted))


def test_the_real_thing(real, drawings):
    assert (real.channels, real.image_size, real.setting) == (1, 28, "omniglot")
    assert drawings.packed.shape == (1623, 20, 105, 14)
    assert len(set(drawings.alphabets)) == 50
    assert int(drawings.background.sum()) == 964
    assert 0.083 < real.train.images.float().mean() / 255 < 0.085, "ink is 1"
    batch = real.tasks(20, 1, 1).test(range(3))
    assert batch.support_x.shape == (3, 20, 1, 28, 28)
    assert (batch.support_x.min(), batch.support_x.max()) == (0, 1)


def test_random_split_is_the_one_of_mamlpp(real, real_data):
    path = real_data / "splits" / "omniglot_mamlpp_seed0.json"
    if not path.is_file():
        pytest.skip("splits/omniglot_mamlpp_seed0.json not found beside the real data")
    lists = json.loads(path.read_text())
    assert [list(split.names) for split in (real.train, real.validation, real.test)] == [
        lists["train"],
        lists["val"],
        lists["test"],
    ]


def test_lake_split_keeps_whole_alphabets(drawings):
    parts = split_classes(drawings, "lake")
    alphabets = [{drawings.alphabets[i] for i in part} for part in parts]
    assert [len(a) for a in alphabets] == [25, 5, 20]
    assert [len(part) for part in parts] == [813, 151, 659]
    assert len(set.union(*alphabets)) == 50
    assert alphabets[1] == {
        "Ojibwe_(Canadian_Aboriginal_Syllabics)",
        "Sanskrit",
        "Syriac_(Estrangelo)",
        "Tagalog",
        "Tifinagh",
    }


def test_vinyals_split_reads_its_lists(drawings, real_data):
    if not (real_data / "splits" / "omniglot_vinyals.json").is_file():
        pytest.skip("splits/omniglot_vinyals.json not found beside the real data")
    for place in (real_data, real_data / "omniglot"):
        assert [len(part) for part in split_classes(drawings, "vinyals", place)] == [1028, 172, 423]


def real_zips(real_data):
    paths = {name: real_data / "omniglot" / f"{name}.zip" for name in SETS}
    for path in paths.values():
        if not path.is_file():
            pytest.skip(f"{path.name} not found beside the real data")
    return paths


def test_real_zips_and_npz_hold_the_same_bits(real_data, drawings):
    """Every 16th image of the archives, through the library's decoder."""
    row = {key: i for i, key in enumerate(drawings.names)}
    for path in real_zips(real_data).values():
        with zipfile.ZipFile(path) as archive:
            for member in sorted(m for m in archive.namelist() if m.endswith(".png"))[5::16]:
                _, alphabet, character, file = member.split("/")
                packed = drawings.packed[row[f"{alphabet}/{character}"], int(file[5:7]) - 1]
                assert np.array_equal(decode(member, archive.read(member)), packed), member


@pytest.mark.slow
def test_all_three_forms_of_the_real_thing_are_equal(real_data, drawings, tmp_path):
    """All 32 460 images, zipped and unpacked, against the packed form."""
    for name, path in real_zips(real_data).items():
        (tmp_path / f"{name}.zip").symlink_to(path)
    forms = [read(tmp_path)]
    for path in real_zips(real_data).values():
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path)
    forms.append(read(tmp_path))
    assert [form.form for form in forms] == ["zips", "folders"]
    for form in forms:
        assert form.names == drawings.names
        assert np.array_equal(form.background, drawings.background)
        assert np.array_equal(form.packed, drawings.packed)


def test_three_forms_give_the_same_pixels(archive, tmp_path):
    loaded = []
    for form in ("zips", "folders", "npz"):
        archive.folder = tmp_path / form
        archive.folder.mkdir()
        getattr(archive, form)()
        found = omniglot(archive.folder)
        assert check(archive.folder)["form"] == form
        loaded.append(found)
    for other in loaded[1:]:
        assert torch.equal(other.train.images, loaded[0].train.images)
        assert [other.train.names, other.test.names] == [loaded[0].train.names, loaded[0].test.names]


def test_options_change_what_they_say(archive):
    archive.npz()
    ink, paper = omniglot(archive.folder).train.images, omniglot(archive.folder, invert=False).train.images
    assert torch.equal(255 - ink, paper)
    assert set(omniglot(archive.folder, resize="nearest").train.images.unique().tolist()) == {0, 255}
    assert len(ink.unique()) > 50
    assert omniglot(archive.folder, image_size=20).image_size == 20
    plain, turned = omniglot(archive.folder, rotations="off"), omniglot(archive.folder, rotations="classes")
    assert [len(turned.train), len(turned.test)] == [4 * len(plain.train), 4 * len(plain.test)]
    assert [d.tasks(1).train.rotate for d in (plain, turned, omniglot(archive.folder))] == [False, False, True]
    assert not omniglot(archive.folder).tasks(1).test.rotate
    description = omniglot(archive.folder, split="lake").tasks(5).description
    assert json.loads(json.dumps(description))["options"] == {
        "split": "lake",
        "rotations": "task",
        "invert": True,
        "resize": "lanczos",
        "image_size": 28,
    }
    assert description["classes"] == {"train": 8, "validation": 20, "test": 12}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "lakes"}, "unknown option for split of omniglot, 'lakes'; did you mean 'lake'"),
        ({"rotations": "class"}, "unknown option for rotations of omniglot, 'class'; did you mean 'classes'"),
        ({"resize": "bicubic"}, "unknown option for resize of omniglot, 'bicubic'"),
        ({"image_size": 0}, "image_size is 0; it must be a whole number of pixels"),
    ],
)
def test_unknown_options_are_named(archive, options, message):
    with pytest.raises(BadInput, match=message):
        omniglot(archive.folder, **options)


def test_vinyals_without_its_lists_or_with_wrong_ones(archive):
    archive.npz()
    with pytest.raises(BadInput, match=r"split vinyals needs its class lists, omniglot_vinyals.json .* in one of: "):
        omniglot(archive.folder, split="vinyals")
    lists = archive.folder / "splits" / "omniglot_vinyals.json"
    lists.parent.mkdir()
    lists.write_text(json.dumps({"train": ["B0/character01"], "val": ["B1/character01"], "test": ["E/character99"]}))
    with pytest.raises(BadInput, match=r"is not a class list of Omniglot \(KeyError: 'E/character99'\)"):
        omniglot(archive.folder, split="vinyals")
    lists.write_text(json.dumps({"train": ["B0/character01"], "val": ["B1/character01"], "test": ["B0/character01"]}))
    with pytest.raises(BadInput, match="names a class twice or leaves a split empty"):
        omniglot(archive.folder, split="vinyals")
    assert "needs its class lists" not in check(archive.folder)["splits"]["vinyals"]
