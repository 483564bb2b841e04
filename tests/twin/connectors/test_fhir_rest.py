from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tests.twin.connectors.fhir_server import FhirServer
from tests.twin.connectors.local_tls import authority_with, private_pem
from twin.connectors.feed import Batch
from twin.connectors.fhir_auth import Client
from twin.connectors.fhir_http import Server
from twin.connectors.fhir_rest import FhirRest
from twin.errors import DataError


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority_with(folder, "server")
    (folder / "secret").write_text("s3cret:ü\n")
    return folder


@pytest.fixture
def server(certificates: Path) -> Iterator[FhirServer]:
    with FhirServer(resources=[observation(k) for k in range(8)]).running(certificates) as running:
        yield running


def observation(number: int, *, updated: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "meta": {"versionId": "1", "lastUpdated": updated or f"2024-03-01T10:{number:02d}:00.000+00:00"},
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": f"2024-03-01T09:{number:02d}:00Z",
        "valueQuantity": {"value": 60 + number, "system": "http://unitsofmeasure.org", "code": "/min"},
    } | more


def feed_of(server: FhirServer, certificates: Path, **options: Any) -> FhirRest:
    defaults: dict[str, Any] = {
        "name": "t",
        "url": f"{server.url}/fhir",
        "resources": ("Observation",),
        "ca_file": certificates / "ca.pem",
        "token_url": f"{server.url}/token",
        "client_id": "site",
        "client_secret_file": certificates / "secret",
        "every_s": 0.01,
        "first_wait_s": 0.01,
    }
    return FhirRest(**(defaults | options))


def values_until(batches: Iterator[Batch], count: int) -> tuple[list[float], str]:
    """(values of so many rows, position after them)."""
    values: list[float] = []
    position = ""
    for _ in range(200):
        batch = next(batches)
        values += list(batch.observations["value"])
        position = batch.position
        if len(values) >= count:
            return values, position
    raise AssertionError(f"only {len(values)} rows came")


def test_everything_comes_once_page_by_page_and_then_only_what_is_new(
    server: FhirServer, certificates: Path
) -> None:
    batches = feed_of(server, certificates).batches("")
    assert values_until(batches, 8)[0] == [60.0 + k for k in range(8)]
    server.resources.append(observation(8))
    assert values_until(batches, 1)[0] == [68.0]
    server.resources.append(observation(5, updated="2024-03-01T10:09:00Z", status="entered-in-error"))
    withdrawn = next(batch for batch in batches if len(batch.withdrawn))
    assert list(withdrawn.withdrawn["time"]) == ["2024-03-01T09:05:00Z"]
    batches.close()  # type: ignore[attr-defined]  # a generator
    form, authorization = server.token_requests[0]
    assert form == {"grant_type": "client_credentials", "scope": "system/*.read"}
    pair = base64.b64decode(authorization.removeprefix("Basic ")).decode()
    assert pair == "site:s3cret%3A%C3%BC" and len(server.tokens) == 1


def test_after_a_restart_it_goes_on_from_the_last_page_with_an_overlap(
    server: FhirServer, certificates: Path
) -> None:
    feed = feed_of(server, certificates, overlap_s=90.0)
    _, position = values_until(feed.batches(""), 3)
    assert json.loads(position) == {"since": {"Observation": "2024-03-01T10:02:00.000+00:00"}}
    again, _ = values_until(feed.batches(position), 7)
    assert again == [61.0 + k for k in range(7)]  # two of them again: within the overlap


def test_a_server_that_does_not_sort_loses_nothing(server: FhirServer, certificates: Path) -> None:
    server.is_sorted = False
    server.resources.reverse()
    feed = feed_of(server, certificates, overlap_s=0.0)
    _, position = values_until(feed.batches(""), 3)
    assert json.loads(position)["since"] == {}
    assert sorted(values_until(feed.batches(position), 8)[0]) == [60.0 + k for k in range(8)]


def test_a_resource_from_the_future_hides_nothing(server: FhirServer, certificates: Path) -> None:
    server.resources.append(observation(9, updated="2099-01-01T00:00:00Z"))
    batches = feed_of(server, certificates).batches("")
    _, position = values_until(batches, 9)
    assert json.loads(position)["since"]["Observation"].startswith("2024-03-01T12:00:00")
    server.resources.append(observation(10, updated="2024-03-01T12:00:01Z"))
    assert values_until(batches, 1)[0] == [70.0]


@pytest.mark.parametrize("fault", [429, 503, 500, "cut"])
def test_a_server_that_fails_between_pages_is_asked_again(
    server: FhirServer, certificates: Path, fault: int | str
) -> None:
    server.faults = {1: fault, 2: fault}
    assert values_until(feed_of(server, certificates).batches(""), 8)[0] == [60.0 + k for k in range(8)]


def test_a_token_that_has_expired_is_renewed_once(server: FhirServer, certificates: Path) -> None:
    batches = feed_of(server, certificates).batches("")
    values_until(batches, 3)
    server.tokens.append("another")  # the one that the feed holds is no longer good
    assert values_until(batches, 5)[0] == [63.0 + k for k in range(5)]
    server.faults = dict.fromkeys(range(len(server.searches), len(server.searches) + 5), 401)
    with pytest.raises(DataError, match="401"):
        values_until(batches, 1)


