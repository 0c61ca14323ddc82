"""Datasets and checkpoints that are hostile, corrupt or do not fit: refused at once, with the field, what was given and what to try."""

import io
import json
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.api.fakes import Refused


@pytest.fixture
def client(gallery: tuple[TestClient, dict[str, Any]]) -> TestClient:
    """What is refused changes nothing: one installation serves all."""
    return gallery[0]


def picture(size: tuple[int, int] = (8, 8), form: str = "PNG", value: int = 0) -> bytes:
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def sixteen_bits() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(out, "PNG")
    return out.getvalue()


def vast() -> bytes:
    """A PNG of some hundred bytes that declares 60000 x 60000 pixels."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)


def packed(extra: dict[str, bytes] | None = None, classes: str = "ab", count: int = 20) -> bytes:
    """A zip of good images in class folders, or flat if `classes` is empty, and of the members in `extra`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(count):
            folder = f"{classes[number % len(classes)]}/" if classes else ""
            archive.writestr(f"{folder}{number}.png", picture(value=number))
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return out.getvalue()


def with_link() -> bytes:
    out = io.BytesIO(packed())
    with zipfile.ZipFile(out, "a") as archive:
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return out.getvalue()


def encrypted() -> bytes:
    content = bytearray(packed(count=1, classes=""))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    return bytes(content)


JPEG = picture((32, 32), "JPEG")

