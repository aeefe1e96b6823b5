from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from shortener.container import open_service
from shortener.secret import SecretError
from shortener.settings import Settings
from shortener.storage.installation import (
    FINGERPRINT,
    BaseUrlMissing,
    NoInstallation,
    get,
    open_installation_secret,
    place_of,
    require_installation,
)
from shortener.storage.open import open_database
from tests.conftest import new_postgresql_database

OTHER = SecretStr("0123456789abcdefghijklmnopqrstuv")


async def test_opening_a_folder_without_a_database_raises_an_error_and_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoInstallation, match=str(tmp_path / "data")):
        await require_installation(Settings(data_dir=tmp_path / "data"))
    assert not (tmp_path / "data").exists()


async def test_opening_an_empty_postgresql_database_as_an_installation_raises_an_error(postgresql: str, tmp_path: Path) -> None:
    url = await new_postgresql_database(postgresql, None)
    with pytest.raises(NoInstallation, match="there is no installation in the PostgreSQL database test_"):
        await require_installation(Settings(data_dir=tmp_path, database_url=url))
    with pytest.raises(NoInstallation, match="there is no installation"):
        await open_service(Settings(data_dir=tmp_path, database_url=url), may_create=False)
    assert not (tmp_path / "secret").exists(), "`deliver` creates no installation"


def test_the_displayed_address_of_an_installation_contains_no_password() -> None:
    assert place_of(Settings(database_url="postgresql://me:hunter2@db/x")) == "the PostgreSQL database x on db"


async def test_a_start_without_the_secret_of_an_existing_database_creates_no_secret(store_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=store_url)
    await (await open_service(settings)).close(grace=1)
    (tmp_path / "secret").unlink()
    with pytest.raises(SecretError, match="secret adopt"):
        await open_service(settings)
    assert not (tmp_path / "secret").exists()
    with pytest.raises(SecretError, match=r"another SECRET.*secret adopt"):
        await open_service(settings.model_copy(update={"secret": OTHER}))


async def test_a_process_without_the_setting_base_url_does_not_start_on_an_installation_that_has_a_base_url(
    store_url: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, database_url=store_url)
    for base_url in ("http://localhost:8000", "https://go.example", "https://new.example"):
        await (await open_service(settings.model_copy(update={"base_url": base_url}))).close(grace=1)
    with pytest.raises(BaseUrlMissing, match=r"set SHORTENER_BASE_URL=https://new\.example"):
        await open_service(settings)


async def test_the_first_secret_of_a_database_is_written_to_a_file_and_the_next_start_uses_this_file(
    store_url: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, database_url=store_url)
    database = await open_database(store_url, owner=False)
    try:
        first = await open_installation_secret(database, settings, None)
        assert (tmp_path / "secret").read_text().strip() == first.text
        stored = await database.read(get, FINGERPRINT)
        assert stored == first.fingerprint
        assert (await open_installation_secret(database, settings, stored)).fingerprint == stored
    finally:
        await database.close()
