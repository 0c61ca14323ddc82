"""Random views of a batch, on its device, from an explicit generator; every image has parameters of its own.

Crop, flip, colour jitter, grey, blur, solarize, noise: the operations of SimCLR (2002.05709, appendix A) and BYOL
(2006.07733, appendix B), in that order. Colour operations are linear maps of the channels in YIQ space, applied at once: brightness,
contrast, then saturation and a hue rotation. That is within a few levels of the HSV version and many times cheaper.
"""

import functools
import math

import torch
from torch.nn import functional

from ddcore.specs import AugmentSpec
from ddcore.transfer import send

ASPECT = 4 / 3  # a crop is at most this much wider or taller than the image's own shape
BLUR_SIGMA = (0.1, 2.0)  # pixels
SOLARIZE_FROM = 0.5

_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_FROM_YIQ = torch.linalg.inv(_TO_YIQ.double()).float()


def random_views(
    batch: torch.Tensor,
    spec: AugmentSpec,
    generator: torch.Generator,
    crop_scale: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """One random view of each image. batch: uint8, or float in 0..1, [b, c, h, w]. Returns float32 [b, c, *size] in 0..1.

    `generator` is on the CPU; numbers are drawn there and sent, and nothing waits for the device. `crop_scale` (area, low and high)
    stands in for the spec's. size: height and width of the views, those of the images when absent.
    """
    images = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
    draw = _Draw(len(images), images.device, generator)
    images = _crop_and_flip(images, crop_scale or spec.crop_scale, spec.flip, draw, size or (images.shape[2], images.shape[3]))
    if (spec.jitter > 0 and spec.jitter_strength > 0) or spec.grayscale > 0:
        images = _colour(images, spec, draw)
    if spec.blur > 0:
        images = _blur(images, spec.blur, draw)
    if spec.solarize > 0:
        chosen = draw.chance(spec.solarize).view(-1, 1, 1, 1) & (images >= SOLARIZE_FROM)
        images = torch.where(chosen, 1 - images, images)
    if spec.noise > 0:
        images = images + spec.noise * send(torch.randn(images.shape, generator=generator), images.device)
    return images.clamp(0, 1)


class _Draw:
    """Numbers for each image of the batch, drawn on the CPU."""

    def __init__(self, count: int, device: torch.device, generator: torch.Generator) -> None:
        self.count, self.device, self.generator = count, device, generator

    def between(self, low: float | torch.Tensor, high: float | torch.Tensor) -> torch.Tensor:
        """Uniform in [low, high]: [b], on the CPU."""
        return low + (high - low) * torch.rand(self.count, generator=self.generator)

    def chance(self, probability: float) -> torch.Tensor:
        """True with `probability`: [b], on the device."""
        return send(torch.rand(self.count, generator=self.generator) < probability, self.device)


def _crop_and_flip(images: torch.Tensor, scale: tuple[float, float], flip: bool, draw: _Draw, size: tuple[int, int]) -> torch.Tensor:
    """A box of random area (`scale`), aspect and place, resized bilinearly to `size`; mirrored half of the time if `flip`."""
    area = draw.between(*scale)
    # The aspect is bounded so that the box always fits: no rejection, and a crop of the whole area is the image itself.
    most = torch.minimum(torch.full_like(area, math.log(ASPECT)), -area.log())
    aspect = draw.between(-most, most).exp()
    width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
    x, y = draw.between(-1.0, 1.0) * (1 - width), draw.between(-1.0, 1.0) * (1 - height)
    if flip:
        width = width * torch.where(draw.between(0.0, 1.0) < 0.5, -1.0, 1.0)
    if scale == (1.0, 1.0) and not flip and size == images.shape[2:]:
        return images
    zero = torch.zeros_like(x)
    theta = send(torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1), images.device)
    grid = functional.affine_grid(theta, [*images.shape[:2], *size], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _colour(images: torch.Tensor, spec: AugmentSpec, draw: _Draw) -> torch.Tensor:
    """Brightness, contrast, saturation and hue with probability `spec.jitter`, grey with `spec.grayscale`."""
    strength = spec.jitter_strength if spec.jitter > 0 else 0.0
    chosen = draw.chance(min(spec.jitter, 1.0)).view(-1, 1, 1, 1)
    least = max(0.0, 1 - 0.8 * strength)
    brightness, contrast, saturation = (send(draw.between(least, 1 + 0.8 * strength), images.device) for _ in range(3))
    hue = send(draw.between(-0.2 * strength, 0.2 * strength), images.device) * (2 * math.pi)
    if strength > 0:
        brighter = (images * brightness.view(-1, 1, 1, 1)).clamp(0, 1)
        middle = brighter.mean((1, 2, 3), keepdim=True)
        jittered = (middle + (brighter - middle) * contrast.view(-1, 1, 1, 1)).clamp(0, 1)
        if images.shape[1] == 3:
            jittered = _mix_channels(jittered, _chroma(saturation, hue)).clamp(0, 1)
        images = torch.where(chosen, jittered, images)
    if spec.grayscale > 0 and images.shape[1] == 3:
        grey = draw.chance(spec.grayscale).view(-1, 1, 1, 1)
        luma = (images * _yiq(images.device)[0][0].view(1, 3, 1, 1)).sum(1, keepdim=True)
        images = torch.where(grey, luma.expand_as(images), images)
    return images


def _chroma(saturation: torch.Tensor, hue: torch.Tensor) -> torch.Tensor:
    """Matrices [b, 3, 3] that scale the chroma of RGB by `saturation` and turn it by `hue` (radians), and keep the luma."""
    middle = torch.zeros(len(hue), 3, 3, device=hue.device)
    middle[:, 0, 0] = 1
    middle[:, 1, 1] = middle[:, 2, 2] = saturation * hue.cos()
    middle[:, 2, 1] = saturation * hue.sin()
    middle[:, 1, 2] = -middle[:, 2, 1]
    there, back = _yiq(hue.device)
    return back @ middle @ there


@functools.cache
def _yiq(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices to YIQ and back, on `device`."""
    return _TO_YIQ.to(device), _FROM_YIQ.to(device)


def _mix_channels(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    return torch.bmm(matrices, images.flatten(2)).view_as(images)


def _blur(images: torch.Tensor, probability: float, draw: _Draw) -> torch.Tensor:
    """Gaussian blur of a random width. Each axis is one matrix product; rows sum to one, so edges keep their brightness."""
    sigma = send(draw.between(*BLUR_SIGMA), images.device)
    chosen = draw.chance(probability).view(-1, 1, 1, 1)
    down, across = (_gaussian(side, sigma).unsqueeze(1) for side in images.shape[2:])
    return torch.where(chosen, down @ images @ across.transpose(2, 3), images)


def _gaussian(side: int, sigma: torch.Tensor) -> torch.Tensor:
    """Row-normalised Gaussian kernels, [b, side, side]."""
    places = torch.arange(side, device=sigma.device, dtype=sigma.dtype)
    apart = (places[:, None] - places[None, :]).square()
    return functional.softmax(-apart[None] / (2 * sigma.square().view(-1, 1, 1)), dim=2)
