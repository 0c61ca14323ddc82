"""What differs from one installation to the next, read from `POTSTILL_*` environment variables and, for secrets, from files."""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ddcore.plan import STEP_VERSION

S3 = "s3://"
SECRETS = "/run/secrets"  # where Compose, Swarm and Kubernetes are usually told to put them


class Settings(BaseSettings):
    """Settings of every process; a field `x` is read from `POTSTILL_X`. Times are seconds, sizes bytes.

    What the environment does not say is read from a file `potstill_x` in `POTSTILL_SECRETS_DIR` (/run/secrets), if there is one.
    """

    model_config = SettingsConfigDict(env_prefix="POTSTILL_", frozen=True)

    home: Path = Field(Path("~/.potstill"), description="where everything lives that has no place of its own")
    database_url: str = Field("", description="SQLAlchemy URL; a SQLite file in `home` when empty")
    database_password: SecretStr = Field(SecretStr(""), description="put into database_url, which then need not hold it")
    database_pool: int = Field(10, ge=1, le=200, description="connections a process may hold")
    redis_url: str = Field("", description="redis://localhost:6379/0 when empty")
    redis_password: SecretStr = Field(SecretStr(""), description="put into redis_url, which then need not hold it")
    store: str = Field("", description="the artifact store: a folder, or s3://bucket/prefix; `home`/blobs when not set")
    store_quota_bytes: int = Field(0, ge=0, description="what all artifacts may take together; more is refused. No limit when 0")
    store_reserve_bytes: int = Field(256 * 1024**2, ge=0, description="what new work must leave free on a folder's disk, and on scratch's")
    store_endpoint: str = Field("", description="URL of an S3-compatible server; AWS when not set. As all of S3, also from AWS_* variables")
    store_public_endpoint: str = Field("", description="URL by which those who download reach that server, where it is another")
    store_region: str = Field("", description="region of the bucket; us-east-1 when nothing says otherwise")
    store_access_key_id: str = ""
    store_secret_access_key: SecretStr = SecretStr("")
    store_url_seconds: int = Field(3600, ge=1, le=7 * 24 * 3600, description="how long the address of a download holds")
    keep_days: Annotated[dict[str, float], NoDecode] = Field(
        default_factory=dict,
        description='how long files that nobody uses are kept, by kind of step, such as {"experts": 30}; "intermediate": all kinds that '
        "can be computed again. For good when not named",
    )
    scratch: Path = Field(Path(), description="work folders of running steps and downloads; `home`/scratch when not set")

    lease_seconds: float = Field(90.0, gt=0.0)
    heartbeat_seconds: float = Field(3.0, gt=0.0, description="between two renewals of a lease; also how late a cancel is seen")
    stall_seconds: float = Field(600.0, gt=0.0, description="a runner that says nothing for so long is taken for hung")
    stop_grace_seconds: float = Field(10.0, ge=0.0, description="between asking a runner to stop and killing it")
    checkpoint_seconds: float = Field(60.0, ge=0.0, le=120.0, description="between two checkpoints of a step: what a killed one loses")
    max_attempts: int = Field(3, ge=1, le=100, description="failures of a step that are not the user's, before it fails for good")
    ring_seconds: float = Field(30.0, gt=0.0, description="a step ready for so long, and not begun, has its doorbell rung again")

    max_upload_bytes: int = Field(2 * 1024**3, ge=1)
    max_images: int = Field(2_000_000, ge=1)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    threads: int = Field(0, ge=0, description="torch's CPU threads in a runner; one a core when 0")
    cache_bytes: int = Field(50 * 1024**3, ge=0, description="stored files that a worker keeps at hand; the least recently used go")
    log_level: str = "info"
    log_json: bool = Field(False, description="a JSON object a line, for a log collector; else text for people")

    @model_validator(mode="before")
    @classmethod
    def _places(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        home = Path(values.get("home") or "~/.potstill").expanduser().absolute()
        values["home"] = home
        values["database_url"] = values.get("database_url") or f"sqlite:///{home / 'potstill.db'}"
        values["redis_url"] = values.get("redis_url") or "redis://localhost:6379/0"
        for part in ("database", "redis"):
            values[f"{part}_url"] = _with_password(values[f"{part}_url"], values.get(f"{part}_password"))
        store = str(values.get("store") or home / "blobs")
        values["store"] = store if store.startswith(S3) else str(Path(store).expanduser().absolute())
        values["scratch"] = Path(values.get("scratch") or home / "scratch").expanduser().absolute()
        return values

    @model_validator(mode="after")
    def _store_can_be_opened(self) -> Self:
        if self.store.startswith(S3) and not self.store.removeprefix(S3).partition("/")[0]:
            raise ValueError(f"store is {self.store!r}, which names no bucket; write s3://bucket or s3://bucket/prefix")
        if bool(self.store_access_key_id) != bool(self.store_secret_access_key.get_secret_value()):
            raise ValueError("store_access_key_id and store_secret_access_key belong together: set both or neither")
        return self

    @field_validator("keep_days", mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        try:
            return json.loads(given or "{}") if isinstance(given, str) else given
        except ValueError as error:
            raise ValueError('keep_days must be a JSON object of days by kind of step, such as {"experts": 30}') from error

    @field_validator("keep_days")
    @classmethod
    def _kinds_that_there_are(cls, given: dict[str, float]) -> dict[str, float]:
        allowed = {"intermediate", *STEP_VERSION}
        if unknown := sorted(given.keys() - allowed):
            raise ValueError(f"keep_days names {', '.join(unknown)}; the kinds are {', '.join(sorted(allowed))}")
        if any(days <= 0 for days in given.values()):
            raise ValueError("keep_days are days, more than 0; leave a kind out to keep its files for good")
        return given

    @model_validator(mode="after")
    def _heart_beats_in_time(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"heartbeat_seconds ({self.heartbeat_seconds:g}) must be at most half of lease_seconds ({self.lease_seconds:g})"
            )
        return self


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    secrets = Path(os.environ.get("POTSTILL_SECRETS_DIR") or SECRETS)
    return Settings(_secrets_dir=secrets if secrets.is_dir() else None)


def _with_password(url: str, password: str | SecretStr | None) -> str:
    plain = password.get_secret_value() if isinstance(password, SecretStr) else password
    if not plain:
        return url
    parts = urlsplit(url)
    place = f"{parts.username or ''}:{quote(plain, safe='')}@{parts.netloc.rpartition('@')[2]}"
    return parts._replace(netloc=place).geturl()
