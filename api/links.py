"""Where to go from here: the addresses that belong to a job, what it made, or a file."""

from fastapi import Request

from jobs.bodies import JobView

Links = dict[str, str]


def address(request: Request, path: str) -> str:
    """`path` as the caller must write it, also behind a proxy that adds a prefix."""
    return f"{request.scope.get('root_path', '')}{path}"


def job_links(request: Request, job: JobView) -> Links:
    own = address(request, f"/jobs/{job.id}")
    links = {"self": own} | {name: f"{own}/{name}" for name in ("events", "metrics", "artifacts", "plots")}
    links["clone"] = f"{own}/clone"
    if job.parent_id:
        links["parent"] = address(request, f"/jobs/{job.parent_id}")
    if job.state in ("queued", "running", "cancelling"):
        links["cancel"] = f"{own}/cancel"
    if job.state in ("failed", "cancelled"):
        links["retry"] = f"{own}/retry"
    if made := job.results.get("synthetic_set"):
        links["synthetic_set"] = address(request, f"/synthetic-sets/{made}")
    if made := job.results.get("report"):
        links["report"] = address(request, f"/reports/{made}")
    if made := job.results.get("observation"):
        links["observation"] = address(request, f"/observations/{made}")
    return links