@pytest.mark.parametrize(
    ("fault", "text"), [(404, "404: check url"), (403, "403"), (302, "302"), (503, "3 times in a row")]
)
def test_a_server_that_refuses_is_a_clear_error(
    server: FhirServer, certificates: Path, fault: int, text: str
) -> None:
    server.faults = dict.fromkeys(range(10), fault)
    with pytest.raises(DataError, match=text):
        values_until(feed_of(server, certificates, attempts=3).batches(""), 8)


def test_a_page_that_leads_to_another_server_is_not_followed(server: FhirServer, certificates: Path) -> None:
    with FhirServer(is_open=True).running(certificates) as foreign:
        server.foreign = foreign.url
        with pytest.raises(DataError, match="another server"):
            values_until(feed_of(server, certificates).batches(""), 8)
        assert not foreign.searches


def test_a_certificate_of_nobody_known_is_refused(server: FhirServer, certificates: Path) -> None:
    with pytest.raises(DataError, match="cannot be reached"):
        values_until(feed_of(server, certificates, ca_file=None, attempts=2).batches(""), 1)
    assert not server.token_requests


def test_while_it_waits_it_yields_so_that_it_can_be_stopped(server: FhirServer, certificates: Path) -> None:
    server.faults = dict.fromkeys(range(10), 503)
    batches = feed_of(server, certificates, first_wait_s=60.0).batches("")
    assert next(batches).is_empty
    batches.close()  # type: ignore[attr-defined]  # a generator


def test_patients_are_named_by_their_identifier_also_those_who_came_later(
    server: FhirServer, certificates: Path
) -> None:
    person = {
        "resourceType": "Patient",
        "id": "p1",
        "meta": {"versionId": "1", "lastUpdated": "2024-03-01T08:00:00Z"},
        "identifier": [{"system": "urn:mrn", "value": "MRN-1"}],
    }
    server.resources.append(person)
    batches = feed_of(server, certificates, identifier="urn:mrn").batches("")  # Patient is not asked for
    rows = next(batch.observations for batch in batches if len(batch.observations))
    assert set(rows["patient"]) == {"MRN-1"}


def test_nothing_of_a_patient_or_a_search_is_logged(
    server: FhirServer, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="twinward")
    server.faults = dict.fromkeys(range(10), 500)
    feed = feed_of(server, certificates, attempts=2, search={"Observation": "patient=MILLER"})
    with pytest.raises(DataError) as error:
        values_until(feed.batches(""), 1)
    shown = str(error.value) + caplog.text
    assert "asked again" in shown
    assert not {word for word in ("MILLER", "s3cret", "token-0", "Bearer") if word in shown}


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_an_assertion_is_signed_as_smart_asks_for(tmp_path: Path, algorithm: str) -> None:
    key = (
        ec.generate_private_key(ec.SECP384R1())
        if algorithm == "ES384"
        else rsa.generate_private_key(65537, 2048)
    )
    path = tmp_path / "key.pem"
    path.write_bytes(
        private_pem(key)
        if isinstance(key, ec.EllipticCurvePrivateKey)
        else key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    client = Client(token_url="https://as/token", client_id="site", private_key_file=path, key_id="k1")
    form, headers = client.request(now_s=1000.0, jti="once")
    signed, _, signature = form["client_assertion"].rpartition(".")
    header, claims = (json.loads(_decoded(part)) for part in signed.split("."))
    assert header == {"alg": algorithm, "typ": "JWT", "kid": "k1"} and not headers
    assert claims == {
        "iss": "site",
        "sub": "site",
        "aud": "https://as/token",
        "jti": "once",
        "exp": 1240,
        "iat": 1000,
    }
    raw, public = _decoded(signature), key.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        pair = encode_dss_signature(int.from_bytes(raw[:48]), int.from_bytes(raw[48:]))
        public.verify(pair, signed.encode(), ec.ECDSA(hashes.SHA384()))
    else:
        public.verify(raw, signed.encode(), padding.PKCS1v15(), hashes.SHA384())


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "http://ehr.example/fhir"}, "https://"),
        ({"url": "https://user:pass@ehr.example/fhir"}, "password"),
        ({"token_url": "http://ehr.example/token"}, "https://"),
        ({"client_secret_file": None}, "private_key_file"),
        ({"proxy": "http://me:pass@proxy:3128"}, "password"),
        ({"resources": ("Claim",)}, "unknown resources"),
        ({"ca_file": Path("/nowhere.pem")}, "ca_file"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    certificates: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(DataError, match=text):
        next(feed_of(FhirServer(port=1), certificates, **options).batches(""))


def test_a_server_that_answers_a_byte_at_a_time_is_given_up() -> None:
    def drip(listener: socket.socket) -> None:
        while True:
            try:
                line, _ = listener.accept()
                line.recv(10_000)
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 150\r\n\r\n")
                for _ in range(150):
                    line.sendall(b" ")
                    time.sleep(0.02)
            except OSError:
                if listener.fileno() < 0:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}/fhir"
        server = Server(base=base, timeout_s=0.1, attempts=1)
        server.open()
        with pytest.raises(DataError, match="cannot be reached"):
            server.get(f"{base}/Observation")
        server.close()
