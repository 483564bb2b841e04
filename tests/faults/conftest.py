"""What the tests of faults share: the zygote, and prepared federations with their undisturbed models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.storm import COORDINATOR, LONG, Storm, Zygote, prepare

ROUNDS = 4 if LONG else 2


@dataclass(frozen=True)
class Prepared:
    """A federation before its first round, and the model to which it comes undisturbed."""

    directory: Path
    model: str


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="session")
def all_needed(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Prepared:
    """A round needs all three sites, however long it takes."""
    return _prepared(tmp_path_factory.mktemp("all"), zygote, quorum=3, deadline="10m")


@pytest.fixture(scope="session")
def two_suffice(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Prepared:
    """A round closes with two sites after some seconds."""
    return _prepared(tmp_path_factory.mktemp("two"), zygote, quorum=2, deadline="4s")


def _prepared(directory: Path, zygote: Zygote, *, quorum: int, deadline: str) -> Prepared:
    made = prepare(directory, zygote, rounds=ROUNDS, quorum=quorum, round_deadline=deadline)
    with Storm.on(made, directory / "calm", zygote) as calm:
        calm.start(COORDINATOR)
        calm.start_sites()
        model = calm.finish()
        calm.check()
    return Prepared(made, model)


Copies = Callable[[Prepared], Storm]


@pytest.fixture
def copy(tmp_path: Path, zygote: Zygote) -> Iterator[Copies]:
    """Copies of a prepared federation, whose processes end with the test."""
    made: list[Storm] = []

    def one(prepared: Prepared) -> Storm:
        made.append(Storm.on(prepared.directory, tmp_path / f"copy-{len(made)}", zygote))
        return made[-1]

    yield one
    for storm in made:
        storm.__exit__()
