from worker.outputs import kinds_of, media_type_of


def test_each_file_that_a_step_leaves_has_its_kind() -> None:
    names = {
        "dataset.safetensors": "dataset",
        "teacher.safetensors": "teacher",
        "teacher.json": "manifest",
        "trajectory.safetensors": "trajectories",
        "experts.safetensors": "trajectories",
        "targets.safetensors": "targets",
        "synthetic.safetensors": "synthetic_set",
        "history.json": "history",
        "step.json": "manifest",
        "preview.png": "preview",
        "losses.png": "plot",
        "losses.svg": "plot",
        "losses.json": "plot",
        "rates.json": "rates",
        "scores.json": "scores",
        "report.json": "report",
        "report.md": "report",
        "ranking.md": "report",
        "ranking.png": "plot",
        "ranking.json": "plot",
        "observations.json": "observations",
        "observations.parquet": "observations",
        "synthetic.pt": "export",
        "synthetic-png.zip": "export",
        "synthetic.parquet": "export",
    }
    assert kinds_of(names) == names


def test_media_types_do_not_depend_on_the_machine() -> None:
    assert media_type_of("x.safetensors") == "application/octet-stream"
    assert media_type_of("x.svg") == "image/svg+xml"
    assert media_type_of("x.parquet") == "application/vnd.apache.parquet"
    assert media_type_of("noending") == "application/octet-stream"
