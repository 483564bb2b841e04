"""A member whose gate is broken open sends what no honest site would; the others' model is not touched."""

from __future__ import annotations

import pytest

from server.app import store_path
from server.store import Store
from tests.faults.conftest import Copies, Prepared
from tests.faults.injected import LIES
from tests.faults.storm import COORDINATOR, RUN


@pytest.fixture(scope="module")
def without_gamma() -> list[str]:
    """The models of all federations here; gamma counts in none, so they are one and the same."""
    return []


@pytest.mark.parametrize("lie", LIES)
def test_a_site_that_lies(copy: Copies, two_suffice: Prepared, without_gamma: list[str], lie: str) -> None:
    storm = copy(two_suffice)
    storm.start(COORDINATOR)
    storm.start("gamma", update=lie)
    storm.start_sites("gamma")
    model = storm.finish()
    with Store(store_path(storm.home.run_directory(RUN))) as store:
        refused = {(number, site) for number, site, _ in store.refusals()}
        rounds = [row.number for row in store.rounds()]
        assert all(store.answered(number) == ("alpha", "beta") for number in rounds)
    assert {number for number, _ in refused} >= set(rounds)
    assert model != two_suffice.model
    without_gamma.append(model)
    assert len(set(without_gamma)) == 1
    storm.check(honest=("alpha", "beta"))


def test_a_site_of_another_release_refuses_and_the_others_go_on(copy: Copies, two_suffice: Prepared) -> None:
    storm = copy(two_suffice)
    storm.start(COORDINATOR)
    storm.start("gamma", release="99.0")
    storm.start_sites("gamma")
    storm.wait_for(storm.is_over)
    assert storm.status()["progress"]["sites"]["gamma"] == "version_refused"
    storm.finish()
    storm.check()
