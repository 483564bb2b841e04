"""A hospital's own data: from its store or the folder that site.json names, to the windows of a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from client import plugins, research
from client.errors import ClientError
from client.home import SiteHome, SiteSettings
from client.site import only
from conf import schema
from twin.connectors.folder import describe, read_site
from twin.errors import DataError
from twin.site import Site
from twin.store.reading import Purpose
from twin.tasks.parts import examples_of
from twin.tasks.protocol import Examples, Task

STORE = "store"
"""As data_path: the site's own store."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where data are, and in which state; equal ones hold the same."""

    kind: str
    place: str
    stamp: tuple[object, ...]
    timezone: str | None = None
    purpose: Purpose = "research"


def windows(
    home: SiteHome,
    task: schema.Task,
    pins: Mapping[str, str],
    *,
    purpose: Purpose = "research",
    series: bool = True,
) -> tuple[Task, Examples]:
    """The task and the windows of every patient who has one, and of a store, who consents to research.

    Kept in this process until a file changes; of a store until a patient's word changes, or a while.

    Args:
        purpose: of reading a store; care is for the patients' own models, which stay here.
        series: whether the history is needed; many patients' takes gigabytes.

    Raises:
        ClientError: data_unreadable, plugin_refused, too_few_patients.
    """
    values = tuple(sorted(vars(task).items()))
    return _windows(_source(home, purpose), values, tuple(sorted(pins.items())), series)


def read_data(home: SiteHome) -> Site:
    """The site's observations and patients, cleaned; of a store, those who consent to research.

    Raises:
        ClientError: data_unreadable, naming every fault; too_few_patients.
    """
    return _site(_source(home))


def forget() -> None:
    """Lets go of all data that are kept in this process."""
    _windows.cache_clear()
    _site.cache_clear()


def reads_store(home: SiteHome) -> bool:
    """Whether training reads the site's store."""
    path = home.settings().data_path
    return path == STORE or (path is None and home.has_store)


def data_folder(settings: SiteSettings) -> Path:
    """The folder with this site's tables: `data_path`, or the folder of the site's name in it.

    Raises:
        ClientError: data_unreadable.
    """
    if settings.data_path is None:
        raise _unreadable("site.json names no data_path, so there is no data to train on.")
    path = Path(settings.data_path).expanduser()
    inner = path / settings.site
    found = inner if inner.is_dir() else path
    if not found.is_dir():
        raise _unreadable(f"Expected a folder at data_path {path} of site.json; there is none.")
    return found


def device_of(name: str) -> torch.device:
    """The device of a setting auto, cpu or cuda."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _source(home: SiteHome, purpose: Purpose = "research") -> _Source:
    if reads_store(home):
        return _Source(STORE, str(home.directory), research.stamp(home), purpose=purpose)
    settings = home.settings()
    folder = data_folder(settings)
    return _Source("folder", str(folder), _stamp(folder), settings.timezone)


def _stamp(folder: Path) -> tuple[object, ...]:
    """Changes when a file of the folder does."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=2)
def _site(source: _Source) -> Site:
    try:
        if source.kind == STORE:
            return research.site(SiteHome(source.place), source.purpose)
        reading = read_site(Path(source.place), source.timezone)
    except (DataError, OSError) as error:
        raise _unreadable(str(error)) from None
    if reading.problems:
        raise _unreadable(describe(list(reading.problems)))
    return reading.site


@lru_cache(maxsize=4)
def _windows(
    source: _Source,
    task_values: tuple[tuple[str, Any], ...],
    pins: tuple[tuple[str, str], ...],
    series: bool,
) -> tuple[Task, Examples]:
    task = plugins.build_task(schema.Task(**dict(task_values)), dict(pins))
    try:
        examples = examples_of(task, _parts(source), series=series)
    except DataError as error:
        raise _unreadable(str(error)) from None
    return task, only(examples, tuple(sorted(examples.patients)))


def _parts(source: _Source) -> Iterable[Site]:
    """The site, of a store some patients at a time: its windows are kept, its rows need not be."""
    if source.kind == STORE:
        return research.parts(SiteHome(source.place), source.purpose)
    return (_site(source),)


def _unreadable(text: str) -> ClientError:
    return ClientError("data_unreadable", text)
