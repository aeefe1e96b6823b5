"""The command `shortener doctor`, which checks the installation.

A problem is an error if it prevents the start of `serve`, or if recipients already notice it, for example an expired certificate.
Other problems are warnings. Each line that is not `ok` has a remedy. The exit code is 1 if there is an error, otherwise 0. The
checks of the database and of Redis are in doctor_store.py. The checks of gateways are in doctor_gateways.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import socket
import sqlite3
import ssl
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from shortener.cli.base_url import unreachable_links
from shortener.cli.common import async_command, json_option, load_settings, print_result
from shortener.cli.doctor_findings import Finding
from shortener.plurals import counted
from shortener.settings import DEFAULT_BASE_URL, is_loopback
from shortener.settings_sources import service_link_variables

if TYPE_CHECKING:
    from shortener.settings import Settings

MIN_FREE_BYTES = 1 << 30
MIN_FREE_SHARE = 0.1
MIN_CERTIFICATE_DAYS = 14
MAX_WAL_BYTES = 1 << 30
NETWORK_TIMEOUT_SECONDS = 3.0
#: Older versions of SQLite can corrupt the WAL of a database if two connections make a checkpoint at the same time.
MIN_SQLITE = (3, 51, 3)


@click.command()
@json_option
@async_command
async def doctor(as_json: bool) -> None:
    """Check the settings, files, database, Redis, BASE_URL, own domains, gateways and queues, and print what to do. The command
    also works while a server runs.

    The exit code is 1 if there is an error: `serve` would not start, or recipients already notice the problem.
    """
    from shortener.cli import doctor_gateways, doctor_store
    from shortener.secret import secret_file
    from shortener.storage.installation import require_installation
    from shortener.storage.open import sqlite_path

    settings = load_settings()
    file = sqlite_path(settings.store_url)
    if file is not None and not file.exists() and not secret_file(settings.data_dir).exists():
        await require_installation(settings)  # The database file does not exist, so this call raises NoInstallation.
    findings = [*_check_settings(settings), *_check_files(settings, file), *_check_disk(settings, file)]
    findings += await doctor_store.check_database(settings)
    findings += await doctor_store.check_redis(settings)
    findings += await doctor_gateways.check_gateway_addresses(settings)
    domains = await doctor_store.read_domains(settings)
    findings += await asyncio.to_thread(lambda: [*check_base_url(settings), *check_domains(domains)])

    def print_text() -> None:
        for one in findings:
            click.echo(f"{one.level:8}{one.check:20}{one.text}")
            if one.remedy:
                click.echo(f"{'':28}-> {one.remedy}")
        counts = {level: sum(one.level == level for one in findings) for level in ("ok", "warning", "error")}
        click.echo(f"\n{counts['ok']} ok, {counted(counts['warning'], 'warning')}, {counted(counts['error'], 'error')}")

    print_result([asdict(one) for one in findings], as_json, print_text)
    if any(one.level == "error" for one in findings):
        raise click.exceptions.Exit(1)


def _check_settings(settings: Settings) -> Iterator[Finding]:
    from shortener.clicks.networks import NetworkFileError, open_networks

    yield Finding("settings", "ok", "all settings are usable")
    if problem := unreachable_links(settings):
        yield Finding("links", "error", problem, "set SHORTENER_BASE_URL to the address that phones use")
    try:
        open_networks(settings.network_files)
    except NetworkFileError as error:
        yield Finding("network_files", "error", str(error), "correct NETWORK_FILES, or restore the file")
    if settings.otlp_endpoint and importlib.util.find_spec("opentelemetry") is None:
        from shortener.tracing import HOW_TO_INSTALL

        text = "OTLP_ENDPOINT is set, but the packages for traces are not installed"
        yield Finding("traces", "error", text, f"{HOW_TO_INSTALL}, or unset OTLP_ENDPOINT")
    if links := service_link_variables():
        names = ", ".join(links[:3]) + (", ..." if len(links) > 3 else "")
        yield Finding("service_links", "warning", f"{names} look like settings", "set enableServiceLinks: false in the pod")
    if settings.allow_private_targets:
        yield Finding(
            "private_targets",
            "warning",
            "whoever adds a tracker can make the service send requests to private addresses of your network",
            "remove ALLOW_PRIVATE_TARGETS; it is for development only",
        )
    if settings.base_url.startswith("https://") and not settings.trusted_proxies:
        yield Finding(
            "proxies",
            "warning",
            "BASE_URL is https://, so requests arrive through a reverse proxy, but TRUSTED_PROXIES is empty: every click has the "
            "IP address of the proxy",
            "set TRUSTED_PROXIES to the address of the proxy, for example 127.0.0.1",
        )
    if not settings.is_postgresql and sqlite3.sqlite_version_info < MIN_SQLITE:
        yield Finding(
            "sqlite",
            "warning",
            f"SQLite {sqlite3.sqlite_version}: versions before 3.51.3 can corrupt a WAL when two connections checkpoint at once. "
            "This service checkpoints from one connection only",
            "do not open the file with another program that writes",
        )


def _check_files(settings: Settings, database: Path | None) -> Iterator[Finding]:
    """Check that only the owner can use the folder and the files of the installation."""
    from shortener.secret import secret_file

    private = [settings.data_dir, secret_file(settings.data_dir)]
    if database is not None:
        private += [database.with_name(database.name + suffix) for suffix in ("", "-wal", "-shm")]
    open_to_others = []
    for path in private:
        with contextlib.suppress(OSError):
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                open_to_others.append(path)
    if open_to_others:
        names = " ".join(map(str, open_to_others))
        yield Finding("permissions", "warning", f"other users can use {names}", f"run: chmod go= {names}")
    else:
        yield Finding("permissions", "ok", f"only the owner can use {settings.data_dir.absolute()}")


def _check_disk(settings: Settings, database: Path | None) -> Iterator[Finding]:
    folder = database.parent if database is not None else settings.data_dir
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return
    text = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.1f} GB are free in {folder}"
    if usage.free < MIN_FREE_BYTES or usage.free < MIN_FREE_SHARE * usage.total:
        yield Finding("disk", "warning", text, "free space; without it the service cannot store clicks and messages")
    else:
        yield Finding("disk", "ok", text)
    wal = database.with_name(database.name + "-wal") if database is not None else None
    if wal is not None and wal.exists() and wal.stat().st_size > MAX_WAL_BYTES:
        text = f"the WAL has {wal.stat().st_size / 1e9:.1f} GB"
        yield Finding("wal", "warning", text, "end long exports and backups, because they prevent SQLite from reusing the WAL")


def check_base_url(settings: Settings) -> Iterator[Finding]:
    """Check BASE_URL, the first part of short links. Check whether DNS resolves its host name, and when its certificate
    expires."""
    parts = urlsplit(settings.base_url)
    host = parts.hostname or ""
    if settings.base_url == DEFAULT_BASE_URL or is_loopback(host):
        if unreachable_links(settings) is None:
            text = f"short links begin with {settings.base_url}, which only this machine can open"
            yield Finding("base_url", "warning", text, "for production, set SHORTENER_BASE_URL to your https:// address")
        if parts.scheme != "https":
            return
    yield from _check_link_host(settings.base_url)


def check_domains(urls: Iterable[str]) -> Iterator[Finding]:
    """Check the domains of the applications with the checks of `check_base_url`. `urls` contains the scheme and the host of each
    domain."""
    for url in urls:
        yield from _check_link_host(url)


def _check_link_host(url: str) -> Iterator[Finding]:
    """Check the host of the short links that begin with `url`: whether DNS resolves it, and when its certificate expires."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        yield Finding("dns", "warning", f"{host} has no address here: {reason}", "create an A or AAAA record for this name")
        return
    yield Finding("dns", "ok", f"{host} has the address {', '.join(addresses)}")
    if parts.scheme == "http":
        text = f"short links begin with http://{host}: browsers show a warning. "
        text += "If a proxy redirects to https://, each click needs one more redirect"
        yield Finding("base_url", "warning", text, "put a reverse proxy with TLS in front, and use an https:// address")
        return
    yield _check_certificate(host, port)


