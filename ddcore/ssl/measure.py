"""How good a teacher is: its features, their k-NN accuracy and their effective rank."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from ddcore.data.images import Images, Normaliser
from ddcore.errors import DdcoreError
from ddcore.events import Reporter
from ddcore.ledger import Ledger
from ddcore.ssl.collapse import ADVICE, WORDS, Kind
from ddcore.task import generator

NEIGHBOURS = 20
TEMPERATURE = 0.07
QUERIES = 5000
RANK_IMAGES = 10_000
LEAST_RANK = 1.5
_BATCH = 512
MEASURED = "measure 1"  # layout of checkpoints


@torch.no_grad()
def extract_features(
    module: nn.Module,
    images: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    reporter: Reporter,
    ledger: Ledger | None = None,
) -> torch.Tensor:
    """Features float32 [n, d] of images uint8 [n, c, h, w], on their device, with the module in evaluation mode.

    ledger: keeps them, and those found so far, for another attempt.
    """
    if ledger is None:
        return _extract(module, images, mean, std, reporter, [], lambda: None)
    parts: list[torch.Tensor] = []

    def all_parts() -> torch.Tensor:
        if found := ledger.resume():
            parts.extend(tensor.to(images.device) for tensor in found[0].values())
        ledger.hold(lambda: ({"features": torch.cat(parts)} if parts else {}, {}))
        return _extract(module, images, mean, std, reporter, parts, ledger.offer)

    return ledger.once(all_parts).to(images.device)


def _extract(
    module: nn.Module,
    images: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    reporter: Reporter,
    parts: list[torch.Tensor],
    between: Callable[[], None],
) -> torch.Tensor:
    """The features of the images after those in `parts`, added to these batch by batch; all together."""
    module.eval()
    normaliser = Normaliser.of(mean, std, images.device)
    for start in range(sum(map(len, parts)), len(images), _BATCH):
        reporter.progress(start, len(images), "images", "features")
        parts.append(module(normaliser(images[start : start + _BATCH])).float())
        between()
    return torch.cat(parts)


def knn_accuracy(
    features: torch.Tensor,
    labels: torch.Tensor,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    queries: int = QUERIES,
    pulse: Callable[[], None] = lambda: None,
) -> float:
    """Leave-one-out weighted k-NN accuracy, in percent (1805.01978, section 3.4; the protocol of DINO, appendix F).

    features [n, d] are compared by cosine; each neighbour votes with exp(cosine / temperature). At most `queries` images, drawn
    from a fixed seed, are asked about; all others are the memory. pulse: called now and then; it may raise.
    """
    count = len(features)
    unit = functional.normalize(features, dim=1)
    asked = torch.randperm(count, generator=generator(0, "knn"))[:queries].to(features.device)
    classes = int(labels.max()) + 1
    right = 0
    for start in range(0, len(asked), _BATCH):
        pulse()
        rows = asked[start : start + _BATCH]
        similarity = unit[rows] @ unit.T
        similarity[torch.arange(len(rows), device=rows.device), rows] = float("-inf")
        near = similarity.topk(min(k, count - 1), dim=1)
        votes = torch.zeros(len(rows), classes, device=features.device)
        votes.scatter_add_(1, labels[near.indices], torch.exp((near.values - 1) / temperature))
        right += int((votes.argmax(1) == labels[rows]).sum())
    return 100 * right / len(asked)


def effective_rank(features: torch.Tensor) -> float:
    """Entropy of the centred features' singular values, exponentiated (Roy & Vetterli, 2007): 1 to d; 0 if all features are equal."""
    sample = features[torch.linspace(0, len(features) - 1, min(len(features), RANK_IMAGES)).round().long().to(features.device)].double()
    scale = sample.norm(dim=1).mean()
    centred = sample - sample.mean(0)
    singular = torch.linalg.eigvalsh(centred.T @ centred / len(sample)).clamp_min(0).sqrt()
    # Features come from single precision: spread below its rounding is no spread.
    if not torch.isfinite(singular).all() or float(singular.max()) <= 1e-6 * float(scale):
        return 0.0
    share = singular / singular.sum()
    return float(torch.exp(-(share * share.clamp_min(1e-300).log()).sum()))


def measure(
    module: nn.Module, data: Images, mean: Sequence[float], std: Sequence[float], reporter: Reporter, ledger: Ledger | None = None
) -> tuple[float | None, float, int]:
    """k-NN accuracy (percent; None without labels), effective rank and width d of the features on the training images."""
    features = extract_features(module, data.images, mean, std, reporter, ledger)
    if not torch.isfinite(features).all():
        raise DdcoreError("diverged", "the teacher's features are not finite", "lower the learning rate")
    accuracy = None if data.labels is None else knn_accuracy(features, data.labels, pulse=reporter.pulse)
    return accuracy, effective_rank(features), features.shape[1]


def refuse_collapsed(accuracy: float | None, rank: float, floor: float, output: Kind | None = None) -> None:
    """Raise `DdcoreError` teacher_collapsed if features have hardly any rank, or k-NN accuracy is below `floor` (percent).

    output: how DINO's outputs collapsed, if they did; the error then says so, and its hint is against that.
    """
    figures = f"effective rank {rank:.2f}" + ("" if accuracy is None else f", k-NN accuracy {accuracy:.1f} %")
    why = f"; {WORDS[output]}" if output else ""
    watch = "; the curves `knn`, and for DINO `entropy` and `kl`, show when it began"
    if rank < LEAST_RANK:
        raise DdcoreError(
            "teacher_collapsed",
            f"the teacher gives nearly the same features for every image ({figures}; at least {LEAST_RANK} is needed){why}",
            (ADVICE[output] if output else "lower teacher.lr, raise teacher.warmup_epochs or teacher.batch_size") + watch,
        )
    if accuracy is not None and accuracy < floor:
        raise DdcoreError(
            "teacher_collapsed",
            f"the teacher is below its floor of {floor:.1f} % k-NN accuracy ({figures}){why}",
            ADVICE[output] + watch
            if output
            else "train for more epochs, try another lr or weaker augmentation, or lower teacher.min_knn_accuracy",
        )
