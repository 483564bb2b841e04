"""What a ClientApp knows of its own site: windows of the patients that train, secret, ledger, limits.

`open_site` finds the site that a Flower node stands for. In a simulation the node's partition
number says which of the sites of the configuration it is, and the secret follows from the seed. A
node whose configuration names a `home` is a hospital (client/hospital.py): it has its own data, its
own secret, and opens only for plans that its policy and its people admit.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from flwr.app import Context
from torch import nn

from client.asked import Asked
from client.booking import AnyLedger
from client.errors import ClientError
from client.ledger import Ledger
from client.shared_ledger import SharedLedger
from client.trainer import trainable, windows_of_each
from conf.load import from_json, to_json
from conf.schema import Config
from privacy.accounting import GaussianRelease, epsilon
from privacy.noise import site_secret_from_seed
from trust.plan import round_patients
from twin import connectors, models, tasks
from twin.splits import Split
from twin.tasks.protocol import Examples, Task

if TYPE_CHECKING:
    from client.questions import Desk


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSite:
    """A site at work.

    Attributes:
        name: under which the federation knows it.
        config: the site's own settings; a plan that asks for other terms is refused.
        task, model: as the site's installed code builds them; the model is scratch space.
        examples: windows of the patients that train and of no others, on the model's device.
        secret: from which noise and draws follow; never leaves.
        ledger: of the site's whole life.
        agreed: what it declared when it took the plan; None if it has taken none.
        simulated: whether its secret follows from a seed, so that nothing is hidden from who knows it.
        most_steps: local steps that it does in a round at most; None: what a plan asks.
        kept: what it declares for this task to whoever asks; None if it never did (client/declared.py).
        data_sha256: of the windows that train. Noise follows from it too: were a ledger lost and the
            data changed since, the same noise on both releases would cancel and bare the difference.
        shapes: of each array of an update, sorted by name. all_shapes: of each array of the model.
    """

    name: str
    config: Config
    task: Task
    model: nn.Module
    examples: Examples
    secret: bytes
    ledger: AnyLedger
    agreed: int | None = None
    kept: int | None = None
    simulated: bool = False
    most_steps: int | None = None
    data_sha256: str = field(init=False)
    shapes: Mapping[str, tuple[int, ...]] = field(init=False)
    all_shapes: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        windows_of_each(self.examples)  # refuses what does not stand patient by patient
        trained, whole = trainable(self.model), self.model.state_dict()
        object.__setattr__(self, "data_sha256", examples_sha256(self.examples))
        object.__setattr__(self, "shapes", {name: tuple(value.shape) for name, value in trained.items()})
        object.__setattr__(self, "all_shapes", {name: tuple(value.shape) for name, value in whole.items()})

    @property
    def patients(self) -> int:
        """How many patients train; private."""
        return len(self.examples.patients)

    @property
    def declared(self) -> int:
        """How many patients the site says it has: rounded, public, part of the plan."""
        if self.agreed is not None:
            return self.agreed
        return round_patients(self.patients) if self.kept is None else self.kept

    def fewer_steps(self, asked: int) -> int | None:
        """How many local steps it does in a round if that is fewer than a plan asks; else None."""
        return None if self.most_steps is None or self.most_steps >= asked else self.most_steps


def examples_sha256(examples: Examples) -> str:
    """SHA-256 of all that training reads of a site: windows, targets, and whose they are."""
    digest = hashlib.sha256("\0".join(examples.patients).encode())
    for entry in fields(Examples):
        if entry.name != "patients":
            values = getattr(examples, entry.name).contiguous().cpu().numpy()
            digest.update(f"{entry.name} {values.dtype} {values.shape}".encode())
            digest.update(memoryview(values.reshape(-1)).cast("B") if values.size else b"")
    return digest.hexdigest()


class Keeper(Protocol):
    """Stands at a hospital's door: which plans get in, and the record of what went out."""

    @property
    def name(self) -> str:
        """Under which the federation knows the site."""
        ...

    @property
    def questions(self) -> Desk | None:
        """Where questions are answered; None if nowhere."""
        ...

    def open(self, asked: Asked) -> OpenSite:
        """The site, set up for the plan; raises ClientError with the reason if it does not take it."""
        ...

    def released(self, asked: Asked, patients: int, update_sha256: str) -> None:
        """Records durably what is about to leave; raises ClientError, and then it does not leave."""
        ...

    def refused(self, asked: Asked | None, error: Exception, code: str) -> None:
        """Records why a request is answered with a code."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which patients of which sites train in a simulated federation.

    Attributes:
        split: leaves patients out by fold or draw.
        left_out: sites that take no part.
        patients_limit: at most so many training patients at these sites.
    """

    split: Split = Split()  # noqa: RUF009  frozen, so that one default serves all
    left_out: tuple[str, ...] = ()
    patients_limit: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> str:
        """One line of canonical JSON; empty for everybody."""
        return "" if self == Part() else json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    def training_patients(self, site: str, patients: tuple[str, ...]) -> tuple[str, ...]:
        """The patients of a site that train, sorted."""
        limit = dict(self.patients_limit).get(site, self.split.limit)
        return replace(self.split, limit=limit).training_patients(site, patients)


