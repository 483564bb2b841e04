"""A hospital's folder is made once, readable by its owner alone, and read strictly."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from client.errors import ClientError
from client.home import SECRET_BYTES, SiteHome, SiteSettings

SETTINGS = SiteSettings(
    federation="north-sea",
    site="st-anna",
    address="twinward.example.org:7443",
    data_path="/data",
    timezone="UTC",
)


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome.create(tmp_path / "site", SETTINGS)


def test_a_new_home_holds_its_settings_a_secret_and_a_policy_for_its_owner_alone(home: SiteHome) -> None:
    assert SiteHome(home.directory).settings() == SETTINGS
    assert len(home.secret()) == SECRET_BYTES
    assert home.coordinator_keys() == {}
    for path in (home.settings_path, home.secret_path, home.policy, home.coordinator_keys_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.directory.stat().st_mode) == 0o700


def test_two_homes_have_different_secrets(home: SiteHome, tmp_path: Path) -> None:
    assert SiteHome.create(tmp_path / "other", SETTINGS).secret() != home.secret()


def test_a_folder_that_is_a_site_is_not_made_anew(home: SiteHome) -> None:
    secret = home.secret()
    with pytest.raises(ClientError, match="has one"):
        SiteHome.create(home.directory, SETTINGS)
    assert home.secret() == secret


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"federation": "f", "site": "s", "address": 1}),
        json.dumps({"federation": "f", "site": "s", "address": "a:1", "seed": "7"}),
        json.dumps({"federation": "f", "site": "s", "address": "a:1", "role": "coordinator"}),
        json.dumps({"federation": "f", "site": "s", "address": "a:1", "device": "abacus"}),
        json.dumps({"federation": None, "site": "s", "address": "a:1"}),
    ],
)
def test_settings_that_are_not_understood_are_refused(home: SiteHome, text: str) -> None:
    home.settings_path.write_text(text)
    with pytest.raises(ClientError, match="home_unreadable"):
        home.settings()


@pytest.mark.parametrize("data", [b"", b"short", bytes(SECRET_BYTES + 1)])
def test_a_secret_of_another_length_is_refused(home: SiteHome, data: bytes) -> None:
    home.secret_path.write_bytes(data)
    with pytest.raises(ClientError, match="home_unreadable"):
        home.secret()


def test_a_folder_that_is_no_site_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="site join"):
        SiteHome(tmp_path).settings()


def test_keys_of_the_coordinator_are_texts_by_id(home: SiteHome) -> None:
    home.save_coordinator_keys({"a": "b"})
    assert home.coordinator_keys() == {"a": "b"}
    for text in ("[]", '{"a": 1}', "{"):
        home.coordinator_keys_path.write_text(text)
        with pytest.raises(ClientError, match="home_unreadable"):
            home.coordinator_keys()


def test_one_process_runs_a_site_and_a_dead_one_holds_nothing(home: SiteHome) -> None:
    holding = (
        "import sys, time\nfrom client.home import SiteHome\n"
        "with SiteHome(sys.argv[1]).lock():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holding, str(home.directory)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert home.is_running
        with pytest.raises(ClientError, match="Another process"), home.lock():
            pass
    finally:
        other.kill()
        other.wait()
    assert not home.is_running
    with home.lock():
        pass
