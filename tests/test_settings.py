from pathlib import Path

import pytest

from shortener.settings import DEFAULT_BASE_URL, Settings, SettingsError
from shortener.settings_sources import as_markdown, as_toml, load, service_link_variables

ROOT = Path(__file__).parent.parent


def test_the_configuration_file_and_the_settings_page_match_the_code() -> None:
    assert (ROOT / "config" / "shortener.toml").read_text() == as_toml(), "run `make config`"
    assert (ROOT / "docs" / "reference" / "settings.md").read_text() == as_markdown(), "run `make config`"


def test_the_supplied_configuration_file_contains_the_default_of_each_setting() -> None:
    assert load({"SHORTENER_CONFIG": str(ROOT / "config" / "shortener.toml")}) == Settings()


def test_environment_variables_override_the_configuration_file_and_command_options_override_both(tmp_path: Path) -> None:
    config = tmp_path / "shortener.toml"
    config.write_text("batch_limit = 5\nhit_deadline = 1.5\nlink_ttl_days = 30\n")
    settings = load(
        {"SHORTENER_CONFIG": str(config), "SHORTENER_HIT_DEADLINE": "0.5", "SHORTENER_LINK_TTL_DAYS": "7"}, link_ttl_days=3
    )
    assert (settings.batch_limit, settings.hit_deadline, settings.link_ttl_days) == (5, 0.5, 3)


def test_configuration_files_of_a_folder_are_read_in_alphabetical_order(tmp_path: Path) -> None:
    (tmp_path / "10-base.toml").write_text("batch_limit = 5\ncode_bits = 50\n")
    (tmp_path / "20-local.toml").write_text("batch_limit = 6\n")
    settings = load({"SHORTENER_CONFIG": str(tmp_path)})
    assert (settings.batch_limit, settings.code_bits) == (6, 50)


def test_a_secret_setting_can_be_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("0123456789abcdefghijklmnopqrstuv\n")
    assert load({"SHORTENER_SECRET_FILE": str(path)}).secret.get_secret_value() == "0123456789abcdefghijklmnopqrstuv"


def test_a_setting_with_several_values_is_a_list_separated_by_commas() -> None:
    settings = load({"SHORTENER_DELIVERY_SCHEDULE": "0.1,2,30", "SHORTENER_TRUSTED_PROXIES": "10.0.0.0/8, ::1"})
    assert settings.delivery_schedule == (0.1, 2.0, 30.0)
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "::1/128"]


def test_the_default_base_url_has_the_port_of_the_server() -> None:
    assert load({"SHORTENER_PORT": "9000"}).base_url == "http://127.0.0.1:9000"
    assert load({"SHORTENER_PORT": "9000", "SHORTENER_BASE_URL": "https://go.example/"}).base_url == "https://go.example"


def test_an_invalid_port_is_reported_without_an_error_of_the_base_url_that_follows_from_it() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"SHORTENER_PORT": "abc"})
    assert str(caught.value).startswith("port: ")
    assert "base_url" not in str(caught.value)
    with pytest.raises(SettingsError, match="base_url: must be http"):
        load({"SHORTENER_PORT": "9000", "SHORTENER_BASE_URL": "go.example"})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("BASE_URL", "go.example", "must be http"),
        ("BASE_URL", "https://go.example/a b", "must have a path of letters"),
        ("SECRET", "short", "too weak"),
        ("PORT", "abc", r"port: must be an integer \(SHORTENER_PORT\)$"),
        ("PORT", "70000", r"port: must be at most 65535 \(SHORTENER_PORT\)$"),
        ("PORTAL", "perhaps", r"portal: must be true or false \(SHORTENER_PORTAL\)$"),
        ("IP_PRIVACY", "x", r"ip_privacy: must be 'full', 'short' or 'none' \(SHORTENER_IP_PRIVACY\)$"),
        ("DELIVERY_SCHEDULE", "", "delivery_schedule: must be delays in seconds, separated by commas"),
        ("DELIVERY_SCHEDULE", "1,-2", "from 0 to 2592000"),
        (
            "TRUSTED_PROXIES",
            "everybody",
            r"^trusted_proxies.0: must be an IP network such as .* \(SHORTENER_TRUSTED_PROXIES\)$",
        ),
        ("DATABASE_URL", "mysql://x", "must be sqlite"),
        ("REDIS_URL", "http://x", "must begin with one of"),
        ("BASE_URL", "https://go.example:x", "not a valid URL"),
        ("WORKERS", "2", "^WORKERS above 1 requires DATABASE_URL=postgresql"),
        ("SECRET_FILE", "/does/not/exist", "No such file"),
        ("CONFIG", "/does/not/exist.toml", "there is no file"),
    ],
)
def test_the_error_for_an_invalid_setting_contains_its_name_and_the_reason(name: str, value: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        load({f"SHORTENER_{name}": value})
    assert name.lower() in str(caught.value).lower()


def test_an_unknown_setting_in_the_configuration_file_is_rejected(tmp_path: Path) -> None:
    config = tmp_path / "shortener.toml"
    config.write_text("batch_limt = 5\n")
    with pytest.raises(SettingsError, match=r"batch_limt: is not a setting; did you mean batch_limit\?"):
        load({"SHORTENER_CONFIG": str(config)})


@pytest.mark.parametrize("variables", [{}, {"SHORTENER_CONFIG": "config/shortener.toml"}])
def test_a_folder_that_the_user_may_not_open_is_named(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> bool:
        # The error is simulated, because the tests may run as root, and root may open every folder.
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(SettingsError, match=f"^the folder {tmp_path}/config may not be opened .* SHORTENER_CONFIG$"):
        load(variables)


def test_an_error_names_the_source_of_the_value_that_overrides_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("port = 1\nlink_ttl_days = 0\nbatch_limt = 5\n")
    (tmp_path / "b.toml").write_text('port = "x"\ncode_bits = 1\n')
    (tmp_path / "url").write_text("mysql://x")
    environ = {
        "SHORTENER_CONFIG": str(tmp_path),
        "SHORTENER_CODE_BITS": "2",
        "SHORTENER_DATABASE_URL_FILE": str(tmp_path / "url"),
        "SHORTENER_HOST": "a",
    }
    with pytest.raises(SettingsError) as caught:
        load(environ, workers=0)
    lines = {line.partition(":")[0]: line.rpartition(" (")[2] for line in str(caught.value).splitlines()}
    assert lines == {
        "port": f"{tmp_path}/b.toml)",
        "link_ttl_days": f"{tmp_path}/a.toml)",
        "batch_limt": f"{tmp_path}/a.toml)",
        "code_bits": "SHORTENER_CODE_BITS)",
        "database_url": "SHORTENER_DATABASE_URL_FILE)",
        "workers": "--workers)",
    }


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("SHORTENER_BATCH_LIMT", "did you mean SHORTENER_BATCH_LIMIT"),
        ("SHORTENER_SECRET_FIEL", "did you mean SHORTENER_SECRET_FILE"),
        ("SHORTENER_XYZ", "lists all settings"),
    ],
)
def test_an_unknown_environment_variable_is_rejected_and_the_nearest_setting_is_suggested(variable: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable}: is not a setting; .*{hint}"):
        load({variable: "5"})