def part_from_json(text: str) -> Part:
    """The part that `Part.to_json` wrote; an empty text is everybody."""
    if not text:
        return Part()
    data = json.loads(text)
    return Part(
        split=Split(**data["split"]),
        left_out=tuple(data["left_out"]),
        patients_limit=tuple((str(site), int(limit)) for site, limit in data["patients_limit"]),
    )


def site_names(config: Config) -> tuple[str, ...]:
    """Names of all sites of a configuration, sorted; a node's partition number counts in them."""
    return tuple(sorted(_data(_data_key(config))[1]))


def site_examples(config: Config, site: str) -> Examples:
    """All windows of a site, of every patient. Cached in this process; do not change it in place."""
    return _data(_data_key(config))[1][site]


def forget_data() -> None:
    """Reads the sites' data anew when they are next asked for; they are kept in memory otherwise."""
    _data.cache_clear()
    connectors.forget()


def training_examples(config: Config, site: str, part: Part) -> Examples:
    """The windows of a site's training patients, with `patients` naming those patients alone.

    A patient without a window does not train, so does not count towards any number of patients.
    """
    examples = site_examples(config, site)
    return only(examples, part.training_patients(site, examples.patients))


def only(examples: Examples, patients: tuple[str, ...]) -> Examples:
    """The windows of these patients, patient by patient; `patients` names those that have a window."""
    windows_P = torch.bincount(examples.patient_N, minlength=len(examples.patients)).tolist()
    present = {patient for patient, windows in zip(examples.patients, windows_P, strict=True) if windows}
    chosen = tuple(p for p in patients if p in present)
    if chosen == examples.patients:
        return examples
    place_P = np.full(len(examples.patients), -1, np.int64)
    place = {patient: number for number, patient in enumerate(examples.patients)}
    place_P[[place[patient] for patient in chosen]] = np.arange(len(chosen))
    place_N = torch.from_numpy(place_P)[examples.patient_N]
    index_M = torch.nonzero(place_N >= 0).squeeze(1)
    index_M = index_M[torch.argsort(place_N[index_M], stable=True)]
    return replace(examples.at(index_M), patient_N=place_N[index_M], patients=chosen)


def ledger_path(directory: Path, site: str) -> Path:
    """Where a simulated site keeps its ledger if it has a file of its own."""
    return directory / "sites" / site / "ledger.sqlite"


def ledgers_path(directory: Path) -> Path:
    """Where the simulated sites of one process keep their ledgers."""
    return directory / "ledgers.sqlite"


def open_ledgers(config: Config, directory: Path) -> SharedLedger:
    """The ledgers of the simulated sites of one process."""
    path = ledgers_path(directory)
    return SharedLedger(path, ceiling_epsilon=_ceiling(config), delta=config.privacy.delta)


def open_ledger(config: Config, directory: Path, site: str) -> AnyLedger:
    """The ledger of a simulated site, wherever it lies; its ceiling is what the run may cost."""
    if ledgers_path(directory).exists():
        return open_ledgers(config, directory).of(site)
    return _own_ledger(config, directory, site)


def _own_ledger(config: Config, directory: Path, site: str) -> Ledger:
    return Ledger(
        ledger_path(directory, site),
        ceiling_epsilon=_ceiling(config),
        delta=config.privacy.delta,
        simulated=True,
    )


def _ceiling(config: Config) -> float | None:
    privacy = config.privacy
    if privacy.name == "none" or privacy.noise_multiplier is None:
        return privacy.epsilon
    steps = config.rounds * config.strategy.local_steps
    schedule = GaussianRelease(
        noise_multiplier=privacy.noise_multiplier, sampling_rate=privacy.sampling_rate, steps=steps
    )
    return epsilon([schedule], privacy.delta)


def open_site(context: Context, asked: Asked | None = None) -> OpenSite:
    """The site that a node stands for; kept open for the next message of the same run.

    Args:
        asked: what for; a hospital opens for plans that it admits, and for nothing else.

    Raises:
        ClientError: site_absent, if the node stands for no site, or for one that takes no part; of
            a hospital, why it does not take the plan.
    """
    keeper = keeper_of(context)
    if keeper is not None:
        if asked is None:
            raise ClientError("site_absent", "A hospital opens for a plan; none was named.")
        return keeper.open(asked)
    partition = int(context.node_config.get("partition-id", -1))
    if partition < 0:  # Attack: a run's settings name folders, which a node that is nobody's must not touch.
        raise ClientError("site_absent", "This node stands for no site: it has neither a home nor a number.")
    run = context.run_config
    config, part = str(run.get("config", "")), str(run.get("part", ""))
    directory = str(run.get("directory", ""))
    key = (threading.get_ident(), config, part, directory)
    if _OPEN.key != key:
        close_sites()
        _OPEN.key = key
    if partition not in _OPEN.sites:
        if _OPEN.run is None:
            shared = run.get(LEDGERS) == SHARED
            _OPEN.run = _simulated_run(config=config, part=part, directory=directory, shared=shared)
        _OPEN.sites[partition] = _simulated_site(partition, _OPEN.run)
    return _OPEN.sites[partition]


