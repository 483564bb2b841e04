"""Sites that several processes train get what one process gives them, whatever becomes of the processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from client.crew import Crew, Made
from client.stacked import Base, Work, train_many
from client.team import Member, Piece, Team
from conf import schema
from privacy.errors import PrivacyError
from privacy.noise import NoiseStream
from trust.packed import Packed, packed
from trust.plan import Terms
from twin import models, tasks
from twin.models.network import Network
from twin.tasks.protocol import Examples

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")

TASK = tasks.build(schema.Task(name="heart"))
SITES = 7


def _examples(patients: int, seed: int) -> Examples:
    draws = torch.Generator().manual_seed(seed)
    return Examples(
        series_NTC=torch.zeros(patients, 0, 0),
        static_NS=torch.zeros(patients, 0),
        table_NF=torch.randn(patients, len(TASK.columns), generator=draws),
        anchor_N=torch.zeros(patients),
        target_NH=torch.bernoulli(torch.full((patients, 1), 0.5), generator=draws),
        observed_NH=torch.ones(patients, 1, dtype=torch.bool),
        patient_N=torch.arange(patients),
        time_us_N=torch.zeros(patients, dtype=torch.int64),
        patients=tuple(str(number) for number in range(patients)),
    )


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return models.build(schema.Model(name="mlp", hidden=8), TASK)


@pytest.fixture(scope="module")
def members() -> dict[str, Member]:
    return {
        f"site {number}": Member(
            examples=_examples(20 + 3 * number, number), stream=NoiseStream(bytes([number]) * 32, b"")
        )
        for number in range(SITES)
    }


def _base(network: Network, *, private: bool) -> Base:
    terms = Terms(
        private=private,
        noise_multiplier=1.0 if private else 0.0,
        clip_norm=0.5,
        sampling_rate=0.4,
        windows_per_patient=1,
        steps=100,
        epsilon=None,
        delta=1e-5,
    )
    state = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    return Base(state=state, terms=terms, strategy=schema.Strategy(local_steps=3, learning_rate=0.1))


def _works(members: Mapping[str, Member], context: bytes) -> list[Work]:
    return [
        Work(examples=member.examples, declared=20, stream=member.stream.at(context))
        for member in members.values()
    ]


def _windows(members: Mapping[str, Member]) -> dict[str, Examples]:
    return {name: member.examples for name, member in members.items()}


def _round(team: Team, base: Base, members: Mapping[str, Member], context: bytes) -> dict[int, Packed]:
    pieces = [Piece(site=name, declared=20, context=context) for name in members]
    found = dict(entry for made in team.round(base, pieces, lambda _: 2) for entry in made)
    assert sorted(found) == list(range(len(pieces)))
    assert not any(isinstance(release, PrivacyError) for release in found.values())
    return {place: release for place, release in found.items() if isinstance(release, Packed)}


@pytest.mark.parametrize("private", [True, False])
def test_processes_change_no_bit_of_a_release(
    private: bool, network: Network, members: dict[str, Member]
) -> None:
    base = _base(network, private=private)
    with closing(Team(network, TASK, members, 3, worth_s=0.0)) as team:
        for context in (b"round 1", b"round 2"):
            found = _round(team, base, members, context)
            chunks = train_many(
                model=network,
                state=base.state,
                works=_works(members, context),
                task=TASK,
                terms=base.terms,
                strategy=base.strategy,
                most_sites=2,
            )
            for place, update in (entry for chunk in chunks for entry in chunk):
                assert isinstance(update, dict)
                assert found[place].sha256 == packed(update).sha256
                np.testing.assert_array_equal(found[place]["head.weight"], update["head.weight"])
        assert team.fits(network, _windows(members))


def test_a_site_that_is_no_member_asks_for_another_team(network: Network, members: dict[str, Member]) -> None:
    with closing(Team(network, TASK, members, 1)) as team:
        windows = _windows(members)
        assert team.fits(network, windows)
        assert not team.fits(network, windows | {"another": windows["site 0"]})
        assert not team.fits(network, windows | {"site 0": _examples(20, 0)})


def test_the_parts_of_a_process_that_is_killed_are_trained_by_the_others(
    network: Network, members: dict[str, Member]
) -> None:
    base = _base(network, private=False)
    with closing(Team(network, TASK, members, 3, worth_s=0.0)) as team:
        expected = _round(team, base, members, b"round 1")
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        found = _round(team, base, members, b"round 1")
    assert {place: release.sha256 for place, release in found.items()} == {
        place: release.sha256 for place, release in expected.items()
    }


def _squares(common: int, part: int) -> Made:
    return [(part, packed({"x": np.array([common * part**2], np.float32)}))]


def _read(made: Iterator[Made]) -> dict[int, float]:
    return {place: float(x["x"][0]) for each in made for place, x in each if isinstance(x, Packed)}


def test_a_part_that_fails_in_another_process_is_done_in_this_one() -> None:
    here = os.getpid()

    def only_here(common: int, part: int) -> Made:
        if os.getpid() != here and part % 2:
            raise ValueError("said nowhere")
        return _squares(common, part)

    with closing(Crew(only_here, processes=2, room=1 << 12, worth_s=0.0)) as crew:
        for common in (2, 3):
            assert _read(crew.run(common, range(9))) == {part: float(common * part**2) for part in range(9)}


def test_a_part_that_fails_everywhere_raises_what_it_raises_here() -> None:
    def never(common: int, part: int) -> Made:
        raise ValueError(f"part {part}")

    with (
        closing(Crew(never, processes=2, room=1 << 12, worth_s=0.0)) as crew,
        pytest.raises(ValueError, match="part"),
    ):
        list(crew.run(0, range(4)))


def test_releases_that_outgrow_their_memory_are_made_in_this_process() -> None:
    def long(common: int, part: int) -> Made:
        return [(part, packed({"x": np.full(5000, part, np.float32)}))]

    with closing(Crew(long, processes=2, room=1 << 10, worth_s=0.0)) as crew:
        assert _read(crew.run(0, range(5))) == {part: float(part) for part in range(5)}


def test_who_stops_listening_hears_nothing_of_it_in_the_next_round() -> None:
    with closing(Crew(_squares, processes=2, room=1 << 12, worth_s=0.0)) as crew:
        listening = crew.run(3, range(8))
        next(listening)
        listening.close()
        assert _read(crew.run(5, range(8))) == {part: 5.0 * part**2 for part in range(8)}


def _alone(pipe: Connection) -> None:
    with closing(Crew(_squares, processes=2, room=1 << 12, worth_s=0.0)) as crew:
        pipe.send(_read(crew.run(2, range(4))))


def test_within_a_pool_whose_processes_may_have_no_children_one_process_trains() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_alone, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    assert ours.recv() == {part: 2.0 * part**2 for part in range(4)}
    process.join()


def test_its_processes_end_with_a_crew_and_with_the_process_that_made_it(tmp_path: Path) -> None:
    with closing(Crew(_squares, processes=3, room=1 << 12, worth_s=0.0)) as crew:
        list(crew.run(1, range(4)))
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()

    said = tmp_path / "pids"
    program = (
        "import multiprocessing, os, time, pathlib\n"
        "from client.crew import Crew\n"
        "crew = Crew(lambda common, part: [], processes=3, room=4096, worth_s=0.0)\n"
        "list(crew.run(0, range(4)))\n"
        "pids = [str(child.pid) for child in multiprocessing.active_children()]\n"
        f"pathlib.Path({str(said)!r}).write_text(' '.join(pids) + ' .')\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    try:
        _until(lambda: said.exists() and said.read_text().endswith("."))
        pids = [int(word) for word in said.read_text().split()[:-1]]
        assert len(pids) == 2 and all(_lives(pid) for pid in pids)
    finally:
        parent.kill()
        parent.wait()
    _until(lambda: not any(_lives(pid) for pid in pids))


def _lives(pid: int) -> bool:
    """A process that has ended and that nobody has waited for does not live."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(holds: object, seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    assert callable(holds)
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)
