"""A hospital's own data: from the folder that site.json names to the windows of a task."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from client import plugins
from client.errors import ClientError
from client.home import SiteSettings
from client.site import only
from conf import schema
from twin.connectors.folder import describe, read_site
from twin.errors import DataError
from twin.site import Site
from twin.tasks.protocol import Examples, Task

Stamp = tuple[tuple[str, int, int], ...]


def windows(settings: SiteSettings, task: schema.Task, pins: Mapping[str, str]) -> tuple[Task, Examples]:
    """The task and the windows of every patient who has one. Kept in this process until a file changes.

    Raises:
        ClientError: data_unreadable, plugin_refused.
    """
    folder = data_folder(settings)
    values = tuple(sorted(vars(task).items()))
    key = (str(folder), _stamp(folder), settings.timezone, values, tuple(sorted(pins.items())))
    return _windows(*key)


def read_data(settings: SiteSettings) -> Site:
    """The site's observations and patients, cleaned.

    Raises:
        ClientError: data_unreadable, naming every fault.
    """
    folder = data_folder(settings)
    return _site(str(folder), _stamp(folder), settings.timezone)


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


def _stamp(folder: Path) -> Stamp:
    """Changes when a file of the folder does."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=2)
def _site(folder: str, stamp: Stamp, timezone: str | None) -> Site:  # noqa: ARG001  the stamp is part of the key
    try:
        reading = read_site(Path(folder), timezone)
    except (DataError, OSError) as error:
        raise _unreadable(str(error)) from None
    if reading.problems:
        raise _unreadable(describe(list(reading.problems)))
    return reading.site


@lru_cache(maxsize=4)
def _windows(
    folder: str,
    stamp: Stamp,
    timezone: str | None,
    task_values: tuple[tuple[str, Any], ...],
    pins: tuple[tuple[str, str], ...],
) -> tuple[Task, Examples]:
    task = plugins.build_task(schema.Task(**dict(task_values)), dict(pins))
    try:
        examples = task.examples(_site(folder, stamp, timezone))
    except DataError as error:
        raise _unreadable(str(error)) from None
    return task, only(examples, tuple(sorted(examples.patients)))


def _unreadable(text: str) -> ClientError:
    return ClientError("data_unreadable", text)
