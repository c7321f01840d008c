"""What calibration data may come as, and what becomes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from secure_quant import reference
from secure_quant.errors import CalibrationError, ConfigError, MalformedDataset
from secure_quant.ir import load
from secure_quant.quantizer import ImageFolder, ImageSpec, quantize
from secure_quant.quantizer.images import MOST_SAMPLES
from secure_quant.quantizer.inputs import as_one
from secure_quant_cli.main import main

X = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class Listed(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(X)


FORMS = {
    "generator": lambda: (part for part in X.split(7)),
    "loader": lambda: DataLoader(TensorDataset(X), batch_size=9),
    "loader with targets": lambda: DataLoader(TensorDataset(X, torch.arange(100)), batch_size=9),
    "dataset": lambda: Listed(list(X)),
    "dataset with targets": lambda: TensorDataset(X, torch.arange(100)),
    "dataset of arrays": lambda: Listed([row.numpy() for row in X]),
    "streamed dataset": lambda: Streamed(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form):
    _, batches = as_one(net(), FORMS[form](), 64)
    assert torch.equal(torch.cat(batches), X)


class Named(nn.Module):
    def forward(self, a, b):
        return functional.relu(a) + b.tanh()


def test_datasets_of_dicts_and_of_pairs_are_named():
    pairs = Listed([{"a": row, "b": -row} for row in X])
    both = [
        as_one(Named(), data, 64)[1] for data in (pairs, TensorDataset(X, -X), {"a": X, "b": -X})
    ]
    for batches in both:
        assert torch.equal(torch.cat(batches), torch.cat([X, -X], 1))


def test_of_a_long_dataset_so_many_are_taken_evenly():
    long = TensorDataset(torch.arange(4.0 * MOST_SAMPLES).reshape(-1, 1))
    taken = torch.cat(as_one(nn.Linear(1, 1), long, 64)[1]).flatten()
    assert torch.equal(taken, torch.arange(0.0, 4 * MOST_SAMPLES, 4))


def test_items_that_are_no_arrays_are_refused():
    for items in ([object()] * 4, [X[0], X[0, :3]] * 2):
        with pytest.raises(CalibrationError, match="Listed"):
            quantize(net(), Listed(items))


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures in folders by class, of other sizes each, one of them grey."""
    rng = np.random.default_rng(0)
    for place in range(12):
        height, width = rng.integers(20, 40, 2)
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        name = (
            tmp_path / "pictures" / "ab"[place % 2] / f"{place:02}.{'png' if place % 3 else 'JPG'}"
        )
        name.parent.mkdir(parents=True, exist_ok=True)
        made = Image.fromarray(pixels)
        made.convert("L" if place == 5 else "RGB").save(name)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


SPEC = ImageSpec(size=(12, 10), resize=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))


def test_preprocessing_is_as_stated(folder):
    """Against torch's own: the same filter but for its fixed-point weights."""
    for path in ImageFolder(folder, SPEC).paths:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        factor = 16 / min(height, width)
        scaled = functional.interpolate(
            pixels[None].float(), (max(round(height * factor), 16), max(round(width * factor), 16)),
            mode="bilinear", antialias=True,
        )[0]  # fmt: skip
        top, left = (scaled.shape[1] - 12) // 2, (scaled.shape[2] - 10) // 2
        cut = scaled[:, top : top + 12, left : left + 10] / 255
        want = (cut - torch.tensor(SPEC.mean)[:, None, None]) / torch.tensor(SPEC.std)[
            :, None, None
        ]
        made = SPEC.array(path)
        assert made.dtype == np.float32
        assert np.abs(made - want.numpy()).max() < 1.5 / 255 / 0.2


def test_turned_and_grey_pictures(tmp_path):
    pixels = np.zeros((8, 6, 3), np.uint8)
    pixels[:3] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: above is to the right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    made = ImageSpec(size=(6, 8), mode="L").array(tmp_path / "a.png")
    assert made.shape == (1, 6, 8)
    assert np.array_equal(made[0, 0], [0, 0, 0, 0, 0, 1, 1, 1])


def test_a_folder_in_its_order_and_evenly(folder):
    whole = ImageFolder(folder, SPEC)
    names = [path.relative_to(folder).as_posix() for path in whole.paths]
    assert names == sorted(names)
    assert len(whole) == 12
    some = ImageFolder(folder, SPEC, most=3)
    assert [path.name for path in some.paths] == [whole.paths[i].name for i in (0, 4, 8)]
    (batch,) = list(some)
    assert batch.shape == (3, 3, 12, 10)


def test_what_is_no_picture_is_named(folder):
    (folder / "zz.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(MalformedDataset, match=r"zz\.png"):
        list(ImageFolder(folder, SPEC))
    (folder / "empty").mkdir()
    with pytest.raises(MalformedDataset, match="no images"):
        ImageFolder(folder / "empty", SPEC)


def test_a_picture_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(MalformedDataset, match="DecompressionBomb"):
        ImageSpec(size=(8, 8)).array(tmp_path / "bomb.png")


def test_specs_are_read_and_checked():
    text = "size=12x10 resize=16 mean=0.5,0.4,0.3 std=0.2,0.25,0.5 mode=RGB"
    assert ImageSpec.of(text) == SPEC
    assert ImageSpec.of("size=8") == ImageSpec(size=(8, 8))
    for wrong in (
        "", "resize=8", "size=8 size=9", "size=8x8x8", "size=0", "size=8 resize=7", "size=8 std=0",
        "size=8 mean=1,2", "size=8 mean=a", "size=8 mode=CMYK", "size=8 crop=4", "size=99999",
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            ImageSpec.of(wrong)


OWNER = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3))
"""


def test_the_command_takes_a_folder(folder, tmp_path, capsys):
    (tmp_path / "owner.py").write_text(OWNER)
    line = [
        "quantize", f"{tmp_path}/owner.py:build", "--calibration", str(folder), "--images",
        "size=10 mean=0.5 std=0.25", "--out", f"{tmp_path}/m.sq",
    ]  # fmt: skip
    assert main(line) == 0
    spec = ImageSpec(size=(10, 10), mean=(0.5,), std=(0.25,))
    scope: dict = {}
    exec(OWNER, scope)  # noqa: S102  the text above
    graph = load(tmp_path / "m.sq")
    x = np.concatenate(list(ImageFolder(folder, spec)))
    same = quantize(scope["build"](), ImageFolder(folder, spec))
    assert np.array_equal(reference.run(graph, x), reference.run(same, x))
    capsys.readouterr()
    assert main([*line, "--mode", "qat"]) == 2
    assert "labels" in capsys.readouterr().err
