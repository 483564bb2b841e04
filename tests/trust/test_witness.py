"""Two logs that exchange heads: neither is rewritten, cut or restored without the other seeing it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trust.audit import AuditLog
from trust.errors import TrustError
from trust.heads import SignedHead
from trust.signing import Signer
from trust.verification import verify
from trust.witness import Witness


@dataclass(slots=True)
class Side:
    """One side with its file, its key and its clock."""

    path: Path
    name: str
    signer: Signer = field(default_factory=Signer.generate)
    now_s: float = 1.8e9
    log: AuditLog = field(init=False)
    witness: Witness = field(init=False)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        self.log = AuditLog(self.path, signer=self.signer, clock=lambda: self.now_s)
        self.witness = Witness(self.log, clock=lambda: self.now_s)

    def work(self, count: int = 1, code: str = "x") -> None:
        for _ in range(count):
            self.log.append("refused", who=self.name, code=code)

    def replaced(self, copy: Path | None) -> None:
        """Goes on with another file at its place."""
        self.log.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        if copy is not None:
            shutil.copy(copy, self.path)
        self.open()

    def copied(self) -> Path:
        self.log.close()
        copy = self.path.with_suffix(".copy")
        shutil.copy(self.path, copy)
        self.open()
        return copy


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Side]:
    side = Side(tmp_path / "site.sqlite", "north")
    yield side
    side.log.close()


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Side]:
    side = Side(tmp_path / "coordinator.sqlite", "coordinator")
    yield side
    side.log.close()


def exchange(one: Side, other: Side, times: int = 1) -> None:
    for _ in range(times):
        other.witness.hear(one.name, one.witness.say(other.name))
        one.witness.hear(other.name, other.witness.say(one.name))


def hear_often(site: Side, coordinator: Side) -> None:
    for _ in range(6):
        coordinator.witness.hear("north", site.witness.say("coordinator"))


def never_prove(site: Side, coordinator: Side) -> None:
    message = json.loads(site.witness.say("coordinator"))
    for _ in range(10):
        site.work(1)
        message |= {"head": site.log.signed_head().to_dict(), "since": 0, "proof": []}
        coordinator.witness.hear("north", json.dumps(message).encode())


def kinds(side: Side) -> list[str]:
    return [record.kind for record in side.log.records() if record.kind != "refused"]


def test_logs_that_grow_hold_each_others_heads(site: Side, coordinator: Side) -> None:
    for _ in range(20):
        site.work(3)
        coordinator.work(5)
        exchange(site, coordinator)
    exchange(site, coordinator)
    held = coordinator.log.held("peer", "north")
    shown = site.log.held("own", "coordinator")
    assert held is not None
    assert shown is not None
    assert held.head.size >= shown.head.size >= 60
    assert held.key == site.signer.public_hex
    assert verify(site.path) == verify(coordinator.path) == []
    assert verify(site.path, heads=[held]) == []


def test_logs_at_rest_do_not_lengthen_each_other(site: Side, coordinator: Side) -> None:
    for _ in range(50):
        exchange(site, coordinator)
        site.now_s += 10
        coordinator.now_s += 10
    assert kinds(site) == kinds(coordinator) == ["heads_exchanged"]
    site.now_s += 3600
    coordinator.now_s -= 10 * 365 * 86400
    exchange(site, coordinator, 3)
    assert kinds(site) == kinds(coordinator) == ["heads_exchanged"] * 2


def test_a_site_that_rewrote_its_history_is_seen_and_both_heads_are_kept_as_proof(
    site: Side, coordinator: Side
) -> None:
    site.work(5)
    exchange(site, coordinator, 2)
    site.replaced(None)
    site.work(9, code="another")
    with pytest.raises(TrustError, match="rewritten"):
        coordinator.witness.observe(
            "north", site.log.signed_head(), site.log.proof(held_size(coordinator), site.log.size)
        )
    record = coordinator.log.last("peer_log_refused")
    assert record is not None
    for before in ("", "held_"):
        fields = ("size", "root", "time", "key", "signature")
        SignedHead.from_dict({name: record.facts[before + name] for name in fields}).check(
            {site.signer.public_hex}
        )
    assert verify(coordinator.path) == []


def test_a_peer_that_contradicts_itself_without_end_fills_no_log(site: Side, coordinator: Side) -> None:
    site.work(100)
    coordinator.witness.hear("north", site.witness.say("coordinator"))

    def contradict(times: int) -> list[str]:
        site.replaced(None)
        for number in range(times):
            site.work(code=f"z{number}")
            with pytest.raises(TrustError, match="restored or cut"):
                coordinator.witness.hear("north", site.witness.say("coordinator"))
        return [record.why for record in coordinator.log.records(kinds=["peer_log_refused"])]

    assert len(contradict(20)) == 1
    coordinator.now_s += 3601.0
    told = contradict(2)
    assert len(told) == 2
    assert "19 others" in told[1]
    coordinator.log.release("north", who="Ada", why="looked")
    site.work(200)
    coordinator.witness.hear("north", site.witness.say("coordinator"))
    assert len(contradict(3)) == 3  # a new log that contradicts itself is told at once


def held_size(side: Side) -> int:
    held = side.log.held("peer", "north")
    assert held is not None
    return held.head.size


@given(seen=st.integers(1, 20), changed=st.integers(0, 19), more=st.integers(0, 30))
@settings(deadline=None, max_examples=25)
def test_whichever_record_was_changed_no_message_of_the_fork_is_taken(
    tmp_path_factory: pytest.TempPathFactory, seen: int, changed: int, more: int
) -> None:
    folder = tmp_path_factory.mktemp("fork")
    site, coordinator = Side(folder / "s", "north"), Side(folder / "c", "coordinator")
    site.work(seen)
    coordinator.witness.hear("north", site.witness.say("coordinator"))
    site.replaced(None)
    for number in range(seen + more):
        site.work(code="y" if number == changed % seen else "x")
    with pytest.raises(TrustError):
        hear_often(site, coordinator)
    assert "peer_log_refused" in kinds(coordinator)
    site.log.close()
    coordinator.log.close()


def test_a_site_learns_that_its_own_log_is_an_old_copy(site: Side, coordinator: Side) -> None:
    site.work(3)
    exchange(site, coordinator, 2)
    copy = site.copied()
    site.work(3)
    exchange(site, coordinator, 2)
    site.replaced(copy)
    assert verify(site.path) == []
    with pytest.raises(TrustError, match="old copy"):
        site.witness.hear("coordinator", coordinator.witness.say("north"))
    assert kinds(site)[-1] == "own_log_refused"
    with pytest.raises(TrustError, match="restored or cut"):
        coordinator.witness.hear("north", site.witness.say("coordinator"))
    held = coordinator.log.held("peer", "north")
    assert held is not None
    assert "old copy" in " ".join(verify(site.path, heads=[held]))


def test_a_coordinator_that_went_back_is_seen_by_its_sites(site: Side, coordinator: Side) -> None:
    coordinator.work(3)
    copy = coordinator.copied()
    coordinator.work(3)
    exchange(site, coordinator, 2)
    coordinator.replaced(copy)
    with pytest.raises(TrustError, match="restored or cut"):
        site.witness.hear("coordinator", coordinator.witness.say("north"))


def test_people_may_accept_a_log_that_was_begun_anew(site: Side, coordinator: Side) -> None:
    site.work(3)
    exchange(site, coordinator, 2)
    site.replaced(None)
    site.work(1)
    with pytest.raises(TrustError):
        exchange(site, coordinator)
    assert coordinator.log.release("north", who="Ada", why="their disk broke") == 2
    exchange(site, coordinator, 3)
    assert kinds(coordinator)[-2:] == ["peer_log_accepted", "heads_exchanged"]
    assert verify(coordinator.path) == verify(site.path) == []


def test_nobody_speaks_for_another(site: Side, coordinator: Side, tmp_path: Path) -> None:
    site.work(3)
    exchange(site, coordinator)
    stranger = Side(tmp_path / "stranger.sqlite", "north")
    stranger.work(9)
    with pytest.raises(TrustError, match="another"):
        coordinator.witness.hear("north", stranger.witness.say("coordinator"))
    picky = Witness(coordinator.log, keys={stranger.signer.public_hex})
    with pytest.raises(TrustError, match="another"):
        picky.hear("north", site.witness.say("coordinator"))
    stranger.log.close()


def test_lost_messages_are_made_up_for(site: Side, coordinator: Side) -> None:
    for turn in range(12):
        site.work(2)
        said = site.witness.say("coordinator")
        coordinator.witness.hear("north", said)
        if turn % 3 == 2:  # the others' answers are lost
            site.witness.hear("coordinator", coordinator.witness.say("north"))
    exchange(site, coordinator, 2)
    assert held_size(coordinator) == site.log.size
    assert "peer_log_refused" not in kinds(coordinator)


def test_a_peer_that_never_proves_its_growth_is_refused(site: Side, coordinator: Side) -> None:
    site.work(3)
    exchange(site, coordinator, 2)
    with pytest.raises(TrustError, match="proof from"):
        never_prove(site, coordinator)
    assert kinds(coordinator)[-1] == "peer_log_refused"


@pytest.mark.parametrize(
    "change",
    [
        {"head": None},
        {"head": {"size": 1}},
        {"since": "0"},
        {"since": True},
        {"proof": "ff"},
        {"proof": ["ff"]},
        {"proof": ["00" * 32] * 200},
        {"held": []},
        {"more": 1},
    ],
)
def test_a_message_of_another_form_is_refused_whole(
    site: Side, coordinator: Side, change: dict[str, object]
) -> None:
    site.work(2)
    message = json.loads(site.witness.say("coordinator")) | change
    with pytest.raises(TrustError, match="Expected"):
        coordinator.witness.hear("north", json.dumps(message).encode())
    assert coordinator.log.all_held() == []
    assert coordinator.log.size == 0


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 10000, b" " * 20000, b"1"])
def test_bytes_that_are_no_message_are_refused(coordinator: Side, data: bytes) -> None:
    with pytest.raises(TrustError, match="Expected"):
        coordinator.witness.hear("north", data)


def test_a_head_whose_fields_were_changed_does_not_hold(site: Side) -> None:
    site.work(2)
    plain = site.log.signed_head().to_dict()
    for change in ({"size": 3}, {"root": "0" * 64}, {"time": 1.0}):
        with pytest.raises(TrustError, match="signature"):
            SignedHead.from_dict(plain | change).check()
    for wrong in ({"size": 2.0}, {"size": -1}, {"root": "G" * 64}, {"time": 1}, {"time": None}):
        with pytest.raises(TrustError, match="head"):
            SignedHead.from_dict(plain | wrong)
