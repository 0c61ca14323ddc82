"""A synthetic set in the formats that other tools read, and what 8-bit formats cost it."""

import functools
import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from PIL import Image
from torch import Tensor

from ddcore.observatory.mosaic import mosaic
from ddcore.synthetic import FILE, SyntheticSet, load_synthetic
from ddcore.task import Task

PREVIEW = 100  # images in preview.png: the first ones

# What a `datasets.Dataset` of Hugging Face needs to show the column `image` as pictures.
_FEATURES = {
    "image": {"_type": "Image"},
    "target": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"},
    "index": {"dtype": "int64", "_type": "Value"},
}


def export_set(task: Task) -> dict[str, Any]:
    """Step `export`: synthetic.pt, synthetic-png.zip, synthetic.parquet, synthetic-mtt.zip and preview.png.

    .pt and mtt keep every bit of the images; png and parquet round them to 8 bits, and the summary says what that loses. Equal
    sets give equal bytes.
    """
    data = load_synthetic(task.input("set") / FILE)
    pngs = functools.cache(lambda: _pngs(data, task.reporter.pulse))
    writers: dict[str, Callable[[Path], None]] = {
        "synthetic.pt": lambda path: write_tensors(data, path),
        "synthetic-png.zip": lambda path: write_png_zip(data, pngs(), path),
        "synthetic.parquet": lambda path: write_parquet(data, pngs(), path),
        "synthetic-mtt.zip": lambda path: write_mtt_zip(data, path),
        "preview.png": lambda path: write_preview(data, path),
    }
    for done, (name, write) in enumerate(writers.items()):
        task.reporter.progress(done, len(writers), "files", name)
        write(task.out / name)
    task.reporter.progress(len(writers), len(writers), "files")
    sizes = {name: (task.out / name).stat().st_size for name in writers}
    return {"num_images": len(data.images), "files": sizes, "rounding": rounding(data)}


def rounding(data: SyntheticSet) -> dict[str, float]:
    """What 8 bits lose: the range of the exact pixels (0..1 fits), the share outside it, and the largest and mean absolute error."""
    error = (data.quantised().images - data.images).abs().double()
    outside = (data.images < 0) | (data.images > 1)
    return {
        "lowest_pixel": float(data.images.min()),
        "highest_pixel": float(data.images.max()),
        "share_clipped": float(outside.double().mean()),
        "max_error": float(error.max()),
        "mean_error": float(error.mean()),
    }


def write_tensors(data: SyntheticSet, path: Path) -> None:
    """A dictionary of plain tensors for `torch.load(path, weights_only=True)`: the set, and its normalisation as mean and std [c].

    learned_lr is [], or [num_layers] where layers have their own rates.
    """
    tensors = {"images": data.images, "targets": data.targets, "learned_lr": data.learned_lr, "indices": data.indices}
    tensors |= {name: torch.tensor(data.info[name], dtype=torch.float32) for name in ("mean", "std")}
    path.write_bytes(_tensor_file(tensors))


def write_png_zip(data: SyntheticSet, pngs: Sequence[bytes], path: Path) -> None:
    """The images as files `pngs`: 00000.png and so on (8-bit), targets.npy float32 [m, d], meta.json."""
    members = {f"{number:05d}.png": png for number, png in enumerate(pngs)}
    targets = io.BytesIO()
    np.save(targets, data.targets.numpy())
    _write_zip(path, members | {"targets.npy": targets.getvalue(), "meta.json": _meta(data)})


def write_parquet(data: SyntheticSet, pngs: Sequence[bytes], path: Path) -> None:
    """Rows of image (one of `pngs`: 8-bit), target (list of float32), index; the facts of `_meta` in the schema's metadata."""
    images = [{"bytes": png, "path": f"{number:05d}.png"} for number, png in enumerate(pngs)]
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("target", pa.list_(pa.float32())),
            ("index", pa.int64()),
        ],
        metadata={
            "huggingface": json.dumps({"info": {"features": _FEATURES}}),
            "learned_lr": repr(data.rate),
            "potstill": _meta(data).decode(),
        },
    )
    columns = {"image": images, "target": list(data.targets.numpy()), "index": data.indices.tolist()}
    pa.parquet.write_table(pa.table(columns, schema=schema), path)


def write_mtt_zip(data: SyntheticSet, path: Path) -> None:
    """images_best.pt (normalised, as those codes keep them), labels_best.pt, lr_best.pt: names of trajectory matching (2203.11932).

    lr_best.pt is the learned rate as the set has it, [] or [num_layers]; those codes expect one number, which meta.json has.
    """
    tensors = {"images_best.pt": data.normalised(), "labels_best.pt": data.targets, "lr_best.pt": data.learned_lr}
    members = {name: _tensor_file(tensor) for name, tensor in tensors.items()}
    _write_zip(path, members | {"meta.json": _meta(data)})


def write_preview(data: SyntheticSet, path: Path) -> None:
    """The first images as one picture."""
    first = data.images[:PREVIEW]
    Image.fromarray(mosaic(first, columns=math.ceil(math.sqrt(len(first))))).save(path)


def _tensor_file(value: Tensor | Mapping[str, Tensor]) -> bytes:
    out = io.BytesIO()
    torch.save(value if isinstance(value, Tensor) else dict(value), out)
    return out.getvalue()


def _pngs(data: SyntheticSet, pulse: Callable[[], None]) -> list[bytes]:
    """The images as PNG files of 8 bits. pulse: called for each; it may raise."""
    pixels = (data.quantised().images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    encoded = []
    for image in pixels:
        pulse()
        out = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(out, format="PNG")
        encoded.append(out.getvalue())
    return encoded


def _meta(data: SyntheticSet) -> bytes:
    """The facts as JSON. learned_lr is one number; where layers have their own, their geometric mean, and learned_lrs lists them."""
    facts = {**data.info, "learned_lr": data.rate, "indices": data.indices.tolist(), "rounding": rounding(data)}
    if data.rates is not None:
        facts["learned_lrs"] = data.rates
    return json.dumps(facts, sort_keys=True, indent=1).encode()


def _write_zip(path: Path, members: dict[str, bytes]) -> None:
    """A zip without times or owners; what is in it is compressed already, or is noise."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
