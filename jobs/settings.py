"""What differs from one installation to the next, read from `POTSTILL_*` environment variables."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of every process; a field `x` is read from `POTSTILL_X`. Times are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="POTSTILL_", frozen=True)

    home: Path = Field(Path("~/.potstill"), description="where everything lives that has no place of its own")
    database_url: str = Field("", description="SQLAlchemy URL; a SQLite file in `home` when empty")
    database_pool: int = Field(10, ge=1, le=200, description="connections a process may hold")
    redis_url: str = "redis://localhost:6379/0"
    store: Path = Field(Path(), description="folder of the artifact store; `home`/blobs when not set")
    scratch: Path = Field(Path(), description="work folders of running steps and downloads; `home`/scratch when not set")

    lease_seconds: float = Field(90.0, gt=0.0)
    heartbeat_seconds: float = Field(3.0, gt=0.0, description="between two renewals of a lease; also how late a cancel is seen")
    stall_seconds: float = Field(600.0, gt=0.0, description="a runner that says nothing for so long is taken for hung")
    stop_grace_seconds: float = Field(10.0, ge=0.0, description="between asking a runner to stop and killing it")
    max_attempts: int = Field(3, ge=1, le=100, description="failures of a step that are not the user's, before it fails for good")
    ring_seconds: float = Field(30.0, gt=0.0, description="a step ready for so long, and not begun, has its doorbell rung again")

    max_upload_bytes: int = Field(2 * 1024**3, ge=1)
    max_images: int = Field(2_000_000, ge=1)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    threads: int = Field(0, ge=0, description="torch's CPU threads in a runner; one a core when 0")
    cache_bytes: int = Field(50 * 1024**3, ge=0, description="inputs of earlier steps that a worker keeps at hand")
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
        values["store"] = Path(values.get("store") or home / "blobs").expanduser().absolute()
        values["scratch"] = Path(values.get("scratch") or home / "scratch").expanduser().absolute()
        return values

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
    return Settings()