def sites_open() -> tuple[OpenSite, ...]:
    """The simulated sites that this process holds open."""
    return tuple(_OPEN.sites.values())


def keeper_of(context: Context) -> Keeper | None:
    """The doorkeeper of the hospital that a node stands for; None in a simulation."""
    rehearsed = _REHEARSED.get()
    home = str(context.node_config.get("home", ""))
    if rehearsed is not None or not home:
        return rehearsed
    from client.hospital import hospital

    return hospital(home)


@contextmanager
def rehearsing(keeper: Keeper) -> Iterator[None]:
    """Within it, every node of this thread stands for this doorkeeper's site."""
    token = _REHEARSED.set(keeper)
    try:
        yield
    finally:
        _REHEARSED.reset(token)


def close_sites() -> None:
    """Closes the ledgers of the sites that this process holds open, and lets go of their data."""
    for site in _OPEN.sites.values():
        site.ledger.close()
    if _OPEN.run is not None and _OPEN.run.ledgers is not None:
        _OPEN.run.ledgers.close()
    _OPEN.sites.clear()
    _OPEN.key = _OPEN.run = None


class _Open:
    """The sites of the run that this process works for; another run's are closed first."""

    def __init__(self) -> None:
        self.key: tuple[int, str, str, str] | None = None
        self.sites: dict[int, OpenSite] = {}
        self.run: _Run | None = None


_OPEN = _Open()
LEDGERS, SHARED = "ledgers", "shared"
"""Key and value of a run configuration with which all simulated sites of the process share a file."""
_REHEARSED: ContextVar[Keeper | None] = ContextVar("rehearsed", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What the simulated sites of a run have in common in this process.

    Attributes:
        model: scratch space of all of them, one after the other.
        ledgers: their file; None if each has its own.
    """

    config: Config
    part: Part
    home: Path
    names: tuple[str, ...]
    task: Task
    model: nn.Module
    ledgers: SharedLedger | None


def _simulated_run(*, config: str, part: str, directory: str, shared: bool) -> _Run:
    settings, home = from_json(config or "{}"), Path(directory)
    if not home.is_absolute():
        raise ClientError("site_absent", "Expected an absolute path in the run configuration's `directory`.")
    task = _data(_data_key(settings))[0]
    together = ledgers_path(home).exists() or (shared and not (home / "sites").exists())
    return _Run(
        config=settings,
        part=part_from_json(part),
        home=home,
        names=site_names(settings),
        task=task,
        model=models.build(settings.model, task).to(_device(settings)),
        ledgers=open_ledgers(settings, home) if together else None,
    )


def _simulated_site(partition: int, run: _Run) -> OpenSite:
    names, settings = run.names, run.config
    if not 0 <= partition < len(names) or names[partition] in run.part.left_out:
        raise ClientError("site_absent", f"No site takes part as number {partition}; there are {len(names)}.")
    name = names[partition]
    examples = training_examples(settings, name, run.part)
    ledger = _own_ledger(settings, run.home, name) if run.ledgers is None else run.ledgers.of(name)
    return OpenSite(
        name=name,
        config=settings,
        task=run.task,
        model=run.model,
        examples=(examples if run.model.reads_series else examples.without_series()).to(_device(settings)),
        secret=site_secret_from_seed(settings.seed, name),
        ledger=ledger,
        simulated=True,
        most_steps=most_steps(settings, partition),
    )


def most_steps(config: Config, partition: int) -> int | None:
    """Local steps that a simulated site does in a round at most; None: what the plan asks.

    Raises:
        ClientError: site_absent, if engine.most_steps has not a number for each site.
    """
    given = config.engine.most_steps
    if given is None:
        return None
    if len(given) != len(site_names(config)):
        raise ClientError("site_absent", "Expected in engine.most_steps a number for each site.")
    return int(given[partition])


def _data_key(config: Config) -> str:
    """What windows depend on, and nothing else, so that folds and models share them."""
    return to_json(
        replace(Config(), data=config.data, task=config.task, sites=config.sites, seed=config.seed)
    )


@lru_cache(maxsize=2)
def _data(key: str) -> tuple[Task, dict[str, Examples]]:
    config = from_json(key)
    task = tasks.build(config.task)
    return task, {site.name: task.examples(site) for site in connectors.open_sites(config)}


def _device(config: Config) -> torch.device:
    if config.engine.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.engine.device)
