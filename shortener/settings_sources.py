"""This module reads the settings of a process from TOML and from the environment, and generates the documents about settings.

`load` reads TOML first: the file that `SHORTENER_CONFIG` names, or every `*.toml` of a folder in alphabetical order, or
`config/shortener.toml` if it exists. An environment variable `SHORTENER_<NAME>`, or the content of the file that
`SHORTENER_<NAME>_FILE` names, overrides the TOML value. A variable `SHORTENER_...` that names no setting is an error, unless
Kubernetes made it for a Service whose name begins with "shortener" (`service_link_variables`).

If settings are not usable, `load` raises `SettingsError`, whose text has one line for each error. A line about a value ends with
the source of the value: a variable, a file or an option of the command line.
"""
# Tested by tests/test_settings.py

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from shortener.settings import DEFAULT_BASE_URL, DEFAULT_CONFIG, PREFIX, Settings, SettingsError
from shortener.validation_texts import named_reasons

#: Kubernetes, and the links of Docker, set variables with such names for a service called, for example, `shortener-web`.
_SERVICE_LINK = re.compile(
    r"SHORTENER_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
#: The form of the value in a variable SHORTENER_..._PORT that Kubernetes sets, for example tcp://10.3.0.1:80.
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def service_link_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of variables that Kubernetes made for a Service. These variables are not settings, even if one has the name
    SHORTENER_PORT. With `enableServiceLinks: false` in the specification of the pod, Kubernetes does not make them."""
    return sorted(
        name
        for name, value in environ.items()
        if name.startswith(PREFIX) and (_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_ADDRESS.match(value)))
    )


def load(environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Return the settings of this process. They come from four sources: defaults, TOML, environment, `overrides`. Each source
    overrides the sources before it.

    `overrides` are options of the command line. None means that the option was not used. Raise SettingsError."""
    sources: dict[str, str] = {}
    values = _read_toml(environ, sources)
    options = {name: value for name, value in overrides.items() if value is not None}
    explicit = _read_environment(environ, sources) | options
    values |= explicit
    sources |= {name: "--" + name.replace("_", "-") for name in options}
    # config/shortener.toml contains every default. Therefore a BASE_URL in a file counts as not set if it is the default.
    has_base_url = "base_url" in explicit or values.get("base_url", DEFAULT_BASE_URL) != DEFAULT_BASE_URL
    follows_port = not has_base_url and "port" in values
    if follows_port:
        # If BASE_URL is not set, short links begin with 127.0.0.1 and must contain the port on which this process listens.
        values["base_url"] = f"http://127.0.0.1:{values['port']}"
    try:
        settings = Settings(**values)
    except ValidationError as error:
        # The default of BASE_URL contains the port. An invalid port therefore causes two errors, and only the error of the port
        # is reported.
        items = [item for item in error.errors() if not (follows_port and item["loc"] == ("base_url",))] or error.errors()
        raise SettingsError("\n".join(_describe(name, reason, sources) for name, reason in named_reasons(items))) from None
    if not has_base_url:
        settings.model_fields_set.discard("base_url")  # for `Settings.has_default_base_url`
    return settings


def _describe(name: str, reason: str, sources: Mapping[str, str]) -> str:
    """Return one line for an invalid setting, with its name, the reason, and the source of the value in brackets."""
    setting = name.partition(".")[0]
    if name and setting not in Settings.model_fields:
        text = f"{name}: is not a setting{_suggest(name, Settings.model_fields)}"
    else:
        text = f"{name}: {reason}" if name else reason
    return f"{text} ({sources[setting]})" if setting in sources else text


def _suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    import difflib  # difflib is imported here, because only errors need it

    # Compare the names without the prefix SHORTENER_. With the prefix, every two names are similar.
    nearest = difflib.get_close_matches(name.removeprefix(prefix), [one.removeprefix(prefix) for one in known], n=1)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else "; docs/reference/settings.md lists all settings"


def _read_toml(environ: Mapping[str, str], sources: dict[str, str]) -> dict[str, Any]:
    """Return the settings in TOML files. Store in `sources` from which file each setting comes."""
    named = environ.get(PREFIX + "CONFIG", "")
    place = Path(named) if named else DEFAULT_CONFIG
    try:
        if named and not place.exists():
            raise SettingsError(f"{PREFIX}CONFIG: there is no file or folder {place}")
        files = sorted(place.glob("*.toml")) if place.is_dir() else [place] if place.exists() else []
    except PermissionError:
        # For example, the current folder is /root, and the command runs as the user of the service, who may not open it.
        folder = place.absolute().parent
        remedy = f"Use another folder (`cd /`), or set {PREFIX}CONFIG" if not named else f"Correct {PREFIX}CONFIG"
        raise SettingsError(f"the folder {folder} may not be opened by the user of this process. {remedy}") from None
    values: dict[str, Any] = {}
    for file in files:
        try:
            found = tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise SettingsError(f"{file}: {error}") from None
        values |= found
        sources |= dict.fromkeys(found, str(file))
    return values


def _read_environment(environ: Mapping[str, str], sources: dict[str, str]) -> dict[str, Any]:
    """Return the settings in environment variables. Store in `sources` from which variable each setting comes."""
    links = service_link_variables(environ)
    environ = {name: value for name, value in environ.items() if name not in links}
    variables = {PREFIX + name.upper(): name for name in Settings.model_fields}
    known = {*variables, *(variable + "_FILE" for variable in variables), PREFIX + "CONFIG"}
    if unknown := sorted(variable for variable in environ if variable.startswith(PREFIX) and variable not in known):
        raise SettingsError("\n".join(f"{variable}: is not a setting{_suggest(variable, known, PREFIX)}" for variable in unknown))
    values: dict[str, Any] = {}
    for variable, name in variables.items():
        if variable + "_FILE" in environ:
            sources[name] = variable + "_FILE"
            try:
                values[name] = Path(environ[variable + "_FILE"]).read_text().strip()
            except (UnicodeDecodeError, OSError) as error:
                raise SettingsError(f"{variable}_FILE: {error}") from None
        elif variable in environ:
            sources[name] = variable
            values[name] = environ[variable]
    return values


def as_toml() -> str:
    """Return the text of `config/shortener.toml`: every setting with its help and its default."""
    lines = [
        "# All settings with their defaults. `make config` writes this file from shortener/settings.py.",
        "# SHORTENER_<NAME> in the environment, or the content of the file that SHORTENER_<NAME>_FILE names, overrides a value.",
    ]
    for name, field in Settings.model_fields.items():
        lines += ["", f"# {field.description}", f"{name} = {_toml_value(field.default)}"]
    return "\n".join(lines) + "\n"


def as_markdown() -> str:
    """Return the text of docs/reference/settings.md: a table of all settings."""
    lines = [
        "# Settings",
        "",
        "For operators. `make config` writes this page from `shortener/settings.py`. The service reads a setting from TOML:",
        "the file that `SHORTENER_CONFIG` names, or every `*.toml` of a folder in alphabetical order, or `config/shortener.toml`",
        "if it exists. The environment variable `SHORTENER_<NAME>`, or the content of the file that `SHORTENER_<NAME>_FILE` names",
        "(for secrets), overrides the TOML value. The service does not start if a variable `SHORTENER_...` names no setting.",
        "Variables that Kubernetes makes for a Service called `shortener` are ignored. `enableServiceLinks: false` in the pod",
        "removes them.",
        "",
        "| setting | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = _toml_value(field.default).replace('""', "(empty)")
        lines.append(f"| `{name.upper()}` | `{default}` | {field.description} |")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    return '"' + (value.get_secret_value() if isinstance(value, SecretStr) else str(value)) + '"'
