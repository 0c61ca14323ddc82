import pytest
from pydantic import TypeAdapter

from ddcore.checks import DatasetFacts
from ddcore.errors import SpecError
from ddcore.networks.names import check_backbone
from ddcore.plan import plan_distill
from ddcore.specs import DistillSpec, TeacherSpec
from tests.ddcore.networks.write_names import FOLDER, listing

TEACHER: TypeAdapter[TeacherSpec] = TypeAdapter(TeacherSpec)


@pytest.mark.parametrize("library", ["timm", "timm_one_size", "torchvision"])
def test_the_names_are_those_of_the_installed_version(library: str) -> None:
    assert (FOLDER / f"{library}.txt").read_text() == listing(library), "run: python -m tests.ddcore.networks.write_names"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (None, "resnet18"),
        (None, "convnet"),
        (None, "vit_tiny_patch4"),
        (None, "vit_tiny_patch16_224"),
        (None, "vit_tiny_patch16_224.augreg_in21k"),
        ("checkpoint", "convnet"),
        ("checkpoint", "vit_tiny_patch16_224"),
        ("timm", "resnet18"),
        ("timm", "resnet18.a1_in1k"),
        ("torchvision", "vit_b_16"),
    ],
)
def test_names_that_are_known(source: str | None, name: str) -> None:
    assert check_backbone(_teacher(source, name)) == []


@pytest.mark.parametrize(
    ("source", "name", "said", "close"),
    [
        (None, "resnet81", "timm has no model called 'resnet81'; did you mean resnet18?", "resnet18"),
        (None, "vit_tiny_patch16_242", "no model called", "vit_tiny_patch16_224"),
        (None, "§§", "no model called '§§'", "resnet18 or convnet or vit_tiny_patch4 or timm's name of a model"),
        (None, "resnet18.a1_in2k", "no weights tagged 'a1_in2k'", "resnet18.a1_in1k"),
        ("timm", "convnet", "no model called 'convnet'", "convnext"),
        ("timm", "vit_xsmall_patch16_clip_224.x", "no weights tagged", "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"),
        ("timm", "botnet50ts_256", "timm has no weights for botnet50ts_256", "botnet26t_256"),
        ("torchvision", "vit_b_17", "torchvision has no model called", "vit_b_16"),
        ("torchvision", "convnet", "torchvision has no model called", "convnext"),
    ],
)
def test_names_that_are_not_come_with_near_ones(source: str | None, name: str, said: str, close: str) -> None:
    (problem,) = check_backbone(_teacher(source, name))
    assert problem.loc == ("teacher", "backbone", "name")
    assert problem.given == name
    assert said in problem.message
    assert close in problem.allowed
    assert len(set(problem.allowed.split(", "))) == len(problem.allowed.split(", "))


def test_a_vit_of_small_patches_is_refused_for_other_sides_before_any_work() -> None:
    teacher = {"ssl": "dino", "backbone": {"name": "vit_tiny_patch4"}}
    for size, fits in ((32, True), (64, True), (30, False)):
        upload = DatasetFacts("upload", {"archive": "0" * 64}, 5000, (3, size, 32), None)
        spec = DistillSpec.model_validate({"dataset": "upload", "teacher": teacher})
        if fits:
            plan_distill(spec, upload)
            continue
        with pytest.raises(SpecError, match="patches of 4x4 pixels") as caught:
            plan_distill(spec, upload)
        assert [(one.loc, one.given) for one in caught.value.problems] == [(("teacher", "backbone", "name"), "30x32 pixels")]


@pytest.mark.parametrize(
    ("name", "size", "said", "allowed"),
    [
        ("resnet18", 16, None, ""),
        ("vit_tiny_patch4", 16, None, ""),
        ("vit_tiny_patch16_224", 16, None, ""),
        ("convnext_atto.d2_in1k", 17, None, ""),
        ("convnet", 16, "its last map", "leave it out, and local crops are resized to full size; or another backbone, such as resnet18"),
        ("mixer_s32_224", 16, "mixer_s32_224 reads images of one size only", "resnet18 or vit_tiny_patch4"),
        ("beit_base_patch16_224", 16, "one size only", "leave it out"),
        ("vit_tiny_patch4", 18, "patches of 4x4 pixels, and local views are 18x36", "both sides multiples of 4"),
        ("vit_tiny_patch16_224", 24, "patches of 16x16 pixels, and local views are 24x48", "multiples of 16"),
        ("resnet18", 40, "no larger than the images, of 32x64 pixels", "4 to 32"),
    ],
)
def test_small_local_crops_are_refused_where_they_cannot_be_read_before_any_work(
    name: str, size: int, said: str | None, allowed: str
) -> None:
    teacher = {"ssl": "dino", "backbone": {"name": name}, "local_crops": 2}
    upload = DatasetFacts("upload", {"archive": "0" * 64}, 5000, (3, 32, 64), None)
    plan_distill(DistillSpec.model_validate({"dataset": "upload", "teacher": teacher}), upload)
    spec = DistillSpec.model_validate({"dataset": "upload", "teacher": teacher | {"local_crop_size": size}})
    if said is None:
        plan_distill(spec, upload)
        return
    with pytest.raises(SpecError) as caught:
        plan_distill(spec, upload)
    (problem,) = caught.value.problems
    assert (problem.loc, problem.given) == (("teacher", "local_crop_size"), size)
    assert said in problem.message
    assert allowed in problem.allowed


@pytest.mark.parametrize("path", ["teacher", "student"])
@pytest.mark.parametrize(
    ("field", "value", "said"), [("local_crop_size", 16, "reads images of one size"), ("masked_patches", 1.0, "no patches")]
)
def test_a_student_network_that_is_trained_by_the_recipe_has_neither_sizes_nor_patches(
    path: str, field: str, value: float, said: str
) -> None:
    teacher = {"ssl": "dino", "backbone": {"name": "vit_tiny_patch4"}, field: value}
    upload = DatasetFacts("upload", {"archive": "0" * 64}, 5000, (3, 32, 32), None)
    plan_distill(DistillSpec.model_validate({"dataset": "upload", "teacher": teacher}), upload)
    with pytest.raises(SpecError, match=said) as caught:
        plan_distill(
            DistillSpec.model_validate({"dataset": "upload", "teacher": teacher, "method": {"name": "dino_tm", "path": path}}), upload
        )
    assert [one.loc for one in caught.value.problems] == [("teacher", field)]


@pytest.mark.parametrize("name", ["resnet18", "convnet", "vit_tiny_patch16_224"])
def test_patches_are_hidden_from_the_small_vit_only(name: str) -> None:
    upload = DatasetFacts("upload", {"archive": "0" * 64}, 5000, (3, 32, 32), None)
    spec = {"dataset": "upload", "teacher": {"ssl": "dino", "backbone": {"name": name}, "masked_patches": 0.5}}
    with pytest.raises(SpecError, match=f"{name} has no patches") as caught:
        plan_distill(DistillSpec.model_validate(spec), upload)
    (problem,) = caught.value.problems
    assert (problem.loc, problem.given) == (("teacher", "masked_patches"), 0.5)
    assert "vit_tiny_patch4" in problem.allowed


def _teacher(source: str | None, name: str) -> TeacherSpec:
    given = {"ssl": "given", "source": source, "checkpoint": "art_x" if source == "checkpoint" else None} if source else {"ssl": "dino"}
    return TEACHER.validate_python({**given, "backbone": {"name": name}})
