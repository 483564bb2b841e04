"""Signatures: what holds, and that nothing else does."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from trust.errors import TrustError
from trust.signing import Context, Signer, Verifier, key_id, sign_plan, verify, verify_plan

SIGNER = Signer.generate()
KEYS = {SIGNER.key_id: SIGNER.public_hex}
PLAN = '{"rounds":30}'


def test_a_signed_plan_holds_and_names_its_key() -> None:
    assert verify_plan(PLAN, sign_plan(PLAN, SIGNER), KEYS) == SIGNER.key_id


@given(st.integers(0, len(PLAN) - 1), st.integers(0, 6))
def test_a_plan_with_any_bit_changed_does_not_hold(place: int, bit: int) -> None:
    changed = PLAN[:place] + chr(ord(PLAN[place]) ^ 1 << bit) + PLAN[place + 1 :]
    with pytest.raises(TrustError, match="does not hold"):
        verify_plan(changed, sign_plan(PLAN, SIGNER), KEYS)


@given(st.integers(0, 63), st.integers(0, 7))
def test_a_signature_with_any_bit_changed_does_not_hold(place: int, bit: int) -> None:
    signer, _, text = sign_plan(PLAN, SIGNER).partition(":")
    raw = bytearray(base64.b64decode(text))
    raw[place] ^= 1 << bit
    with pytest.raises(TrustError, match="does not hold"):
        verify_plan(PLAN, f"{signer}:{base64.b64encode(raw).decode()}", KEYS)


@pytest.mark.parametrize(("signed", "asked"), [("plan", "head"), ("head", "model"), ("model", "plan")])
def test_a_signature_for_one_use_does_not_hold_for_another(signed: Context, asked: Context) -> None:
    with pytest.raises(TrustError, match="does not hold"):
        verify(asked, b"the same bytes", SIGNER.sign(signed, b"the same bytes"), KEYS)


def test_a_key_that_is_not_trusted_is_refused_even_under_a_trusted_keys_id() -> None:
    other = Signer.generate()
    with pytest.raises(TrustError, match="trusted keys"):
        verify_plan(PLAN, sign_plan(PLAN, other), KEYS)
    dressed_up = SIGNER.key_id + sign_plan(PLAN, other)[16:]
    with pytest.raises(TrustError, match="does not hold"):
        verify_plan(PLAN, dressed_up, KEYS)
    with pytest.raises(TrustError, match="trusted keys"):
        verify_plan(PLAN, sign_plan(PLAN, SIGNER), {})
    with pytest.raises(TrustError, match="Expected a signature of key"):
        Verifier(other.public_hex).verify("plan", PLAN.encode(), sign_plan(PLAN, SIGNER))


@pytest.mark.parametrize(
    "signature", ["", ":", "abc", "0" * 16 + ":", "0" * 16 + ":!!!!", "0" * 16 + ":AAAA"]
)
def test_a_malformed_signature_is_refused(signature: str) -> None:
    with pytest.raises(TrustError, match="missing or malformed"):
        verify_plan(PLAN, signature, KEYS)


def test_the_signature_is_plain_ed25519_over_context_zero_and_bytes() -> None:
    raw = base64.b64decode(sign_plan(PLAN, SIGNER).partition(":")[2])
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(SIGNER.public_hex))
    public.verify(raw, b"twinward plan v1\0" + PLAN.encode())


def test_a_key_comes_back_from_its_file_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    SIGNER.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Signer.load(path).public_hex == SIGNER.public_hex
    with pytest.raises(TrustError, match="not overwritten"):
        Signer.generate().save(path)
    assert Signer.load(path).public_hex == SIGNER.public_hex
    path.chmod(0o640)
    with pytest.raises(TrustError, match="chmod 600"):
        Signer.load(path)


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    with pytest.raises(TrustError, match="no file"):
        Signer.load(path)
    path.touch(mode=0o600)
    with pytest.raises(TrustError, match="32 bytes"):
        Signer.load(path)
    for text in ("", "zz", "00" * 31, "00" * 33):
        with pytest.raises(TrustError):
            Verifier(text)


def test_texts_of_a_signer_do_not_show_its_key() -> None:
    raw = bytes(range(32))
    signer = Signer(Ed25519PrivateKey.from_private_bytes(raw))
    assert raw.hex() not in f"{signer!r} {signer} {vars(signer)}"
    assert signer.key_id == key_id(signer.public_hex)
