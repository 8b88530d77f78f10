"""Finding Omniglot, and refusing what is damaged, incomplete or foreign."""

import numpy as np
import pytest

from fewstep.errors import BadInput
from fewstep.tasks.omniglot_files import read

BACKGROUND, EVALUATION = "images_background", "images_evaluation"


def test_places_are_searched_in_order(archive, tmp_path, monkeypatch):
    archive.npz()
    monkeypatch.setenv("FEWSTEP_DATA", str(archive.folder))
    assert read().place == archive.folder
    (tmp_path / "data" / "omniglot").mkdir(parents=True)
    (archive.folder / "omniglot.npz").rename(tmp_path / "data" / "omniglot" / "omniglot.npz")
    assert str(read().place) == "data/omniglot"


@pytest.mark.usefixtures("archive")
def test_missing_data_lists_where_it_was_looked_for(monkeypatch):
    with pytest.raises(BadInput, match="Omniglot is not in any of: data, data/omniglot; get it with `fewstep"):
        read()
    monkeypatch.setenv("FEWSTEP_DATA", "elsewhere")
    with pytest.raises(BadInput, match="any of: elsewhere, elsewhere/omniglot, data, data/omniglot; "):
        read()
    with pytest.raises(BadInput, match="any of: typo, typo/omniglot; "):
        read("typo")


def test_one_of_two_archives_is_not_enough(archive):
    archive.zips(BACKGROUND)
    with pytest.raises(BadInput, match=r"holds images_background.zip but not images_evaluation in the same form"):
        read(archive.folder)


def test_litter_of_operating_systems_is_passed_over(archive):
    archive.members[BACKGROUND][f"__MACOSX/{BACKGROUND}/B0/._x"] = b"x"
    archive.members[EVALUATION][f"{EVALUATION}/E/.DS_Store"] = b"x"
    assert len(read(archive.zips()).names) == 40


def test_a_truncated_zip_is_named(archive):
    path = archive.zips() / f"{EVALUATION}.zip"
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(BadInput, match=r"images_evaluation.zip cannot be read \(BadZipFile: .*the archive is damaged"):
        read(archive.folder)


def test_a_zip_with_flipped_bytes_is_named(archive):
    path = archive.zips() / f"{BACKGROUND}.zip"
    content = bytearray(path.read_bytes())
    content[300:320] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"images_background.zip cannot be read \(BadZipFile: Bad CRC-32"):
        read(archive.folder)


@pytest.mark.parametrize("form", ["zips", "folders"])
def test_a_file_that_is_no_image_is_named(archive, form):
    name = f"{EVALUATION}/E/character02/0002_03.png"
    archive.members[EVALUATION][name] = b"<html>not found</html>"
    getattr(archive, form)()
    with pytest.raises(BadInput, match=r"E/character02/0002_03.png.* is not a readable PNG image"):
        read(archive.folder)


def test_an_image_of_another_size_or_cut_short_is_named(archive):
    name = f"{EVALUATION}/E/character02/0002_03.png"
    archive.members[EVALUATION][name] = archive.png(0, size=28)
    with pytest.raises(BadInput, match=r"0002_03.png in .* has 28 x 28 pixels, not 105 x 105"):
        read(archive.zips())
    archive.members[EVALUATION][name] = archive.png(0)[:200]
    with pytest.raises(BadInput, match=r"0002_03.png in .* is not a readable PNG image"):
        read(archive.zips())


def test_an_oversized_member_is_not_even_unpacked(archive):
    archive.members[EVALUATION][f"{EVALUATION}/E/character02/0002_03.png"] = bytes(200_000)
    with pytest.raises(BadInput, match="has 200000 bytes; it is not an Omniglot image"):
        read(archive.zips())


def test_an_incomplete_set_is_named(archive):
    del archive.members[EVALUATION][f"{EVALUATION}/E/character02/0002_03.png"]
    with pytest.raises(BadInput, match="holds 12 of 12 characters; E/character02 has 2 images, not 3; it is"):
        read(archive.folders())


def test_files_in_the_wrong_depth_are_named(archive):
    archive.members[EVALUATION][f"{EVALUATION}/stray.png"] = b"x"
    with pytest.raises(BadInput, match=r"stray.png.* is not where Omniglot keeps its images"):
        read(archive.zips())


def test_damaged_and_foreign_npz_are_named(archive):
    path = archive.npz() / "omniglot.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"omniglot.npz cannot be read \(.*it is damaged or not Omniglot's npz"):
        read(archive.folder)
    np.savez(path, pictures=np.zeros(3))
    with pytest.raises(BadInput, match=r"omniglot.npz cannot be read .*images"):
        read(archive.folder)
    np.savez(path, images=np.array([{}], dtype=object), alphabet=["a"], character=["b"], background=[True])
    with pytest.raises(BadInput, match=r"omniglot.npz cannot be read .*allow_pickle"):
        read(archive.folder)
    np.savez(path, images=np.zeros((3, 3), np.uint8), alphabet=["a"], character=["b"], background=[True])
    with pytest.raises(BadInput, match=r"omniglot.npz holds images of shape \(3, 3\) uint8, not \(40, 3, 105, 14\)"):
        read(archive.folder)
    with path.open("wb") as file:
        np.save(file, np.zeros((40, 3, 105, 14), np.uint8))
    with pytest.raises(
        BadInput, match=r"omniglot.npz cannot be read \(.*it holds one array, not an archive of several\)"
    ):
        read(archive.folder)
    right = {"images": np.zeros((40, 3, 105, 14), np.uint8), "alphabet": ["a"] * 40, "character": ["b"] * 40}
    np.savez(path, **right | {"alphabet": "a"}, background=[True] * 40)
    with pytest.raises(BadInput, match=r"omniglot.npz cannot be read \(.*iteration over a 0-d array"):
        read(archive.folder)
    np.savez(path, **right, background=True)
    with pytest.raises(BadInput, match=r"omniglot.npz does not name the alphabet, character and set of each of its 40"):
        read(archive.folder)
