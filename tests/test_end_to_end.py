"""The whole stack, over HTTP, with real processes: from a post to files that other tools open."""

import hashlib
import io
import itertools
import json
import math
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from potstill.client import Client
from potstill.errors import JobFailed
from potstill.stack import Stack

Json = dict[str, Any]

pytestmark = pytest.mark.end_to_end

SMOKE = {"preset": "smoke"}
SMALL = {  # a few seconds on 32x32 pixels
    "preset": "smoke",
    "teacher": {"backbone": {"width": 8}, "epochs": 1, "batch_size": 64},
    "experts": {"num": 1},
    "method": {"iterations": 3},
}
PICTURES = ("expert_trajectories", "teacher_trajectories", "distances", "losses", "images")
ARMS = {"synthetic", "synthetic_8bit", "random", "k_means", "high_loss", "none"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("stack") / "home"
    with Stack(home, say=lambda line: None) as stack, Client(stack.url) as client:
        yield client


@pytest.fixture(scope="module")
def smoke(client: Client) -> Json:
    """A finished job of preset smoke."""
    return client.wait(client.distill(SMOKE)["id"])


@pytest.fixture(scope="module")
def smoke_set(client: Client, smoke: Json, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return client.download_set(smoke["results"]["synthetic_set"], tmp_path_factory.mktemp("smoke") / "synthetic.safetensors")


def slice_of(source: Path, target: Path, each: int) -> Path:
    """A zip of the first `each` images of every class of another."""
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(target, "w") as part:
        names = sorted(name for name in whole.namelist() if not name.endswith("/"))
        for _, members in itertools.groupby(names, key=lambda name: name.rpartition("/")[0]):
            for name in itertools.islice(members, each):
                part.writestr(name, whole.read(name))
    return target


def engine(spec: Json, out: Path) -> Path:
    """Run a spec without any service; the synthetic set that it makes."""
    out.mkdir(exist_ok=True)
    (out / "input.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "ddcore", "run", str(out / "input.json"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / "distill" / "synthetic.safetensors"


def bits(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each tensor of a file."""
    return {name: (str(tensor.dtype), tensor.shape, tensor.tobytes()) for name, tensor in load_file(path).items()}


def test_the_service_and_the_engine_alone_give_the_same_bits_again_and_again(smoke_set: Path, tmp_path: Path) -> None:
    alone = engine(SMOKE, tmp_path / "out")
    first = bits(alone)
    assert bits(smoke_set) == first
    assert hashlib.sha256(smoke_set.read_bytes()).digest() == hashlib.sha256(alone.read_bytes()).digest()
    for kind in ("teacher", "distill"):  # the steps that train: what is gone is computed again
        for folder in (tmp_path / "out" / "steps").glob(f"{kind}-*"):
            shutil.rmtree(folder)
    assert bits(engine(SMOKE, tmp_path / "out")) == first


def test_a_second_equal_job_computes_nothing(client: Client, smoke: Json) -> None:
    again = client.wait(client.distill(SMOKE)["id"])
    assert again["id"] != smoke["id"]
    assert [step["id"] for step in again["steps"]] == [step["id"] for step in smoke["steps"]]
    assert all(step["cached"] for step in again["steps"])
    assert not any(step["cached"] for step in smoke["steps"])
    ours, theirs = (client.get(f"/synthetic-sets/{job['results']['synthetic_set']}") for job in (again, smoke))
    assert (ours["learned_lr"], ours["job_id"]) == (theirs["learned_lr"], again["id"])
    assert all(step["progress"] is None or step["progress"]["done"] == step["progress"]["total"] for step in again["steps"])


def test_pictures_open_and_hold_something(client: Client, smoke: Json) -> None:
    plots = {plot["name"]: plot["links"] for plot in client.get(f"/jobs/{smoke['id']}/plots")["data"]}
    assert set(PICTURES) <= set(plots)
    for name in PICTURES:
        content = {form: httpx.get(client.url + plots[name][form]).raise_for_status().content for form in ("png", "svg", "json")}
        with Image.open(io.BytesIO(content["png"])) as picture:
            assert 300 <= picture.width <= 5000
            assert 150 <= picture.height <= 5000
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10, f"{name}.png is blank"
        assert xml.etree.ElementTree.fromstring(content["svg"]).tag.endswith("}svg")
        assert len([value for value in numbers(json.loads(content["json"])) if math.isfinite(value)]) > 5


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


def test_every_format_opens_with_its_own_library_and_holds_the_same_set(
    client: Client, smoke: Json, smoke_set: Path, tmp_path: Path
) -> None:
    made = load_file(smoke_set)
    images = made["images"]
    files = {
        form: client.download_set(smoke["results"]["synthetic_set"], tmp_path / form, form) for form in ("pt", "png", "parquet", "mtt")
    }
    tensors = torch.load(files["pt"], weights_only=True)
    assert np.array_equal(tensors["images"].numpy(), images)
    assert float(tensors["learned_lr"]) == float(made["learned_lr"])

    rounded = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
    with zipfile.ZipFile(files["png"]) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in sorted(names)])
        assert np.array_equal(pixels, rounded[:, 0])
        assert np.array_equal(np.load(io.BytesIO(archive.read("targets.npy")), allow_pickle=False), made["targets"])
    table = pyarrow.parquet.read_table(files["parquet"])
    shown = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    assert np.array_equal(np.stack(shown), rounded[:, 0])
    with zipfile.ZipFile(files["mtt"]) as archive:
        mtt = {name: torch.load(io.BytesIO(archive.read(name)), weights_only=True) for name in ("images_best.pt", "labels_best.pt")}
    assert mtt["images_best.pt"].shape == images.shape
    assert np.array_equal(mtt["labels_best.pt"].numpy(), made["targets"])


def test_real_images_from_upload_to_report(client: Client, real_images: Callable[[str], Path], tmp_path: Path) -> None:
    for split, each in (("train", 30), ("test", 12)):
        archive = slice_of(real_images(f"cifar10-{split}.zip"), tmp_path / f"{split}.zip", each)
        dataset = client.upload(archive, f"slice-{split}")
        assert (dataset["num_images"], dataset["num_classes"], dataset["image_shape"]) == (10 * each, 10, [3, 32, 32])
    job = client.wait(client.distill({**SMALL, "dataset": "slice-train"})["id"])
    assert client.dataset("slice-train")["state"] == "ready"
    assert all(client.dataset(f"slice-{split}")["state"] in ("validating", "ready") for split in ("train", "test"))

    path = client.download_set(job["results"]["synthetic_set"], tmp_path / "synthetic.safetensors")
    # In a process that can import neither torch nor anything of ours: the file needs the safetensors library alone.
    code = "import sys; sys.modules |= dict.fromkeys(('torch', 'ddcore', 'potstill'))\nfrom safetensors.numpy import load_file\n"
    code += f"print(*load_file({str(path)!r})['images'].shape)"
    assert subprocess.check_output([sys.executable, "-I", "-c", code], text=True) == "20 3 32 32\n"

    task = {"train": "slice-train", "test": "slice-test"}
    body = {
        "synthetic_set": job["results"]["synthetic_set"],
        "downstream": [task],
        "seeds": 2,
        "label_fractions": [0.1, 1.0],
        "label_draws": 1,
        "pretrain": {"steps": 3, "lr": 0.05},
    }
    evaluated = client.wait(client.evaluate(body)["id"])
    report = client.report(evaluated["results"]["report"])["report"]
    assert {row["arm"] for row in report["table"]} == ARMS
    for arm in ARMS:
        rows = [row for row in report["table"] if row["arm"] == arm]
        assert {(row["probe"], row["fraction"]) for row in rows} >= {("ridge", 0.1), ("ridge", 1.0), ("knn", 1.0)}
        assert all(row["n"] == 2 and 0 <= row["mean"] <= 100 for row in rows)
    assert {row["arm"] for row in report["paired"]} == {"random", "k_means", "high_loss", "none"}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in report["paired"])


def test_a_failing_job_says_what_to_try_keeps_what_it_finished_and_costs_others_nothing(client: Client, smoke: Json) -> None:
    hopeless = {"preset": "smoke", "teacher": {"min_knn_accuracy": 100, "epochs": 1, "batch_size": 1024}}
    failing = client.distill(hopeless)
    other = client.distill({**SMOKE, "method": {"name": "random"}})
    with pytest.raises(JobFailed, match="in step teacher"):
        client.wait(failing["id"])
    failed = client.job(failing["id"])
    steps = {step["kind"]: step for step in failed["steps"]}
    assert failed["error"]["code"] == "teacher_collapsed"
    assert "100" in failed["error"]["detail"]
    assert "\n" not in failed["error"]["detail"]
    assert failed["error"]["hint"]
    assert steps["teacher"]["state"] == "failed"
    assert steps["teacher"]["error"]["code"] == "teacher_collapsed"
    assert (steps["dataset"]["state"], steps["distill"]["state"]) == ("succeeded", "cancelled")
    assert client.wait(other["id"])["error"] is None

    again = client.post(f"/jobs/{failing['id']}/retry")
    assert again["parent_id"] == failing["id"]
    assert [step["kind"] for step in again["steps"] if step["cached"]] == ["dataset"]
    with pytest.raises(JobFailed, match="teacher_collapsed"):
        client.wait(again["id"])
    assert client.job(failing["id"]) == failed, "a finished job does not change"


def test_a_running_job_ends_soon_after_its_cancel(client: Client, smoke: Json) -> None:
    job = client.distill({**SMOKE, "method": {"iterations": 1_000_000}})
    end = time.monotonic() + 60
    while not any((step["progress"] or {}).get("eta_seconds") for step in job["steps"]):  # it runs, and knows for how long
        assert time.monotonic() < end, job
        time.sleep(0.2)
        job = client.job(job["id"])
    assert job["state"] == "running"
    began = time.monotonic()
    assert client.cancel(job["id"])["state"] in ("cancelling", "cancelled")
    with pytest.raises(JobFailed, match="was cancelled"):
        client.wait(job["id"])
    assert time.monotonic() - began < 20
    assert client.job(smoke["id"])["state"] == "succeeded"
