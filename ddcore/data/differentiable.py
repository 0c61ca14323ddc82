"""Differentiable augmentation of the inner steps (DSA, Zhao & Bilen, 2102.08259): views that gradients pass through.

A step shows its whole batch through one operation, drawn from a list. The operations act on normalised images, where zero is the mean
pixel, with the strengths of the authors' code:

- flip: mirrored left to right, half of the time;
- shift: moved by whole pixels, up to an eighth of a side either way, zeros where nothing is left;
- scale: each side stretched or shrunk by a factor of its own, at most 1.2, about the middle; bilinear, zeros outside;
- brightness: a number between -0.5 and 0.5 is added;
- saturation: distances to a pixel's mean over channels are multiplied by 0 to 2 (a grey image stays as it is);
- contrast: distances to an image's mean are multiplied by 0.5 to 1.5;
- cutout: a square of half a side, centred anywhere, becomes zero.

Every one of them is a linear map plus a constant, and which one it is stands in its numbers: the same kernels run for all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddcore.specs import Augmentation

FLIP = 0.5
SHIFT = 0.125
SCALE = 1.2
BRIGHTNESS = 1.0
SATURATION = 2.0
CONTRAST = 0.5
CUTOUT = 0.5

View = dict[str, Tensor]  # some of the numbers of `nothing`: those that the operations in question need
_NEEDS = {"flip": ("across",), "shift": ("down", "across"), "scale": ("down", "across"), "cutout": ("mask",)}
_COLOUR = ("colour",)


def nothing(names: Sequence[Augmentation], height: int, width: int) -> View:
    """The view that changes nothing, for operations among `names`; float32 on the CPU.

    down [h, h], across [w, w]: what each row and each column is mixed from. mask [h, w]: what is shown. colour [3]: what is added of
    the distances to the pixel's mean, of the pixel's mean's distance to the image's, and as a constant.
    """
    whole = {
        "down": torch.eye(height),
        "across": torch.eye(width),
        "colour": torch.zeros(3),
        "mask": torch.ones(height, width),
    }
    return {part: whole[part] for part in whole if any(part in _NEEDS.get(name, _COLOUR) for name in names)}


def draw_view(names: Sequence[Augmentation], height: int, width: int, random: torch.Generator) -> View:
    """One of the operations in `names`, and its strength, drawn from `random` (CPU): a view of images of height x width."""
    name = names[int(torch.randint(len(names), (), generator=random))]
    one, other = torch.rand(2, generator=random).tolist()  # as many numbers for each operation
    view = nothing(names, height, width)
    match name:
        case "flip":
            if one < FLIP:
                view["across"] = view["across"].flip(0)
        case "shift":
            view["down"], view["across"] = _shift(height, one), _shift(width, other)
        case "scale":
            view["down"], view["across"] = _scale(height, one), _scale(width, other)
        case "brightness":
            view["colour"][2] = (one - 0.5) * BRIGHTNESS
        case "saturation":
            view["colour"][0] = one * SATURATION - 1
        case "contrast":
            view["colour"][:2] = one + CONTRAST - 1
        case "cutout":
            view["mask"] = 1 - torch.outer(_cut(height, one), _cut(width, other))
    return view


def _shift(side: int, number: float) -> Tensor:
    """Rows [side, side] that move an image by whole pixels; number in [0, 1)."""
    most = int(side * SHIFT + 0.5)
    by = int(number * (2 * most + 1)) - most
    return torch.diag(torch.ones(side - abs(by)), by)


def _scale(side: int, number: float) -> Tensor:
    """Rows [side, side] of bilinear weights that stretch an image about its middle; number in [0, 1)."""
    step = 1 / SCALE + number * (SCALE - 1 / SCALE)  # pixels of the image to one of the view
    places = torch.arange(side, dtype=torch.float32)
    middle = (side - 1) / 2
    return (1 - (middle + (places[:, None] - middle) * step - places[None, :]).abs()).clamp_min(0)


def _cut(side: int, number: float) -> Tensor:
    """Ones [side] at the pixels of a stretch of half a side whose middle is anywhere; number in [0, 1)."""
    size = int(side * CUTOUT + 0.5)
    first = int(number * side) - size // 2
    places = torch.arange(side)
    return ((places >= first) & (places < first + size)).float()


def show(x: Tensor, view: View) -> Tensor:
    """Images x [k, c, h, w] through a view on their device; differentiable in x, and linear up to a constant."""
    if "down" in view:
        x = view["down"] @ x
    if "across" in view:
        x = x @ view["across"].mT
    if "colour" in view:
        pixel = x.mean(1, keepdim=True)
        image = pixel.mean((2, 3), keepdim=True)
        apart, level, more = view["colour"].unbind()
        x = x + apart * (x - pixel) + level * (pixel - image) + more
    return x * view["mask"] if "mask" in view else x


class Views:
    """The views of an inner run, one for each step, kept on the device: `views(x, step)` is the same whenever it is called again.

    They stay in the same memory from one `draw` to the next. like: a tensor [.., h, w] of the images' size, device and dtype.
    """

    def __init__(self, names: Sequence[Augmentation], steps: int, like: Tensor) -> None:
        self.names, self.steps = names, steps
        self.height, self.width = like.shape[-2:]
        whole = nothing(names, self.height, self.width)
        self._kept = {part: one.to(like).expand(steps, *one.shape).contiguous() for part, one in whole.items()}

    def draw(self, random: torch.Generator) -> None:
        """New views for all steps from `random` (CPU), in the order of the steps. Does not wait for the device."""
        drawn = [draw_view(self.names, self.height, self.width, random) for _ in range(self.steps)]
        for part, kept in self._kept.items():
            new = torch.stack([view[part] for view in drawn])
            kept.copy_(new.pin_memory() if kept.is_cuda else new, non_blocking=True)

    def __call__(self, x: Tensor, step: int) -> Tensor:
        """Images x [k, c, h, w] as `step` shows them."""
        return show(x, {part: kept[step] for part, kept in self._kept.items()})
