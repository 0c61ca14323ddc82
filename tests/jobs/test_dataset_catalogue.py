"""Built-ins and uploads: found by id and name, validated once, refused for good reasons."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import func, select

from ddcore.errors import DdcoreError, SpecError
from ddcore.specs import DistillSpec
from jobs import catalogue, views
from jobs.cancel import cancel
from jobs.catalogue import add_upload, ensure_builtins, find, read_upload
from jobs.claims import claim, fail, heartbeat
from jobs.create import create_distill
from jobs.errors import NotFound, UnknownDataset
from jobs.models import Artifact, Dataset, Step
from tests.jobs.harness import World, at_once


def archive(folder: Path, *, seed: int = 0, classes: int = 2, each: int = 12) -> Path:
    """A zip of small random images in class folders; made again later, it has the same bytes."""
    rng = np.random.default_rng(seed)
    path = folder / f"images-{seed}.zip"
    with zipfile.ZipFile(path, "w") as file:
        for c in range(classes):
            for i in range(each):
                image = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(image, "PNG")
                file.writestr(zipfile.ZipInfo(f"class{c}/{i}.png"), image.getvalue())
    return path


def upload(world: World, name: str = "mine", **options: int) -> Dataset:
    found = read_upload(world.store, archive(world.folder, **options))
    return world.database.write(lambda s: add_upload(s, world.store, found, name))


def state(world: World, dataset: Dataset) -> str:
    return world.database.read(lambda s: catalogue.state(s, dataset).state)


def the_step(world: World, dataset: Dataset) -> Step:
    query = select(Step).where(Step.key == dataset.step_key).order_by(Step.id.desc())
    return world.database.read(lambda s: s.scalars(query).first()) or pytest.fail("no step")


def reject(world: World, dataset: Dataset) -> None:
    step = the_step(world, dataset)
    held = world.database.write(lambda s: claim(s, step.id, "w"))
    assert held is not None
    world.database.write(lambda s: fail(s, held.step_id, held.attempt, "bad_dataset", "7.png is damaged", "remove it"))


def test_builtins_are_there_with_ids_that_never_change(world: World) -> None:
    world.database.write(ensure_builtins)
    page = world.database.read(lambda s: views.datasets(s, limit=100))
    digits = next(one for one in page.data if one.id == "ds_digits-train")
    assert (digits.name, digits.state, digits.origin, digits.num_classes) == ("digits-train", "available", "builtin", 10)
    assert (digits.image_shape, digits.num_images, sum(digits.class_counts or [])) == ((1, 8, 8), 1297, 1297)
    assert {one.id for one in page.data} == {f"ds_{name}" for name in catalogue.builtins.BUILTINS}


def test_an_upload_is_stored_and_validated_without_any_job(world: World) -> None:
    dataset = upload(world)
    view = world.database.read(lambda s: views.dataset(s, dataset.id))
    assert view.model_dump(include={"name", "state", "num_images", "num_classes", "image_shape", "classes", "class_counts", "error"}) == {
        "name": "mine",
        "state": "validating",
        "num_images": 24,
        "num_classes": 2,
        "image_shape": (3, 8, 8),
        "classes": ["class0", "class1"],
        "class_counts": [12, 12],
        "error": None,
    }
    step = the_step(world, dataset)
    assert world.doorbells() == [step.id]
    assert world.store.exists(step.params["source"]["archive"])
    held = world.database.write(lambda s: claim(s, step.id, "w"))
    assert held is not None
    assert world.database.write(lambda s: heartbeat(s, held.step_id, held.attempt)) == "ok", "the catalogue wants it"
    with pytest.raises(NotFound, match=r"out\.bin") as early:
        world.database.read(lambda s: views.dataset_file(s, "mine", "out.bin"))
    assert "not been read yet" in early.value.hint
    world.finish(held)
    assert state(world, dataset) == "ready"
    made = world.file(f"made by {step.id}")
    assert world.database.read(lambda s: views.dataset_file(s, "mine", "out.bin").sha256) == made.sha256


def test_the_same_bytes_are_the_same_dataset_also_at_once(world: World) -> None:
    found = read_upload(world.store, archive(world.folder))
    ids = at_once([lambda n=n: world.database.write(lambda s: add_upload(s, world.store, found, f"name {n % 2}")).id for n in range(4)])
    assert len(set(ids)) == 1
    rows = world.database.read(lambda s: [s.scalar(select(func.count()).select_from(table)) for table in (Step, Artifact)])
    assert rows == [1, 2], "one step, and a mark of each of the two names"
    assert upload(world, "other", seed=1).id != ids[0]


def test_a_name_means_the_latest_dataset_that_has_it(world: World) -> None:
    first, second = upload(world), upload(world, seed=1)
    assert world.database.read(lambda s: find(s, "mine").id) == second.id
    assert world.database.read(lambda s: find(s, first.id).id) == first.id
    assert upload(world).id == first.id
    assert world.database.read(lambda s: find(s, "mine").id) == first.id, "its upload is the latest now"


def test_bytes_that_are_here_already_are_found_by_their_new_name_too(world: World) -> None:
    first = upload(world)
    assert upload(world, "yours").id == first.id
    assert [world.database.read(lambda s, name=name: find(s, name).id) for name in ("mine", "yours")] == [first.id] * 2


def test_an_upload_with_a_built_in_name_is_what_the_name_means(world: World) -> None:
    built_in = world.database.read(lambda s: find(s, "cifar10-train").id)
    own = upload(world, "cifar10-train").id
    assert own != built_in
    assert world.database.read(lambda s: find(s, "cifar10-train").id) == own
    assert world.database.read(lambda s: find(s, built_in).id) == built_in


def test_an_unknown_name_lists_close_ones(world: World) -> None:
    with pytest.raises(UnknownDataset) as refused:
        world.database.read(lambda s: find(s, "digit-train"))
    assert refused.value.close[0] == "digits-train"
    with pytest.raises(SpecError) as wrong:
        world.database.write(lambda s: create_distill(s, world.store, DistillSpec(dataset="digit-train")))
    (problem,) = wrong.value.problems
    assert (problem.loc, problem.given, "digits-train" in str(problem.allowed)) == (("dataset",), "digit-train", True)


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\nb", "ds_mine"])
def test_names_that_would_confuse_are_refused(world: World, name: str) -> None:
    found = read_upload(world.store, archive(world.folder))
    with pytest.raises(DdcoreError, match="nam") as refused:
        world.database.write(lambda s: add_upload(s, world.store, found, name))
    assert refused.value.code == "bad_dataset"


def test_a_hostile_archive_leaves_nothing(world: World) -> None:
    path = world.folder / "evil.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../evil.png", b"x")
    with pytest.raises(DdcoreError) as refused:
        read_upload(world.store, path)
    assert refused.value.code == "bad_dataset"
    assert not list(world.store.root.rglob("*"))


def test_a_job_may_be_posted_while_its_dataset_is_validated_and_fails_with_it(world: World) -> None:
    dataset = upload(world)
    spec = DistillSpec(preset="smoke", dataset="mine", num_images=4)
    job_id = world.database.write(lambda s: create_distill(s, world.store, spec).id)
    steps = world.job(job_id).steps
    assert (steps[0].kind, steps[0].id, steps[0].cached) == ("dataset", the_step(world, dataset).id, False)
    reject(world, dataset)
    error = world.job(job_id).error
    assert error is not None
    assert (error.code, "7.png is damaged" in error.detail, error.hint) == ("bad_dataset", True, "remove it")
    assert state(world, dataset) == "rejected"
    with pytest.raises(SpecError, match=r"7\.png is damaged"):
        world.database.write(lambda s: create_distill(s, world.store, spec))
    again = upload(world)
    assert again.id == dataset.id
    assert state(world, dataset) == "validating", "sending it again has it read again"


def test_cancelling_a_job_does_not_stop_the_validation_of_an_upload(world: World) -> None:
    dataset = upload(world)
    spec = DistillSpec(preset="smoke", dataset=dataset.id, num_images=4)
    job_id = world.database.write(lambda s: create_distill(s, world.store, spec).id)
    assert world.database.write(lambda s: cancel(s, job_id).state) == "cancelled"
    assert state(world, dataset) == "validating"
    builtin = world.database.write(lambda s: create_distill(s, world.store, DistillSpec(preset="smoke")).id)
    world.database.write(lambda s: cancel(s, builtin))
    assert world.step(builtin, "dataset-" + world.database.read(lambda s: find(s, "digits-train").digest[:8])).state == "cancelled"


def test_a_builtin_that_could_not_be_fetched_stays_available(world: World) -> None:
    job_id = world.database.write(lambda s: create_distill(s, world.store, DistillSpec(preset="smoke")).id)
    dataset = world.database.read(lambda s: find(s, "digits-train"))
    reject(world, dataset)
    view = world.database.read(lambda s: views.dataset(s, "digits-train"))
    assert (view.state, view.error is not None, world.job(job_id).state) == ("available", True, "failed")
    world.database.write(lambda s: create_distill(s, world.store, DistillSpec(preset="smoke")))
