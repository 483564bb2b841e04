"""Certificates that end in a run, and a hospital that lost its folder: they cost time, and people's say."""

from __future__ import annotations

import io
import json
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime

from cli import audit, joining, membership
from client.agent import read_status
from client.policy import read_policy
from server.members import Members
from tests.faults.conftest import Copies, Prepared
from tests.faults.storm import COORDINATOR, Storm
from trust.audit import AuditLog
from trust.authority import Authority
from trust.identity import Identity, identity_of
from trust.keys import key_from_pem, read_private, signing_request, write_file
from trust.signing import Signer

YEAR_S = 365 * 86_400.0
DIES_IN_ROUND_1 = {"target": "client.app:train", "nth": 1, "after": False}


def certify(storm: Storm, site: str, life_s: float) -> None:
    """Gives a hospital a certificate that ends after some seconds."""
    home = storm.site(site)
    identity = identity_of(home.certificate.read_bytes())
    request = signing_request(key_from_pem(read_private(home.key)), site)
    authority = Authority.open(storm.home.authority)
    pem = authority.issue(request, identity, life_s / 86_400, now=datetime.now(UTC))
    with Members(storm.home.members) as members:
        members.certify(site, pem)
    write_file(home.certificate, pem, replace=True)


def certify_coordinator(storm: Storm, life_s: float) -> None:
    """Gives the coordinator's listeners a certificate that ends after some seconds."""
    home = storm.home
    authority = Authority.open(home.authority)
    identity = Identity(federation=authority.federation, role="coordinator", name=COORDINATOR)
    request = signing_request(key_from_pem(read_private(home.server_key)), COORDINATOR)
    hosts, days = ["localhost", "127.0.0.1"], life_s / 86_400
    pem = authority.issue_server(request, identity, hosts, days, now=datetime.now(UTC))
    write_file(home.server_certificate, pem, replace=True)


def seconds_until(storm: Storm, name: str) -> float:
    """Starts a process; how long this machine takes until it is connected, or answers."""
    begun_s = time.monotonic()
    storm.start(name)
    storm.wait_for(lambda: name == COORDINATOR or name in storm.status()["connected"])
    return time.monotonic() - begun_s


def hold_in_round_1(storm: Storm) -> None:
    """Lets gamma die in the first round, for which the others wait."""
    storm.start("gamma", call=DIES_IN_ROUND_1)
    assert storm.wait_for_end("gamma") == -signal.SIGKILL, storm.log("gamma")


def test_a_hospital_whose_certificate_ends_in_a_round_is_cut_off_until_it_has_another(
    copy: Copies, all_needed: Prepared
) -> None:
    storm = copy(all_needed)
    storm.start(COORDINATOR)
    storm.start("alpha")
    took_s = seconds_until(storm, "beta")
    hold_in_round_1(storm)
    storm.kill("beta")
    storm.wait_for(lambda: "beta" not in storm.status()["connected"])
    certify(storm, "beta", 2.0 + 5 * took_s)
    storm.start("beta", always={"target": "client.agent:renewal_due", "gives": False})
    storm.wait_for(lambda: "beta" in storm.status()["connected"])
    storm.wait_for(lambda: "beta" not in storm.status()["connected"])
    storm.start("gamma")
    storm.wait_for(lambda: "gamma" in storm.status()["connected"])
    time.sleep(1.0)
    assert storm.status()["connected"] == ["alpha", "gamma"]
    assert not storm.is_over()
    certify(storm, "beta", YEAR_S)
    assert storm.kill("beta", signal.SIGTERM) == 0  # else it would wait for half a minute
    storm.start("beta")
    assert storm.finish() == all_needed.model
    storm.check()


def test_hospitals_refuse_a_coordinator_whose_certificate_has_ended_until_it_has_another(
    copy: Copies, all_needed: Prepared
) -> None:
    storm = copy(all_needed)
    took_s = seconds_until(storm, COORDINATOR)
    storm.start_sites("gamma")
    hold_in_round_1(storm)
    storm.kill(COORDINATOR)
    life_s = 2.0 + 5 * took_s
    certify_coordinator(storm, life_s)
    ends_s = time.time() + life_s
    storm.start(COORDINATOR, always={"target": "server.founding:_is_due", "gives": False})
    time.sleep(max(0.0, ends_s + 1.0 - time.time()))
    storm.start("gamma")
    storm.wait_for(lambda: read_status(storm.site("gamma")).get("ended") == "unreachable")
    assert storm.committed() == 0
    storm.kill(COORDINATOR)
    storm.start(COORDINATOR)  # it renews what is about to end, at the latest here
    assert storm.finish() == all_needed.model
    storm.check()


def test_a_hospital_that_joined_anew_is_known_again_once_an_operator_accepts_its_log(
    copy: Copies, two_suffice: Prepared
) -> None:
    storm = copy(two_suffice)
    storm.start(COORDINATOR)
    storm.start("gamma")
    storm.wait_for(lambda: key_held(storm, "gamma") != "")
    before = key_held(storm, "gamma")
    storm.kill("gamma")
    join_anew(storm, "gamma")
    assert Signer.load(storm.site("gamma").audit_key).public_hex != before
    storm.start("gamma")
    storm.wait_for(lambda: "peer_log_refused" in kinds_of(storm))
    storm.start_sites("gamma")
    storm.finish()
    assert key_held(storm, "gamma") == before
    words = [str(storm.home.audit), "gamma", "--reason", "their server burnt down"]
    assert audit.run("audit accept", words) == 0
    storm.start(COORDINATOR)
    storm.start("gamma")
    now = Signer.load(storm.site("gamma").audit_key).public_hex
    storm.wait_for(lambda: key_held(storm, "gamma") == now)
    for name in ("gamma", COORDINATOR):
        assert storm.kill(name, signal.SIGTERM) == 0
    assert kinds_of(storm).count("peer_log_refused") == 1
    storm.check()


def join_anew(storm: Storm, site: str) -> None:
    """The hospital's folder is lost; it joins once more, with the commands that people type."""
    home = storm.site(site)
    data, policy = str(home.settings().data_path), home.policy.read_bytes()
    shutil.rmtree(home.directory)
    invited = said(
        membership.run, "coordinator invite", [site, f"--home={storm.home.directory}", "--replace"]
    )
    words = [str(json.loads(invited)["token"]), f"--home={home.directory}", f"--data={data}"]
    said(joining.run, "site join", words)
    home.policy.write_bytes(policy)
    assert read_policy(home.policy).automatic


def said(run: object, name: str, words: Sequence[str]) -> str:
    """What a command prints; it must succeed."""
    assert callable(run)
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert run(name, [*words, "--json"]) == 0
    return printed.getvalue()


def key_held(storm: Storm, site: str) -> str:
    """The key of the newest head of a hospital's log that the coordinator holds; empty if there is none."""
    with AuditLog(storm.home.audit) as log:
        held = log.held("peer", site)
    return "" if held is None else held.key


def kinds_of(storm: Storm) -> list[str]:
    with AuditLog(storm.home.audit) as log:
        return [record.kind for record in log.records()]
