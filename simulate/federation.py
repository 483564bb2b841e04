"""A whole federation in this process or over a Ray cluster, with the same apps that run in a network.

Each federation has a directory with the coordinator's file and one ledger per site. Called again on
a directory it continues the run that it finds there; a finished one is read and not trained again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

import client.app
import server.app
from client.ahead import TrainAhead
from client.booking import AnyLedger
from client.site import LEDGERS, SHARED, Part, close_sites, site_names, training_examples
from conf.load import to_json
from conf.schema import Config
from link.flower import COORDINATOR_NODE_ID, RUN_ID
from link.local import LocalGrid
from server.cohorts import cohort_models
from server.errors import ServerError
from server.store import Store
from simulate.clock import ClockedGrid, task_seconds
from simulate.cluster import cluster, ray_grid
from simulate.files import write_atomically
from simulate.ledgers import check_remembers, ledgers
from strategies import asynchronous
from trust.digest import Arrays, arrays_from_bytes
from trust.plan import Plan
from twin.splits import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteResult:
    """What became of one site.

    Attributes:
        patients: that trained, exactly; a simulation may know it. 0 if the site refused.
        declared: the rounded number in the plan; 0 if the site refused.
        train_windows: windows of the patients that trained; 0 if the site refused.
        epsilon: what the site's ledger says was spent at `delta`; None without privacy, 0.0 if the
            site took no plan.
        refused: code under which it does not take part; None if it does.
    """

    patients: int
    declared: int
    train_windows: int
    epsilon: float | None
    delta: float
    refused: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """One committed round; `model_sha256` opens its model with `FederationResult.model_after`.

    `heard` are the sites whose updates counted.

    A round of an asynchronous run makes a version of the model; `clock_s` is when, in virtual seconds.
    """

    number: int
    participants: int
    refused: tuple[tuple[str, str], ...]
    step_norm: float
    bytes_down: int
    bytes_up: int
    model_sha256: str
    clock_s: float | None = None
    heard: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationResult:
    """A finished federation.

    Attributes:
        model: the final global model, parameters and buffers by name, float32.
        sha256: of its canonical bytes, `trust.digest.arrays_to_bytes(model)`, which are safetensors.
        rounds_committed: how many rounds were run over all calls.
        rounds: each of them.
        sites: by name, every site of the configuration that was not left out.
        noise_multiplier: of the plan; 0 without privacy.
        plan_sha256: hash of the plan.
        bytes: models and updates that travelled in committed rounds.
        cohorts: sites and model of each cohort, under a strategy that has cohorts; else empty.
    """

    model: Arrays
    sha256: str
    rounds_committed: int
    rounds: tuple[RoundResult, ...]
    sites: dict[str, SiteResult]
    noise_multiplier: float
    plan_sha256: str
    bytes: int
    directory: Path
    cohorts: tuple[tuple[tuple[str, ...], Arrays], ...] = ()

    @property
    def by_site(self) -> dict[str, Arrays]:
        """The model of each site that is in a cohort."""
        return {site: model for sites, model in self.cohorts for site in sites}

    def model_after(self, number: int) -> Arrays:
        """The global model after a round, read from disk; 0 is the model from which all started."""
        with Store(server.app.store_path(self.directory)) as store:
            plan = store.plan()
            if number == 0 and plan is not None:
                return store.arrays(plan.base_sha256)
            return store.arrays(str(store.round(number).model))


def run_federation(
    config: Config,
    *,
    directory: Path,
    split: Split | None = None,
    left_out: tuple[str, ...] = (),
    patients_limit: Mapping[str, int] | None = None,
    on_round: Callable[[int, Arrays], None] | None = None,
) -> FederationResult:
    """Trains one global model over the sites of a configuration, or continues, or reads it.

    Args:
        directory: of this federation alone; made if it is not there.
        split: which patients train; None is all of them.
        left_out: sites that take no part.
        patients_limit: at most so many training patients at these sites.
        on_round: told the number and the model of each round that this call commits.

    Raises:
        ServerError: no site takes part, or the directory holds a federation of other settings, or
            a file in it is damaged or gone.
    """
    home = directory.absolute()
    part = Part(
        split=split or Split(),
        left_out=tuple(sorted(left_out)),
        patients_limit=tuple(sorted((patients_limit or {}).items())),
    )
    with _damage_told(home):
        if not _finished(config, home, part):
            _check_ledgers(config, home)
            _run(config, home, part, on_round)
        return _read(config, home, part)


def run_config(config: Config, directory: Path, part: Part) -> dict[str, str | int | float | bool]:
    """The flat run configuration that both apps read, in this process or in a Flower run."""
    return {"config": to_json(config), "part": part.to_json(), "directory": str(directory)}


def _run(config: Config, directory: Path, part: Part, on_round: Callable[[int, Arrays], None] | None) -> None:
    settings = run_config(config, directory, part)
    names = site_names(config)
    unknown = sorted(set(part.left_out) - set(names))
    if unknown:
        raise ServerError(f"Expected left_out to name sites of the configuration; {unknown} are none.")
    taking_part = [number for number, name in enumerate(names) if name not in part.left_out]
    context = Context(
        run_id=RUN_ID,
        node_id=COORDINATOR_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config={**settings, "simulated": True},
    )
    task_s = task_seconds(config, names) if asynchronous(config.strategy) else []
    with _grid(config, settings, taking_part, directory) as grid, server.app.listening(on_round):
        clocked = ClockedGrid(grid, [task_s[number] for number in taking_part]) if task_s else grid
        server.app.app(clocked, context)


@contextmanager
def _grid(
    config: Config,
    settings: Mapping[str, str | int | float | bool],
    taking_part: list[int],
    directory: Path,
) -> Iterator[Grid]:
    """What carries messages to the sites; their ledgers are closed afterwards."""
    with cluster(config) as workers:
        if workers is not None:
            with ray_grid(workers, config, settings, taking_part, directory) as grid:
                yield grid
            return
    # Before sites are asked one by one they are trained together, with engine=batched and auto.
    ahead = None if config.engine.name == "local" else TrainAhead()
    try:
        yield LocalGrid(client.app.app, {**settings, LEDGERS: SHARED}, taking_part, ahead=ahead)
    finally:
        if ahead is not None:
            ahead.close()
        close_sites()


def _finished(config: Config, directory: Path, part: Part) -> bool:
    path = server.app.store_path(directory)
    if not path.exists():
        return False
    with Store(path) as store:
        if store.fact("settings") not in (None, server.app.settings_of(config, part.to_json())):
            raise ServerError(
                f"{directory} was begun with other settings than its run has now. If config.yaml was changed "
                "since, put it back and continue; else choose another run.dir."
            )
        return store.fact("final") is not None


@contextmanager
def _damage_told(directory: Path) -> Iterator[None]:
    """Turns what a damaged file raises into one message that says how to go on."""
    try:
        yield
    except (sqlite3.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ServerError(
            f"A file of the federation in {directory} is damaged ({type(error).__name__}). Remove that "
            "folder and run again: it is trained anew, to the same model."
        ) from error


def _check_ledgers(config: Config, directory: Path) -> None:
    """Refuses to go on if a site forgot a plan that it took: the others would train without it, unseen.

    Raises:
        ServerError: naming the site.
    """
    path = server.app.store_path(directory)
    if not path.exists():
        return
    with Store(path) as store:
        plan, sites = store.plan(), store.sites()
        if plan is None or store.fact("accepted") is None:
            return
    with ledgers(config, directory) as ledger_of:
        for name in (site for site, (_, code) in sites.items() if not code):
            check_remembers(ledger_of(name), plan.hash, directory, name)


def _read(config: Config, directory: Path, part: Part) -> FederationResult:
    with Store(server.app.store_path(directory)) as store:
        plan, final = store.plan(), store.fact("final")
        if plan is None or final is None:
            raise ServerError(f"Expected a finished federation in {directory}; it is not finished.")
        sites = store.sites()
        rounds = _rounds(store)
        data = store.data(final)
        cohorts = cohort_models(store)
    return FederationResult(
        model=arrays_from_bytes(data),
        sha256=final,
        rounds_committed=len(rounds),
        rounds=rounds,
        sites=_site_results(config, directory, part, sites, plan.hash),
        noise_multiplier=plan.terms.noise_multiplier,
        plan_sha256=plan.hash,
        bytes=sum(entry.bytes_down + entry.bytes_up for entry in rounds),
        directory=directory,
        cohorts=cohorts,
    )


def _rounds(store: Store) -> tuple[RoundResult, ...]:
    refusals = store.refusals()
    plan = store.plan()
    results = []
    for row in store.rounds():
        if row.state != "committed":
            continue
        replies = store.reply_bytes(row.number)
        results.append(
            RoundResult(
                number=row.number,
                participants=len(replies),
                refused=tuple((site, reason) for number, site, reason in refusals if number == row.number),
                step_norm=row.diagnostics["step_norm"],
                bytes_down=asked(store, plan, row.number) * len(store.data(row.base)),
                bytes_up=sum(replies.values()),
                model_sha256=str(row.model),
                clock_s=row.diagnostics.get("clock_s"),
                heard=tuple(replies),
            )
        )
    return tuple(results)


def asked(store: Store, plan: Plan | None, number: int) -> int:
    """How many sites were sent the base of a round."""
    return len(store.tasks.handed_out(number)) or (0 if plan is None else len(plan.asked(number)))


def _site_results(
    config: Config, directory: Path, part: Part, sites: Mapping[str, tuple[int, str]], plan_hash: str
) -> dict[str, SiteResult]:
    """What became of each site; kept beside the run, so that reading it needs no patient's data."""
    path = directory / "sites.json"
    if path.exists():
        return {name: SiteResult(**entry) for name, entry in json.loads(path.read_text()).items()}
    with ledgers(config, directory) as ledger_of:
        results = {
            name: _site(config, directory, part, name, plan_hash, ledger_of, *entry)
            for name, entry in sites.items()
        }
    text = json.dumps({name: asdict(entry) for name, entry in results.items()}, indent=1)
    write_atomically(path, text.encode())
    return results


def _site(
    config: Config,
    directory: Path,
    part: Part,
    name: str,
    plan_hash: str,
    ledger_of: Callable[[str], AnyLedger],
    declared: int,
    code: str,
) -> SiteResult:
    private = config.privacy.name != "none"
    if code:
        spent = 0.0 if private else None
        return SiteResult(
            patients=0,
            declared=0,
            train_windows=0,
            epsilon=spent,
            delta=config.privacy.delta,
            refused=code,
        )
    examples = training_examples(config, name, part)
    ledger = ledger_of(name)
    check_remembers(ledger, plan_hash, directory, name)
    epsilon = ledger.spent() if private else None
    return SiteResult(
        patients=len(examples.patients),
        declared=declared,
        train_windows=len(examples),
        epsilon=epsilon,
        delta=config.privacy.delta,
        refused=None,
    )
