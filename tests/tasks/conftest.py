"""Where the real archives are, and small stand-ins for them."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.tasks import ClassData, ImageDataset, omniglot
from fewstep.tasks import omniglot_files as files


def data_folder() -> Path | None:
    """The folder named by FEWSTEP_DATA, or the first shared/data beside or above the repository, if it has Omniglot."""
    named = os.environ.get("FEWSTEP_DATA")
    above = [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    for folder in [*([Path(named)] if named else []), *above]:
        if (folder / "omniglot" / "omniglot.npz").is_file():
            return folder
    return None


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = data_folder()
    if folder is None:
        pytest.skip("real Omniglot not found: set FEWSTEP_DATA to a folder that holds omniglot/omniglot.npz")
    return folder


@pytest.fixture(scope="session")
def real(real_data: Path) -> ImageDataset:
    """Omniglot upright, loaded once for all tests."""
    return omniglot(real_data, rotations="off")


@pytest.fixture
def labelled() -> ClassData:
    """12 classes of 6 to 9 images whose every pixel byte is the number of the image."""
    counts = 6 + np.arange(12) % 4
    labels = np.repeat(np.arange(12), counts)
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    return ClassData.from_labels(images, labels.tolist(), tuple(f"c{i}" for i in range(12)))


class Archive:
    """A tiny Omniglot of 28 + 12 characters in 7 + 1 alphabets, which a test may damage before saving."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: dict[str, dict[str, bytes]] = {}
        shapes = {"images_background": [(f"B{i}", 4) for i in range(7)], "images_evaluation": [("E", 12)]}
        for number, (name, alphabets) in enumerate(shapes.items()):
            self.members[name] = {
                f"{name}/{alphabet}/character{c:02}/{c:04}_{d:02}.png": self.png(1000 * i + 100 * c + d)
                for i, (alphabet, characters) in enumerate(alphabets, start=10 * number)
                for c in range(1, characters + 1)
                for d in range(1, 4)
            }

    @staticmethod
    def png(seed: int, size: int = files.SIDE) -> bytes:
        """A small image of one bit a pixel, as the real ones are."""
        image = Image.fromarray(np.random.RandomState(seed).rand(size, size) > 0.1)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def zips(self, *names: str) -> Path:
        for name in names or self.members:
            with zipfile.ZipFile(self.folder / f"{name}.zip", "w") as archive:
                for member, content in self.members[name].items():
                    archive.writestr(member, content)
        return self.folder

    def folders(self, *names: str) -> Path:
        for name in names or self.members:
            for member, content in self.members[name].items():
                path = self.folder / member
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return self.folder

    def npz(self) -> Path:
        """The packed form, made from the members by another way than the library's."""
        rows = sorted(
            (name, *member.split("/")[1:], content)
            for name, members in self.members.items()
            for member, content in members.items()
        )
        images = np.stack([np.packbits(np.asarray(Image.open(io.BytesIO(row[-1]))), axis=-1) for row in rows])
        images = images.reshape(-1, files.DRAWERS, *images.shape[1:])
        heads = rows[:: files.DRAWERS]
        np.savez(
            self.folder / "omniglot.npz",
            images=images,
            alphabet=[h[1] for h in heads],
            character=[h[2] for h in heads],
            background=[h[0] == "images_background" for h in heads],
        )
        return self.folder


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A tiny Omniglot, with the library's counts set to match it."""
    monkeypatch.setattr(files, "SETS", {"images_background": 28, "images_evaluation": 12})
    monkeypatch.setattr(files, "DRAWERS", 3)
    monkeypatch.delenv("FEWSTEP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "somewhere"
    folder.mkdir()
    return Archive(folder)