BAD_ZIPS: list[tuple[str, Callable[[], bytes], str]] = [
    ("leads outside", lambda: packed({"../../etc/x.png": picture()}), "'../../etc/x.png' has a path that leads outside"),
    ("absolute", lambda: packed({"/etc/x.png": picture()}), "'/etc/x.png' has an absolute path"),
    ("link", with_link, "a/link.png is a symbolic link"),
    ("bomb", lambda: packed({"a/bomb.png": b"\0" * 20_000_000}), "a/bomb.png unpacks"),
    ("pixel bomb", lambda: packed({"a/vast.png": vast()}), "a/vast.png declares far too many pixels"),
    ("zip in a zip", lambda: packed({"a/inner.zip": packed()}), "a/inner.zip is an archive inside the archive"),
    ("encrypted", encrypted, "0.png is encrypted"),
    ("mixed sizes", lambda: packed({"b/wide.png": picture((9, 8))}), "a/0.png is 8x8, b/wide.png is 9x8"),
    ("not an image", lambda: packed({"a/setup.exe": b"MZ"}), "a/setup.exe is not an image"),
    ("cut short", lambda: packed({"a/z.jpg": JPEG[: len(JPEG) // 2]}, count=0), "a/z.jpg has damaged or missing pixels"),
    ("16 bits", lambda: packed({"a/deep.png": sixteen_bits()}), "a/deep.png has more than 8 bits a channel"),
    ("empty member", lambda: packed({"a/z.png": b""}), "a/z.png is empty"),
    ("no member", lambda: packed(count=0), "there is no image in it"),
    ("half a zip", lambda: packed()[:-50], "only the beginning of one"),
    ("no byte", lambda: b"", "the file is empty"),
]


@pytest.mark.parametrize(("what", "make", "said"), BAD_ZIPS, ids=[what for what, _, _ in BAD_ZIPS])
def test_bad_zip(client: TestClient, refused: Refused, what: str, make: Callable[[], bytes], said: str) -> None:
    before = client.get("/datasets?limit=200").json()["data"]
    content, began = make(), time.monotonic()
    problem = refused(client.post("/datasets", files={"file": ("mine.zip", content)}), 422, "bad_dataset")
    assert time.monotonic() - began < 5
    (error,) = problem["errors"]
    assert (error["field"], error["given"]) == ("file", "mine.zip")
    assert said in error["message"]
    assert error["allowed"]
    assert error["message"] in problem["detail"]
    assert client.get("/datasets?limit=200").json()["data"] == before


@pytest.mark.parametrize(
    ("teacher", "said", "allowed"),
    [
        ({"ssl": "dino", "backbone": {"name": "resnet81"}}, "no model called 'resnet81'; did you mean resnet18?", "resnet18"),
        ({"ssl": "simclr", "backbone": {"name": "vit_tiny_patch16_242"}}, "timm has no model", "vit_tiny_patch16_224"),
        ({"ssl": "given", "source": "torchvision", "backbone": {"name": "vit_b_17"}}, "torchvision has no model", "vit_b_16"),
    ],
)
def test_unknown_backbone(client: TestClient, refused: Refused, teacher: Any, said: str, allowed: str) -> None:
    (error,) = refused(client.post("/distill", json={"teacher": teacher}), 422, "invalid_spec")["errors"]
    assert (error["field"], error["given"]) == ("teacher.backbone.name", teacher["backbone"]["name"])
    assert said in error["message"]
    assert allowed in error["allowed"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"preset": "smoke", "method": {"inner_steps": 0}}, "method.inner_steps"),
        ({"preset": "smoke", "teacher": {"epochs": 0}}, "teacher.epochs"),
        ({"preset": "smoke", "experts": {"num": 0}}, "experts.num"),
        ({"preset": "smoke", "num_images": 1298}, "num_images"),
        ({"preset": "smoke", "num_images": 2.5}, "num_images"),
        ({"preset": "smoke", "teacher": {"augment": {"crop_scale": [1.0, 0.2]}}}, "teacher.augment.crop_scale"),
    ],
)
def test_size_that_makes_no_sense(client: TestClient, refused: Refused, body: Any, field: str) -> None:
    answer = client.post("/distill", json=body)
    (error,) = refused(answer, 422, answer.json()["code"])["errors"]
    assert error["field"] == field
    assert error["allowed"] or "integer" in error["message"] or "must not be larger" in error["message"]


def checkpoint(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * end


def test_checkpoint_that_does_not_fit_the_backbone(client: TestClient, refused: Refused) -> None:
    fits = {"blocks.0.weight": (16, 1, 3, 3), "blocks.0.bias": (16,), "blocks.1.weight": (16,), "blocks.1.bias": (16,)}
    wrong = fits | {"blocks.0.weight": (16, 3, 3, 3)}
    ids = [
        client.post("/artifacts", files={"file": ("c.safetensors", checkpoint(shapes))}).json()["id"]
        for shapes in (fits, wrong, {"x": (2,)})
    ]
    backbone = {"name": "convnet", "width": 16, "depth": 1}
    bodies = [{"preset": "smoke", "teacher": {"ssl": "given", "backbone": backbone, "checkpoint": one}} for one in [*ids, "art_nosuch"]]
    assert client.post("/distill?dry_run=true", json=bodies[0]).status_code == 200
    for body, said in zip(
        bodies[1:], ("blocks.0.weight is [16, 3, 3, 3], not [16, 1, 3, 3]", "blocks.0.weight is missing", "no such checkpoint"), strict=True
    ):
        (error,) = refused(client.post("/distill", json=body), 422, "invalid_spec")["errors"]
        assert (error["field"], error["given"]) == ("teacher.checkpoint", body["teacher"]["checkpoint"])
        assert said in error["message"]
        assert error["allowed"]


def test_labels_that_are_needed_and_not_there(client: TestClient, refused: Refused) -> None:
    content = packed(classes="")
    assert client.post("/datasets", files={"file": ("flat.zip", content)}, data={"name": "flat"}).json()["num_classes"] is None
    rare = packed({"c/one.png": picture(value=77)}, count=200)
    client.post("/datasets", files={"file": ("rare.zip", rare)}, data={"name": "rare"})
    made = client.get("/synthetic-sets").json()["data"][0]["id"]

    tasks = [{"train": "digits-train", "test": "digits-test"}, {"train": "flat", "test": "flat"}, {"train": "rare", "test": "digits-test"}]
    problem = refused(client.post("/evaluate", json={"synthetic_set": made, "downstream": tasks}), 422, "invalid_spec")
    found = {error["field"]: error for error in problem["errors"]}
    assert {"downstream.1.train", "downstream.1.test", "downstream.2.test", "label_fractions.0"} <= set(found)
    assert (found["downstream.1.train"]["given"], found["downstream.1.train"]["allowed"]) == ("flat", "a labelled dataset")
    assert "has no labels" in found["downstream.1.train"]["message"]
    assert "different classes" in found["downstream.2.test"]["message"]
    assert "rarest class of rare (1 image)" in found["label_fractions.0"]["message"]

    (error,) = refused(
        client.post("/distill", json={"preset": "smoke", "dataset": "flat", "teacher": {"min_knn_accuracy": 50}, "num_images": 4}),
        422,
        "invalid_spec",
    )["errors"]
    assert (error["field"], error["given"], error["allowed"]) == ("teacher.min_knn_accuracy", 50, "0")
