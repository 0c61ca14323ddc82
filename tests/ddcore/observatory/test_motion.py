"""Motion from chunks is motion by its definition, in any chunk size, and memory stays bounded as snapshots grow."""

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ddcore.observatory.motion import Motion, joined, motion

LAYERS = [("conv.weight", 30), ("conv.bias", 1), ("fc.weight", 69)]
STEP = torch.arange(7) * 10


def make_paths(s: int = 7, p: int = 100) -> dict[str, Tensor]:
    """A student far from the origin, and its moving average, which begins where the student does."""
    student = 10 + torch.randn(s, p, generator=torch.Generator().manual_seed(3)).cumsum(0)
    teacher = [student[0]]
    for row in student[1:]:
        teacher.append(0.7 * teacher[-1] + 0.3 * row)
    return {"student": student, "teacher": torch.stack(teacher)}


def observed(paths: dict[str, Tensor]) -> Motion:
    read, rows, columns = joined(paths, {name: path.shape for name, path in paths.items()})
    return motion(read, rows, STEP, LAYERS, columns)


@pytest.mark.parametrize("chunk_bytes", [1, 8 * 14 * 7, 2**30])
def test_paths_equal_their_definitions_in_any_chunk_size(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr("ddcore.observatory.motion.CHUNK_BYTES", chunk_bytes)
    paths = make_paths()
    found = observed(paths)
    assert list(found.paths) == ["student", "teacher"]
    for name, path in paths.items():
        one, rows = found.paths[name], path.double()
        steps = [rows[t + 1] - rows[t] for t in range(6)]
        torch.testing.assert_close(one.distance_from_start, torch.stack([(row - rows[0]).norm() for row in rows]))
        torch.testing.assert_close(one.step_length, torch.stack([step.norm() for step in steps]))
        whole = rows[6] - rows[0]
        torch.testing.assert_close(one.cosine_to_last_displacement, torch.stack([cosine_similarity(step, whole, 0) for step in steps]))
        table = torch.stack([torch.stack([cosine_similarity(a, b, 0) for b in steps]) for a in steps])
        torch.testing.assert_close(one.cosines, table)
        parts = (rows - rows[0]).split([size for _, size in LAYERS], dim=1)
        torch.testing.assert_close(one.layer_displacement, torch.stack([part.norm(dim=1) for part in parts], 1))


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])
def test_pair_equals_its_definition_and_has_no_direction_where_there_is_no_gap(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr("ddcore.observatory.motion.CHUNK_BYTES", chunk_bytes)
    paths = make_paths()
    pair = observed(paths).pair
    assert pair is not None
    student, teacher = paths["student"].double(), paths["teacher"].double()
    gap = teacher - student
    torch.testing.assert_close(pair.gap, gap.norm(dim=1))
    assert pair.gap_cosine[0].isnan()
    expected = torch.stack([cosine_similarity(gap[t], student[t + 1] - student[t], 0) for t in range(1, 6)])
    torch.testing.assert_close(pair.gap_cosine[1:], expected)
    moved, followed = student - student[0], teacher - teacher[0]
    torch.testing.assert_close(pair.displacement_cosine[1:], cosine_similarity(moved[1:], followed[1:], 1))


def test_numbers_become_strict_json_with_none_for_what_has_no_direction() -> None:
    paths = make_paths()
    paths["student"][3] = paths["student"][2]
    found = json.loads(json.dumps(observed(paths).to_json(), allow_nan=False))
    assert found["step"] == STEP.tolist()
    assert found["layers"] == dict(LAYERS)
    student = found["paths"]["student"]
    assert student["cosines"][2] == [None] * 6
    assert student["cosine_to_last_displacement"][2] is None
    assert student["cosines"][4][4] == pytest.approx(1)
    assert [len(student["layer_displacement"][name]) for name, _ in LAYERS] == [7, 7, 7]
    assert found["pair"]["gap_cosine"][0] is None
    alone = observed({"expert-0": paths["student"]}).to_json()
    assert alone["pair"] is None
    assert alone["paths"]["expert-0"] == student


def test_different_networks_and_layers_that_do_not_fit_are_refused_with_both_counts() -> None:
    paths = make_paths()
    shapes = {"student": (7, 100), "other": (7, 1234)}
    with pytest.raises(ValueError, match=r"'student' has 100 parameters and 'other' 1,234"):
        joined({"student": paths["student"], "other": torch.zeros(7, 1234)}, shapes)
    read, rows, columns = joined(paths, {name: path.shape for name, path in paths.items()})
    with pytest.raises(ValueError, match="layers have 31 parameters and the snapshots 100"):
        motion(read, rows, STEP, LAYERS[:2], columns)
    with pytest.raises(ValueError, match="'student' has 7 snapshots, but there are 6 steps"):
        motion(read, rows, STEP[:6], LAYERS, columns)
    with pytest.raises(ValueError, match="record at least two"):
        motion(read, {"student": torch.arange(1)}, STEP[:1], LAYERS, columns)


GROWTH = """
import resource
import torch
from ddcore.observatory.motion import motion
from ddcore.observatory.null import against_null
from ddcore.observatory.pca import centred_gram

torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
count, columns = 200, 400_000
basis = torch.randn(3, columns, generator=draw)
mixing = torch.randn(count, 3, generator=draw).cumsum(0)

def read(first, last):
    return mixing @ basis[:, first:last]

rows = {"student": torch.arange(100), "teacher": torch.arange(100, 200)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = motion(read, rows, torch.arange(100), [("first", 150_000), ("second", 250_000)], columns)
gram = centred_gram(read, count, columns)
null = against_null(gram, list(rows.values()), draw)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
moved = mixing[99] - mixing[0]
expected = ((moved @ basis).double() ** 2).sum().sqrt()
print((after - before) / 2**20, float(found.paths["student"].distance_from_start[-1] / expected), len(null["shuffled"]))
"""


def test_200_snapshots_take_far_less_memory_than_they_would_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    gibibytes, ratio, draws = map(float, done.stdout.split())
    assert gibibytes < 2 / 3 * 200 * 400_000 * 8 / 2**30
    assert ratio == pytest.approx(1, rel=1e-5)
    assert draws == 20
