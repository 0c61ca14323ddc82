"""What a student needs of its images, and how many parameters it has, without torch: known before any engine runs."""

from ddcore.errors import Problem
from ddcore.specs import StudentSpec

RESNET_BLOCKS = {"resnet10": 1, "resnet18": 2}  # in each of four stages
VGG11 = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # channels in units of the width; every stage ends in a halving
VIT_PATCH = 4  # pixels: 32x32 pixels make 8x8 tokens
SMALLEST = {"resnet10": 8, "resnet18": 8, "vgg11": 1 << len(VGG11)}  # pixels a side: the last feature map has one pixel

Shape = tuple[int, int, int]  # channels, height, width


def check_student(loc: tuple[str | int, ...], student: StudentSpec, image_shape: Shape) -> list[Problem]:
    """What the student at `loc` of a spec cannot take of images [c, h, w]; empty if nothing."""
    _, height, width = image_shape
    size, name, least = f"{height}x{width}", student.name, min(height, width)
    if name == "convnet":
        return check_halvings((*loc, "depth"), student.depth, height, width)
    if name == "vit_tiny":
        if height % VIT_PATCH == width % VIT_PATCH == 0:
            return []
        reason, images = f"cuts images into patches of {VIT_PATCH}x{VIT_PATCH} pixels", f"images with sides that {VIT_PATCH} divides"
    elif least >= SMALLEST[name]:
        return []
    else:
        halvings, images = SMALLEST[name].bit_length() - 1, f"images of at least {SMALLEST[name]}x{SMALLEST[name]} pixels"
        reason = f"halves images {halvings} times"
    return [Problem((*loc, "name"), f"{name} {reason}: it cannot read {size} pixels", name, f"convnet, or {images}")]


def check_halvings(loc: tuple[str | int, ...], depth: int, height: int, width: int) -> list[Problem]:
    """A problem at `loc` if `depth` halvings leave less than one pixel of a height x width image."""
    most = min(height, width).bit_length() - 1
    if depth <= most:
        return []
    return [Problem(loc, f"{depth} halvings of a {height}x{width} image leave less than one pixel", depth, f"1 to {most}")]


def num_parameters(student: StudentSpec, image_shape: Shape, target_dim: int) -> int:
    """Numbers in the flat parameter vector of `student` for images [c, h, w] and `target_dim` targets; exact."""
    count = {"convnet": _convnet, "vgg11": _vgg, "vit_tiny": _vit}.get(student.name, _resnet)
    return count(student, image_shape, target_dim)


def _convnet(student: StudentSpec, image_shape: Shape, target_dim: int) -> int:
    """Each block has a 3x3 convolution with bias and a norm with scale and shift; a linear layer with bias comes last."""
    channels, height, width = image_shape
    total = 0
    for _ in range(student.depth):
        total += student.width * (channels * 9 + 1 + 2)
        channels, height, width = student.width, height // 2, width // 2
    return total + (channels * height * width + 1) * target_dim


def _resnet(student: StudentSpec, image_shape: Shape, target_dim: int) -> int:
    """Convolutions have no bias; each is followed by a norm's scale and shift. The first block of stages 2 to 4 has a 1x1 shortcut."""
    before = student.width
    total = before * (9 * image_shape[0] + 2)
    for stage in range(4):
        channels = student.width << stage
        for _ in range(RESNET_BLOCKS[student.name]):
            total += channels * (9 * before + 2) + channels * (9 * channels + 2)
            total += channels * (before + 2) if before != channels else 0
            before = channels
    return total + (before + 1) * target_dim


def _vgg(student: StudentSpec, image_shape: Shape, target_dim: int) -> int:
    before, height, width = image_shape
    total = 0
    for stage in VGG11:
        for multiple in stage:
            channels = multiple * student.width
            total += channels * (9 * before + 1 + 2)
            before = channels
        height, width = height // 2, width // 2
    return total + (before * height * width + 1) * target_dim


def _vit(student: StudentSpec, image_shape: Shape, target_dim: int) -> int:
    channels, height, width = image_shape
    d, tokens = student.width, 1 + (height // VIT_PATCH) * (width // VIT_PATCH)  # one class token
    embedding = d * (channels * VIT_PATCH**2 + 1) + d + tokens * d
    block = 2 * d + 3 * d * (d + 1) + d * (d + 1) + 2 * d + 4 * d * (d + 1) + d * (4 * d + 1)  # norm, qkv, out, norm, the two of the MLP
    return embedding + student.depth * block + 2 * d + (d + 1) * target_dim
