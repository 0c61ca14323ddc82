"""One tensor of images: round trip, normalisation, damage."""

from pathlib import Path

import pytest
import torch

from ddcore.data.images import Images, Normaliser, PixelRows, load_dataset, mean_std, normalise
from ddcore.errors import DdcoreError


def some(channels: int = 3, count: int = 50) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_round_trip_gives_equal_bytes(tmp_path: Path) -> None:
    data = Images(some(), torch.arange(50) % 3, ("a", "b", "ü"))
    data.save(tmp_path / "dataset.safetensors")
    data.save(tmp_path / "again.safetensors")
    assert (tmp_path / "dataset.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    for path in (tmp_path, tmp_path / "again.safetensors"):
        back = load_dataset(path)
        assert back.labels is not None
        assert torch.equal(back.images, data.images)
        assert back.labels.tolist() == (torch.arange(50) % 3).tolist()
        assert (back.classes, back.shape, len(back)) == (("a", "b", "ü"), (3, 4, 6), 50)


def test_damage_is_a_missing_input(tmp_path: Path) -> None:
    for content in (None, b"short", b"\xff" * 100):
        if content is not None:
            (tmp_path / "dataset.safetensors").write_bytes(content)
        with pytest.raises(DdcoreError) as caught:
            load_dataset(tmp_path)
        assert caught.value.code == "missing_input"


def test_normalised_pixels_have_mean_zero_and_deviation_one() -> None:
    images = some(count=5000)  # more than one chunk
    mean, std = mean_std(images)
    exact = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), exact.mean((0, 2, 3)), rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.tensor(std).double(), exact.std((0, 2, 3), correction=0), rtol=0, atol=1e-7)
    out = normalise(images, mean, std)
    assert out.dtype == torch.float32
    assert out.mean((0, 2, 3)).abs().max() < 1e-5
    assert (out.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    torch.testing.assert_close(normalise(images.float() / 255, mean, std), out)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    images = some()
    images[:, 1] = 77
    mean, std = mean_std(images)
    assert std[1] == 1.0
    assert normalise(images, mean, std)[:, 1].abs().max() < 1e-6


def test_a_normaliser_takes_bytes_and_floats_of_both_precisions() -> None:
    images = some()
    mean, std = mean_std(images)
    exact = (images.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(3, 1, 1)
    normaliser = Normaliser.of(mean, std, torch.device("cpu"))
    before = images.clone()
    for batch, dtype in ((images, torch.float32), (images.float() / 255, torch.float32), (images.double() / 255, torch.float64)):
        found = normaliser(batch)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6)
    assert torch.equal(images, before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_of_pixels_are_the_normalised_images_in_either_order(memory_format: torch.memory_format, channels: int) -> None:
    images = some(channels)
    normaliser = Normaliser.of(*mean_std(images), torch.device("cpu"))
    rows = PixelRows(images, normaliser, memory_format)
    assert len(rows) == len(images)
    chosen = torch.tensor([3, 0, 49, 3])
    assert torch.equal(rows.pixels(chosen), images[chosen])
    found = rows.batch(chosen)
    assert found.shape == (4, channels, 4, 6)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(found, normaliser(images[chosen]), rtol=1e-6, atol=1e-6)
