"""Pseudonyms are stable, follow from the secret and the use alone, and do not show what they stand for."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.errors import TrustError
from trust.pseudonym import Pseudonyms

SECRET = bytes(range(32))


@given(st.text(min_size=1).filter(str.strip))
def test_an_identifier_has_one_pseudonym_in_each_use(identifier: str) -> None:
    store, study = Pseudonyms(SECRET), Pseudonyms(SECRET, "study 7")
    assert store(identifier) == Pseudonyms(SECRET)(identifier) != study(identifier)
    assert Pseudonyms(SECRET[::-1])(identifier) != store(identifier)
    assert len(store(identifier)) == 20


def test_it_is_the_hmac_under_a_key_that_hkdf_derives() -> None:
    extracted = hmac.digest(bytes(32), SECRET, "sha256")  # RFC 5869, 2.2, without a salt
    key = hmac.new(extracted, b"twinward pseudonym store\x01", hashlib.sha256).digest()  # 2.3, one block
    expected = base64.b32encode(hmac.digest(key, b"4711", "sha256"))[:20].decode().lower()
    assert Pseudonyms(SECRET)("4711") == expected


def test_spaces_around_and_the_unicode_form_do_not_matter_and_case_does() -> None:
    names = Pseudonyms(SECRET)
    assert names(" M\u00fcller-1\n") == names("Mu\u0308ller-1")
    assert names("ab1") != names("AB1")


def test_a_short_secret_an_empty_use_and_an_empty_identifier_are_refused() -> None:
    for wrong in (
        lambda: Pseudonyms(b"short"),
        lambda: Pseudonyms(SECRET, ""),
        lambda: Pseudonyms(SECRET)(" "),
    ):
        with pytest.raises(TrustError, match="Expected"):
            wrong()
    assert "key" not in repr(Pseudonyms(SECRET))
