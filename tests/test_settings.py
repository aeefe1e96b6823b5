from pathlib import Path

import pytest

from shortener.settings import Settings, SettingsError, as_markdown, as_toml, load

ROOT = Path(__file__).parent.parent


def test_the_shipped_configuration_holds_every_setting_with_its_default() -> None:
    assert (ROOT / "config" / "shortener.toml").read_text() == as_toml(), "run `make config`"
    assert (ROOT / "docs" / "reference" / "settings.md").read_text() == as_markdown(), "run `make config`"


def test_the_shipped_configuration_changes_nothing() -> None:
    assert load({"SHORTENER_CONFIG": str(ROOT / "config" / "shortener.toml")}) == Settings()


def test_the_environment_wins_over_the_file_and_options_over_both(tmp_path: Path) -> None:
    config = tmp_path / "shortener.toml"
    config.write_text("batch_limit = 5\nhit_deadline = 1.5\nlink_ttl_days = 30\n")
    settings = load(
        {"SHORTENER_CONFIG": str(config), "SHORTENER_HIT_DEADLINE": "0.5", "SHORTENER_LINK_TTL_DAYS": "7"}, link_ttl_days=3
    )
    assert (settings.batch_limit, settings.hit_deadline, settings.link_ttl_days) == (5, 0.5, 3)


def test_a_folder_of_files_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "10-base.toml").write_text("batch_limit = 5\ncode_bits = 50\n")
    (tmp_path / "20-local.toml").write_text("batch_limit = 6\n")
    settings = load({"SHORTENER_CONFIG": str(tmp_path)})
    assert (settings.batch_limit, settings.code_bits) == (6, 50)


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    place = tmp_path / "secret"
    place.write_text("0123456789abcdefghijklmnopqrstuv\n")
    assert load({"SHORTENER_SECRET_FILE": str(place)}).secret == "0123456789abcdefghijklmnopqrstuv"


def test_lists_are_written_with_commas() -> None:
    settings = load({"SHORTENER_DELIVERY_SCHEDULE": "0.1,2,30", "SHORTENER_TRUSTED_PROXIES": "10.0.0.0/8, ::1"})
    assert settings.delivery_schedule == (0.1, 2.0, 30.0)
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "::1/128"]


def test_links_lead_to_the_port_that_answers() -> None:
    assert load({"SHORTENER_PORT": "9000"}).base_url == "http://127.0.0.1:9000"
    assert load({"SHORTENER_PORT": "9000", "SHORTENER_BASE_URL": "https://go.example/"}).base_url == "https://go.example"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("BASE_URL", "go.example", "must be http"),
        ("BASE_URL", "https://go.example/path", "must not have a path"),
        ("SECRET", "short", "too weak"),
        ("DELIVERY_SCHEDULE", "", "delivery_schedule"),
        ("DELIVERY_SCHEDULE", "1,-2", "from 0 to 30 days"),
        ("TRUSTED_PROXIES", "everybody", "trusted_proxies"),
        ("DATABASE_URL", "mysql://x", "wants sqlite"),
        ("WORKERS", "2", "need DATABASE_URL=postgresql"),
        ("SECRET_FILE", "/does/not/exist", "No such file"),
        ("CONFIG", "/does/not/exist.toml", "there is no file"),
    ],
)
def test_an_unusable_setting_is_named_with_its_reason(name: str, value: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        load({f"SHORTENER_{name}": value})


def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "shortener.toml"
    config.write_text("batch_limt = 5\n")
    with pytest.raises(SettingsError, match="batch_limt"):
        load({"SHORTENER_CONFIG": str(config)})