def test_environment_variables_without_the_prefix_shortener_are_ignored() -> None:
    assert load({"PATH": "/bin", "SHORTENERX": "1"}) == Settings()


def test_variables_that_kubernetes_makes_for_a_service_called_shortener_are_ignored_and_can_be_listed() -> None:
    links = {
        "SHORTENER_PORT": "tcp://10.3.0.1:80",
        "SHORTENER_PORT_80_TCP": "tcp://10.3.0.1:80",
        "SHORTENER_PORT_80_TCP_ADDR": "10.3.0.1",
        "SHORTENER_PORT_80_TCP_PORT": "80",
        "SHORTENER_PORT_80_TCP_PROTO": "tcp",
        "SHORTENER_SERVICE_HOST": "10.3.0.1",
        "SHORTENER_SERVICE_PORT": "80",
        "SHORTENER_SERVICE_PORT_HTTP": "80",
        "SHORTENER_WEB_SERVICE_HOST": "10.3.0.1",
        "SHORTENER_WEB_PORT": "tcp://10.3.0.1:80",
    }
    assert load(links | {"SHORTENER_BATCH_LIMIT": "7"}) == Settings(batch_limit=7)
    assert service_link_variables(links | {"SHORTENER_HOST": "0.0.0.0", "OTHER_PORT": "tcp://x:1"}) == sorted(links)
    assert load({"SHORTENER_PORT": "9000"}).port == 9000
    with pytest.raises(SettingsError, match="SHORTENER_SERVICE_HSOT"):
        load({"SHORTENER_SERVICE_HSOT": "10.3.0.1"})


def test_a_base_url_that_is_set_to_its_default_does_not_follow_the_port() -> None:
    settings = load({"SHORTENER_BASE_URL": DEFAULT_BASE_URL, "SHORTENER_PORT": "9000"})
    assert (settings.base_url, settings.has_default_base_url) == (DEFAULT_BASE_URL, False)
    settings = load({"SHORTENER_PORT": "9000"})
    assert (settings.base_url, settings.has_default_base_url) == ("http://127.0.0.1:9000", True)


@pytest.mark.parametrize("value", ["short", "a" * 40, "0123456789abcdefghijklmnop qrstuv", "0123456789abcdefghijklmnopqrstuvä"])
def test_an_initial_api_key_must_be_random_and_usable_in_a_header(value: str) -> None:
    with pytest.raises(SettingsError, match=r"initial_api_key: (is too weak|must contain only ASCII)"):
        load({"SHORTENER_INITIAL_API_KEY": value})


def test_the_text_form_of_the_settings_contains_no_secret() -> None:
    settings = load(
        {
            "SHORTENER_SECRET": "0123456789abcdefghijklmnopqrstuv",
            "SHORTENER_DATABASE_URL": "postgresql://me:hunter2@db/x",
            "SHORTENER_REDIS_URL": "redis://:hunter2@cache/0",
        }
    )
    assert "hunter2" not in repr(settings)
    assert "0123456789abcdef" not in repr(settings)
