"""Augmentation: per-image parameters, determinism, identities."""

import pytest
import torch

from ddcore.data.augment import random_views
from ddcore.specs import AugmentSpec

OFF = AugmentSpec(crop_scale=(1.0, 1.0), flip=False, jitter=0.0, grayscale=0.0)
ALL = AugmentSpec(blur=0.5, solarize=0.5, noise=0.1)
PARTS = {
    "crop": OFF.model_copy(update={"crop_scale": (0.2, 0.9)}),
    "flip": OFF.model_copy(update={"flip": True}),
    "jitter": OFF.model_copy(update={"jitter": 1.0}),
    "grayscale": OFF.model_copy(update={"grayscale": 0.5}),
    "blur": OFF.model_copy(update={"blur": 0.7}),
    "solarize": OFF.model_copy(update={"solarize": 0.5}),
    "noise": OFF.model_copy(update={"noise": 0.1}),
}


def batch(count: int = 16, channels: int = 3, same: bool = False) -> torch.Tensor:
    images = torch.randint(0, 256, (1 if same else count, channels, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return images.expand(count, -1, -1, -1)


def draw(images: torch.Tensor, spec: AugmentSpec, seed: int = 0) -> torch.Tensor:
    return random_views(images, spec, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_happens_when_everything_is_off(channels: int) -> None:
    images = batch(channels=channels)
    assert torch.equal(draw(images, OFF), images.float() / 255)


def test_a_crop_of_the_whole_is_the_image_or_its_mirror() -> None:
    images = batch()
    views = draw(images, PARTS["flip"])
    exact = images.float() / 255
    mirrored = [torch.allclose(view, image.flip(2), atol=1e-5) for view, image in zip(views, exact, strict=True)]
    same = [torch.allclose(view, image, atol=1e-5) for view, image in zip(views, exact, strict=True)]
    assert [a != b for a, b in zip(mirrored, same, strict=True)] == [True] * len(images)
    assert 0 < sum(mirrored) < len(images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", [*PARTS.values(), ALL], ids=[*PARTS, "all"])
def test_shape_range_and_determinism(spec: AugmentSpec, channels: int) -> None:
    images = batch(channels=channels)
    views = draw(images, spec)
    assert views.shape == images.shape
    assert views.dtype == torch.float32
    assert 0 <= float(views.min()) <= float(views.max()) <= 1
    assert torch.equal(views, draw(images, spec))
    assert torch.equal(views, draw(images.float() / 255, spec))
    if spec is PARTS["grayscale"] and channels == 1:
        assert torch.equal(views, images.float() / 255)
    else:
        assert not torch.equal(views, draw(images, spec, seed=1))


@pytest.mark.parametrize("spec", [*PARTS.values(), ALL], ids=[*PARTS, "all"])
def test_each_image_has_parameters_of_its_own(spec: AugmentSpec) -> None:
    """Equal images get different views; and what one image gets does not depend on what its neighbours show."""
    views = draw(batch(same=True), spec)
    assert len({tuple(view.flatten().tolist()) for view in views}) >= 2
    if spec in (PARTS["crop"], PARTS["jitter"], PARTS["noise"], ALL):
        assert len({tuple(view.flatten().tolist()) for view in views}) == len(views)
    images = batch().clone()
    before = draw(images, spec)
    images[3] = 255 - images[3]
    after = draw(images, spec)
    others = [i for i in range(len(images)) if i != 3]
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-6)


def test_crops_show_a_part_of_the_stated_area() -> None:
    """On an image that holds its own coordinates, a view's corner values are the box of the crop."""
    side = 64
    rows = torch.linspace(0, 1, side)[:, None].expand(side, side)
    images = torch.stack([rows, rows.T]).expand(200, 2, side, side)
    views = random_views(images, OFF.model_copy(update={"crop_scale": (0.25, 0.5)}), torch.Generator().manual_seed(0))
    high = (views[:, 0, -1, 0] - views[:, 0, 0, 0]) * side / (side - 1)
    wide = (views[:, 1, 0, -1] - views[:, 1, 0, 0]) * side / (side - 1)
    area, aspect = high * wide, wide / high
    assert float(area.min()) > 0.23
    assert float(area.max()) < 0.52
    assert float(area.max() - area.min()) > 0.15
    assert 0.7 < float(aspect.min()) < 0.85
    assert 1.15 < float(aspect.max()) < 1.4
    scaled = random_views(images, OFF, torch.Generator().manual_seed(0), crop_scale=(0.04, 0.05))
    assert float((scaled[:, 0, -1, 0] - scaled[:, 0, 0, 0]).max()) < 0.3


def test_views_of_another_size_show_the_same_boxes() -> None:
    """On an image that holds its own coordinates, the middle of each view is where it is in the full-size view of the same draws."""
    rows = torch.linspace(0, 1, 32)[:, None].expand(32, 48)
    columns = torch.linspace(0, 1, 48).expand(32, 48)
    images = torch.stack([rows, columns]).expand(50, 2, 32, 48)
    spec = OFF.model_copy(update={"crop_scale": (0.25, 0.5), "flip": True})
    large, small = (random_views(images, spec, torch.Generator().manual_seed(0), None, size) for size in (None, (8, 12)))
    assert small.shape == (50, 2, 8, 12)
    torch.testing.assert_close(small.mean((2, 3)), large.mean((2, 3)), rtol=0, atol=2e-3)
    torch.testing.assert_close(small.amax((2, 3)), large.amax((2, 3)), rtol=0, atol=0.06)
    whole = random_views(images, OFF, torch.Generator().manual_seed(0), None, (16, 24))
    torch.testing.assert_close(whole, torch.nn.functional.avg_pool2d(images, 2))


def test_grey_images_become_equal_channels_of_the_same_luma() -> None:
    images = batch()
    views = draw(images, OFF.model_copy(update={"grayscale": 1.0}))
    luma = (images.float() / 255 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    for channel in range(3):
        torch.testing.assert_close(views[:, channel], luma)


def test_jitter_turns_colours_but_grey_pixels_stay_grey() -> None:
    grey = batch(channels=1).expand(-1, 3, -1, -1)
    views = draw(grey, PARTS["jitter"])
    torch.testing.assert_close(views[:, 0], views[:, 2], rtol=0, atol=1e-5)
    colour = draw(torch.tensor([200, 60, 60], dtype=torch.uint8).view(1, 3, 1, 1).expand(64, 3, 4, 4), PARTS["jitter"])
    assert float((colour[:, 1, 0, 0] - colour[:, 2, 0, 0]).abs().max()) > 0.05  # the hue moved


def test_blur_keeps_flat_images_and_smooths_others() -> None:
    spec = OFF.model_copy(update={"blur": 1.0})
    flat = torch.full((4, 3, 9, 9), 0.3)
    torch.testing.assert_close(draw(flat, spec), flat)
    images = batch()
    rough = (images.float() / 255).diff(dim=3).abs().mean()
    assert float(draw(images, spec).diff(dim=3).abs().mean()) < 0.6 * float(rough)


def test_solarize_inverts_the_bright_half_only() -> None:
    images = torch.tensor([0.1, 0.49, 0.5, 0.9]).view(1, 1, 2, 2)
    out = draw(images, OFF.model_copy(update={"solarize": 1.0}))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.1, 0.49, 0.5, 0.1]))
