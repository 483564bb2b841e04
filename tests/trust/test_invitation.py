"""Invitations: one line, read back whole or refused with a reason; the secret does not show."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.errors import TrustError
from trust.invitation import Invitation, new_secret, secret_hash, split_address

SECRET = new_secret()
FIELDS: dict[str, Any] = {
    "address": "twinward.example.org:7444",
    "fingerprint": "ab" * 32,
    "site": "st-anna",
    "role": "site",
    "secret": SECRET,
    "expires": 1_800_000_000,
}
INVITATION = Invitation(**FIELDS)


def token_of(parts: object) -> str:
    """A token with a right checksum around any parts."""
    body = base64.urlsafe_b64encode(json.dumps(parts).encode()).rstrip(b"=").decode()
    return f"twinward1.{body}.{hashlib.sha256(body.encode()).hexdigest()[:8]}"


def test_an_invitation_is_one_line_and_comes_back_whole() -> None:
    assert "\n" not in INVITATION.token and " " not in INVITATION.token
    assert Invitation.parse(INVITATION.token) == INVITATION


def test_line_breaks_and_spaces_of_a_mail_program_do_no_harm() -> None:
    token = INVITATION.token
    assert Invitation.parse(f"  {token[:40]}\r\n  {token[40:90]}\n{token[90:]}\n") == INVITATION


@given(st.integers(0, len(INVITATION.token) - 1), st.sampled_from("abcXYZ019-_."))
def test_any_single_letter_changed_is_noticed(place: int, letter: str) -> None:
    token = INVITATION.token
    if token[place] == letter:
        return
    with pytest.raises(TrustError):
        Invitation.parse(token[:place] + letter + token[place + 1 :])


@given(st.integers(0, len(INVITATION.token) - 1))
def test_a_line_that_was_cut_anywhere_is_noticed(length: int) -> None:
    with pytest.raises(TrustError):
        Invitation.parse(INVITATION.token[:length])


@given(st.text(max_size=300))
def test_any_other_text_is_refused_and_nothing_else_goes_wrong(text: str) -> None:
    with pytest.raises(TrustError):
        Invitation.parse(text)
    with pytest.raises(TrustError):
        Invitation.parse(f"twinward1.{text}")


def test_a_later_version_is_told_apart_from_a_slip() -> None:
    with pytest.raises(TrustError, match="version"):
        Invitation.parse(INVITATION.token.replace("twinward1", "twinward2"))
    with pytest.raises(TrustError, match="checksum"):
        Invitation.parse(INVITATION.token[:-1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", "nowhere"),
        ("address", "host:0"),
        ("address", "host:70000"),
        ("address", "user@host:1"),
        ("fingerprint", "ab" * 31),
        ("fingerprint", "AB" * 32),
        ("site", "St Anna"),
        ("role", "operator"),
        ("role", "coordinator"),
        ("role", "root"),
        ("secret", "short"),
        # A name of its own: workers must agree on the names of tests, and the secret is drawn anew in each.
        pytest.param("secret", SECRET + "=", id="secret-padded"),
        ("expires", "soon"),
        ("expires", True),
        ("expires", 1.5),
        ("site", None),
    ],
)
def test_a_field_that_is_not_allowed_is_refused_also_under_a_right_checksum(
    field: str, value: object
) -> None:
    fields = FIELDS | {field: value}
    with pytest.raises(TrustError):
        Invitation.parse(token_of(list(fields.values())))


def test_neither_more_nor_fewer_fields_are_taken() -> None:
    parts = list(FIELDS.values())
    assert Invitation.parse(token_of(parts)) == INVITATION
    for wrong in (parts[:-1], [*parts, "more"], {"a": 1}, None, "text", []):
        with pytest.raises(TrustError):
            Invitation.parse(token_of(wrong))


def test_the_secret_shows_neither_in_texts_nor_in_what_the_coordinator_keeps() -> None:
    assert SECRET not in f"{INVITATION!r} {INVITATION}"
    assert SECRET not in secret_hash(SECRET)
    assert len({new_secret() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("address", "parts"),
    [("host:1", ("host", 1)), ("10.0.0.7:65535", ("10.0.0.7", 65535)), ("[::1]:7444", ("::1", 7444))],
)
def test_addresses_have_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts
