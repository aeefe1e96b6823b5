"""These tests check that client certificates are validated when they are saved, stored encrypted, and sent to the receiver."""

import ssl
from pathlib import Path

import httpx
import pytest

from shortener.container import Service
from shortener.delivery.client_certificate import check, tls_context
from shortener.delivery.guard import Guard
from shortener.delivery.http_exchange import OutgoingRequest
from shortener.delivery.sender import Sender
from shortener.storage import schema
from tests.delivery.receiver import receiver, respond
from tests.delivery.sending import PLENTY
from tests.factory import rows
from tests.servers import self_signed
from tests.servers import tls_context as server_context

TRACKERS = "/api/v1/trackers"


@pytest.fixture
def client_pem(tmp_path: Path) -> str:
    folder = tmp_path / "client"
    folder.mkdir()
    return self_signed(folder, "192.0.2.1").read_text()


async def test_a_client_certificate_is_sent_to_a_receiver_that_requires_one(
    certificate: Path, client_pem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = server_context(certificate)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(tmp_path / "client" / "server.pem")
    async with receiver(respond(200), server) as peer, Sender(Guard(allow_private=True), user_agent="test", limit=1) as sender:

        async def post(tls: ssl.SSLContext | None) -> tuple[int | None, str | None, bool]:
            result = await sender.send(OutgoingRequest("POST", peer.url(), {}, b"{}", tls), PLENTY)
            return result.status, result.error, result.is_local

        assert await post(tls_context(client_pem)) == (200, None, False)
        # The receiver closes the connection after the handshake. The client may detect the closed connection before the TLS alert.
        assert await post(None) in [(None, "tls_error", False), (None, "connection_reset", False)]


def test_a_client_certificate_without_its_own_private_key_is_rejected(client_pem: str, certificate: Path) -> None:
    key, _, rest = client_pem.partition("-----BEGIN CERTIFICATE")
    own = f"-----BEGIN CERTIFICATE{rest}"
    other = certificate.read_text().partition("-----BEGIN CERTIFICATE")[0]
    assert check(own + key) == own + key
    for text in ("", "x", key, own, other + own, key + "-----BEGIN CERTIFICATE-----\nxxxx\n-----END CERTIFICATE-----\n"):
        with pytest.raises(ValueError, match=r"must|belong"):
            check(text)


async def test_a_client_certificate_is_stored_encrypted_never_returned_and_removed_if_the_host_changes(
    service: Service, client: httpx.AsyncClient, client_pem: str
) -> None:
    body = {"url": "https://t.example/a", "events": ["click"], "client_certificate": client_pem}
    created = await client.post(TRACKERS, json=body)
    assert (created.status_code, created.json()["client_certificate_set"]) == (201, True)
    assert "BEGIN" not in created.text
    (row,) = await rows(service.database, schema.trackers)
    assert "BEGIN" not in str(row)
    _, target = await service.trackers.load(row.id)
    assert target.tls is not None
    path = f"{TRACKERS}/{row.id}"
    same = await client.patch(path, json={"url": "https://t.example/b"})
    assert same.json()["client_certificate_set"] is True
    moved = await client.patch(path, json={"url": "https://other.example/"})
    assert moved.json()["client_certificate_set"] is False
    again = await client.patch(path, json={"client_certificate": client_pem})
    removed = await client.patch(path, json={"client_certificate": None})
    assert (again.json()["client_certificate_set"], removed.json()["client_certificate_set"]) == (True, False)
    refused = await client.post(TRACKERS, json=body | {"client_certificate": "x"})
    assert [detail["field"] for detail in refused.json()["details"]] == ["client_certificate"]
