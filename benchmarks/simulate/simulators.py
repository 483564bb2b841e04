"""Which simulators are run, and in which setting: the fastest that each documents for two cores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """One row of the table.

    Attributes:
        title: in the table.
        module: of this package.
        environment: a key of `environments.REQUIREMENTS`, or "ours".
        workers: threads, processes or actors that train.
        mode: of a simulator that has several.
        most_sites: beyond which it is not run.
        usual: whether it is run when nobody names it.
    """

    title: str
    module: str
    environment: str = "ours"
    workers: int = 1
    mode: str = ""
    most_sites: int = 512
    usual: bool = True

    @property
    def is_ours(self) -> bool:
        """Whether it is one of our engines."""
        return self.module == "peer_ours"


SIMULATORS = {
    "bare": Simulator(title="bare PyTorch loop", module="peer_bare"),
    "batched": Simulator(
        title="**Twinward `batched`**, two processes",
        module="peer_ours",
        mode="batched",
        workers=2,
        most_sites=100_000,
    ),
    "local": Simulator(title="**Twinward `local`**", module="peer_ours", mode="local", most_sites=100_000),
    "pfl": Simulator(title="pfl 0.6, one process", module="peer_pfl", environment="pfl"),
    "pfl-2": Simulator(title="pfl 0.6, two processes", module="peer_pfl", environment="pfl", workers=2),
    "fluke": Simulator(title="fluke 0.8", module="peer_fluke", environment="fluke"),
    "blazefl": Simulator(
        title="BlazeFL 3, two threads",
        module="peer_blazefl",
        environment="blazefl",
        workers=2,
        mode="threads",
    ),
    "blazefl-2": Simulator(
        title="BlazeFL 3, two processes",
        module="peer_blazefl",
        environment="blazefl",
        workers=2,
        mode="processes",
    ),
    "flower": Simulator(
        title="Flower 1.41 + Ray, two actors", module="peer_flower", environment="flower", workers=2
    ),
    "nvflare": Simulator(
        title="NVFlare 2.9 simulator",
        module="peer_nvflare",
        environment="nvflare",
        most_sites=8,
        usual=False,
    ),
}
