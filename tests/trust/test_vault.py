"""The vault gives the data key to who holds its lock, and to nobody else."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from trust.errors import TrustError
from trust.vault import KeyFile, Kms, Lock, Passphrase, Vault, how_locked

PHRASE = "correct horse battery staple"
WRAPPER = """
import sys
data = sys.stdin.buffer.read()
sys.stdout.buffer.write(bytes(255 - b for b in data))
"""


def kms(folder: Path, script: str = WRAPPER) -> Kms:
    program = folder / "kms.py"
    program.write_text(script)
    return Kms(unwrap_command=f"{sys.executable} '{program}'", wrap_command=f"{sys.executable} '{program}'")


def lock_of(kind: str, folder: Path) -> Lock:
    if kind == "passphrase":
        return Passphrase(text=PHRASE)
    return KeyFile.create(folder / "site.key") if kind == "key-file" else kms(folder)


@pytest.mark.parametrize("kind", ["passphrase", "key-file", "kms"])
def test_a_lock_opens_its_vault_and_the_key_is_not_in_the_file(kind: str, tmp_path: Path) -> None:
    lock = lock_of(kind, tmp_path)
    made = Vault.create(tmp_path / "vault.json", lock)
    opened = Vault.open(tmp_path / "vault.json", lock)
    assert opened.key == made.key
    assert len(made.key) == 32
    assert how_locked(tmp_path / "vault.json") == kind
    assert stat.S_IMODE((tmp_path / "vault.json").stat().st_mode) == 0o600
    text = (tmp_path / "vault.json").read_bytes()
    assert made.key.hex().encode() not in text
    assert made.key not in text
    assert str(made.key) not in repr(made) + repr(lock)
    with pytest.raises(TrustError, match="not overwritten"):
        Vault.create(tmp_path / "vault.json", lock)


def test_a_wrong_lock_is_a_clear_error_without_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "vault.json"
    Vault.create(path, Passphrase(text=PHRASE))
    with pytest.raises(TrustError, match="does not open") as raised:
        Vault.open(path, Passphrase(text=PHRASE + "!"))
    assert PHRASE not in str(raised.value)
    with pytest.raises(TrustError, match="passphrase"):
        Vault.open(path, KeyFile.create(tmp_path / "one.key"))
    with pytest.raises(TrustError, match="at least 12"):
        Vault.create(tmp_path / "other.json", Passphrase(text="short"))
    sealed = tmp_path / "sealed.json"
    Vault.create(sealed, KeyFile(path=tmp_path / "one.key"))
    with pytest.raises(TrustError, match="does not open"):
        Vault.open(sealed, KeyFile.create(tmp_path / "two.key"))
    (tmp_path / "one.key").chmod(0o644)
    with pytest.raises(TrustError, match="owner only"):
        Vault.open(sealed, KeyFile(path=tmp_path / "one.key"))


def test_a_passphrase_is_the_same_however_its_accents_are_typed(tmp_path: Path) -> None:
    made = Vault.create(tmp_path / "vault.json", Passphrase(text="caf\u00e9 caf\u00e9 caf\u00e9"))
    assert (
        Vault.open(tmp_path / "vault.json", Passphrase(text="cafe\u0301 cafe\u0301 cafe\u0301")).key
        == made.key
    )


def test_every_altered_field_is_noticed(tmp_path: Path) -> None:
    path, lock = tmp_path / "vault.json", KeyFile.create(tmp_path / "site.key")
    Vault.create(path, lock)
    whole = json.loads(path.read_text())
    for name, value in whole["keys"][0].items():
        for other in (
            2 if isinstance(value, int) else value[:-5] + ("A" if value[-5] != "A" else "B") + value[-4:],
            None,
        ):
            envelope = {**whole["keys"][0], name: other}
            path.write_text(json.dumps({**whole, "keys": [envelope]}))
            with pytest.raises(TrustError):
                Vault.open(path, lock)
    for broken in ("", "[]", "{}", '{"keys": [1]}', json.dumps({**whole, "format": "twinward-vault-9"})):
        path.write_text(broken)
        with pytest.raises(TrustError, match="vault"):
            Vault.open(path, lock)


def test_a_rotation_keeps_the_old_key_until_it_is_forgotten(tmp_path: Path) -> None:
    path, lock = tmp_path / "vault.json", KeyFile.create(tmp_path / "site.key")
    first = Vault.create(path, lock)
    both = first.with_new_key()
    assert both.keys[1:] == first.keys
    assert Vault.open(path, lock).keys == both.keys
    assert both.forget_old().keys == both.keys[:1]
    assert Vault.open(path, lock).keys == both.keys[:1]


def test_the_same_keys_move_to_another_lock(tmp_path: Path) -> None:
    path = tmp_path / "vault.json"
    made = Vault.create(path, Passphrase(text=PHRASE)).rewrap(kms(tmp_path))
    assert how_locked(path) == "kms"
    assert Vault.open(path, kms(tmp_path)).key == made.key
    with pytest.raises(TrustError):
        Vault.open(path, Passphrase(text=PHRASE))


def test_a_kms_that_fails_or_gives_another_key_is_an_error_that_shows_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "vault.json"
    Vault.create(path, kms(tmp_path))
    scripts = {
        "ended with 3": "import sys; print('token-xyz'); print('token-xyz', file=sys.stderr); sys.exit(3)",
        "gave 9": "print('token-xy')",
        "another one": "print('t' * 31)",
    }
    for message, script in scripts.items():
        with pytest.raises(TrustError, match=message) as raised:
            Vault.open(path, kms(tmp_path, script))
        assert "token" not in str(raised.value)
    with pytest.raises(TrustError, match="not installed"):
        Vault.open(path, Kms(unwrap_command="twinward-no-such-command"))
    with pytest.raises(TrustError, match="did not wrap"):
        Vault.create(
            tmp_path / "v.json", kms(tmp_path, "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())")
        )
    with pytest.raises(TrustError, match="wrap_command"):
        Vault.create(tmp_path / "v.json", Kms(unwrap_command="cat"))
