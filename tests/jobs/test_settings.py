from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url

from jobs.settings import Settings, get_settings

URLS = {
    "POTSTILL_DATABASE_URL": "postgresql+psycopg://me@db:5432/potstill?client_encoding=utf8",
    "POTSTILL_REDIS_URL": "rediss://broker:6379/1",
}


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of secrets, beside URLs without passwords."""
    for name, url in URLS.items():
        monkeypatch.setenv(name, url)
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("POTSTILL_SECRETS_DIR", str(folder))
    return folder


def test_passwords_from_files_go_into_the_urls(secrets: Path) -> None:
    (secrets / "potstill_database_password").write_text("sl/ash@t?\n")
    (secrets / "potstill_redis_password").write_text("other")
    (secrets / "potstill_store_access_key_id").write_text("key")
    (secrets / "potstill_store_secret_access_key").write_text("sesame\n")
    settings = get_settings.__wrapped__()
    url = make_url(settings.database_url)
    assert (url.username, url.password, url.host, url.port, url.query) == ("me", "sl/ash@t?", "db", 5432, {"client_encoding": "utf8"})
    assert settings.redis_url == "rediss://:other@broker:6379/1"
    assert (settings.store_access_key_id, settings.store_secret_access_key.get_secret_value()) == ("key", "sesame")


def test_the_environment_comes_before_files(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets / "potstill_redis_password").write_text("of the file")
    monkeypatch.setenv("POTSTILL_REDIS_PASSWORD", "ofTheEnvironment")
    assert get_settings.__wrapped__().redis_url == "rediss://:ofTheEnvironment@broker:6379/1"


def test_without_secrets_urls_stay_as_they_are(secrets: Path) -> None:
    secrets.rmdir()
    settings = get_settings.__wrapped__()
    assert (settings.database_url, settings.redis_url) == tuple(URLS.values())
    assert Settings(redis_url="").redis_url == "redis://localhost:6379/0"


def test_a_password_replaces_that_of_a_url_and_is_not_shown() -> None:
    settings = Settings(redis_url="redis://me:old@broker:6379/0", redis_password=SecretStr("new"))
    assert settings.redis_url == "redis://me:new@broker:6379/0"
    assert "new" not in repr(settings.redis_password)
