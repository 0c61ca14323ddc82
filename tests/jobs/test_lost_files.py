"""Files that should be in the store and are not: found before they are missed, without keeping others waiting, and made again."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs import object_store
from jobs.create import create_distill, look, look_again, retry
from jobs.store import FolderStore, open_store
from jobs.submit import decide
from tests.conftest import Database
from tests.jobs.harness import SMOKE, World, plan
from tests.object_server import ObjectServer


@dataclass(frozen=True)
class Counted(FolderStore):
    """A folder that notes what it is asked for."""

    def missing(self, names: Collection[str]) -> set[str]:
        with (self.root / "asked").open("a") as notes:
            notes.write(json.dumps(sorted(names)) + "\n")
        return super().missing(names)

    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.root / "asked").read_text().splitlines()]


def test_files_are_looked_for_all_at_once_and_further_back_only_where_some_are_gone(world: World) -> None:
    made = plan("a", "b", "c<a,b", "d<a,b", "distill<c,d", "e<distill", "f<distill")
    first = world.submit(made)
    world.finish_job(first)
    store = Counted(world.store.root)
    fates = world.database.read(lambda s: decide(s, store, made, ["distill"]))
    assert set(fates.done) == {step.key for step in made}
    assert [len(asked) for asked in store.asked()] == [3], "those of distill, e and f, in one go"

    for name in ("distill", "c"):
        world.lose_files(first, name)
    (store.root / "asked").unlink()
    fates = world.database.read(lambda s: decide(s, store, made, ["distill"]))
    assert set(fates.new) == {made.steps[name].key for name in ("distill", "c")}
    assert [len(asked) for asked in store.asked()] == [3, 2, 2], "then those of c and d, then those of a and b"

    (store.root / "asked").unlink()
    known = world.database.read(lambda s: decide(s, store, made, ["distill"], fates.found))
    assert known.new.keys() == fates.new.keys()
    assert [len(asked) for asked in store.asked()] == [1, 1, 0], "what was found before is not asked for again"


def test_the_transaction_that_posts_a_job_asks_the_server_nothing(
    object_server: ObjectServer, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = object_server.settings(tmp_path / "home")
    store = open_store(settings)
    world = World(database, store, tmp_path)  # type: ignore[arg-type]
    first = database.write(lambda s: create_distill(s, store, SMOKE).id)
    world.finish_job(first)
    found = database.read(lambda s: look(s, store, SMOKE))
    assert found
    with monkeypatch.context() as patched:
        patched.setattr(object_store.obstore, "head", lambda *args: pytest.fail("asked while everybody waits"))
        again = database.write(lambda s: create_distill(s, store, SMOKE, found=found).id)
        assert world.job(again).state == "succeeded"
        assert all(step.cached for step in world.job(again).steps)
    store.remove([next(iter(found))])
    third = database.write(lambda s: create_distill(s, store, SMOKE, found=database.read(lambda r: look(r, store, SMOKE))).id)
    assert [step.cached for step in world.job(third).steps].count(False) == 1
    world.set_job(third, "failed")
    assert database.read(lambda s: look_again(s, store, third)) < found
    assert database.write(lambda s: retry(s, store, third, found=found).parent_id) == third


def test_a_folder_needs_no_looking_ahead(world: World) -> None:
    world.finish_job(world.database.write(lambda s: create_distill(s, world.store, SMOKE).id))
    assert world.database.read(lambda s: look(s, world.store, SMOKE)) == set()