def _check_certificate(host: str, port: int) -> Finding:
    """Connect to a host of short links, and check the certificate that browsers get from it."""
    from cryptography import x509

    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    try:
        encoded = _peer_certificate(host, port, trusting)
        expires = x509.load_der_x509_certificate(encoded).not_valid_after_utc
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return Finding("certificate", "warning", f"no TLS connection to {host}, port {port}: {reason}", "check the reverse proxy")
    days = (expires - datetime.now(UTC)).days
    remedy = "check that the reverse proxy can renew the certificate: ports 80 and 443 must be reachable"
    if days < 0:
        return Finding("certificate", "error", f"the certificate of {host} expired at {expires:%Y-%m-%d %H:%M} UTC", remedy)
    try:
        _peer_certificate(host, port, ssl.create_default_context())
    except ssl.SSLCertVerificationError as error:
        text = f"browsers do not trust the certificate of {host}: {error.verify_message}"
        return Finding("certificate", "warning", text, "use a certificate of a public authority; Caddy gets one automatically")
    except OSError:
        pass
    text = f"the certificate of {host} is valid for {counted(days, 'more day')}"
    return Finding("certificate", "warning", text, remedy) if days < MIN_CERTIFICATE_DAYS else Finding("certificate", "ok", text)


def _peer_certificate(host: str, port: int, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection((host, port), NETWORK_TIMEOUT_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""
