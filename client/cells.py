"""In which public cell of a question each patient of a site lies; pure.

Each patient's cell follows from that patient's own rows alone, and nothing here fails because of a value:
a value that is missing, or is a word where a number is asked for, fulfils no condition and lies in no cell.
What can fail is the same for whoever the patients are: whether the table has the attribute.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pandas as pd

from client.errors import ClientError
from privacy.questions import NOWHERE
from trust.question import Condition, Quantity, Question
from twin.errors import DataError
from twin.site import Site
from twin.summaries import as_numbers, as_words, of_attribute, of_signal

_COMPARED: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}


def cells_of(question: Question, site: Site) -> np.ndarray:
    """The cell of each patient of `site.patients`, NOWHERE for none; int64 (P,).

    Raises:
        ClientError: quantity_unknown.
    """
    fits_P = np.ones(len(site.patients), dtype=bool)
    for condition in question.conditions:
        fits_P &= _fulfils(condition, site)
    if question.of is None:
        place_P = np.zeros(len(site.patients), dtype=np.int64)
    elif question.categories:
        place_P = _among(as_words(_values(question.of, site)), question.categories)
    else:
        place_P = _between(as_numbers(_values(question.of, site)), np.asarray(question.edges))
    cell_P: np.ndarray = np.where(fits_P, place_P, NOWHERE)
    return cell_P


def cells_sha256(cell_P: np.ndarray, site: Site) -> str:
    """SHA-256 of all that an answer depends on: the patients and their cells."""
    digest = hashlib.sha256("\0".join(map(str, site.patients.index)).encode())
    digest.update(b"\0" + np.ascontiguousarray(cell_P, dtype="<i8").tobytes())
    return digest.hexdigest()


def _fulfils(condition: Condition, site: Site) -> np.ndarray:
    values, compare = _values(condition.of, site), _COMPARED[condition.comparison]
    if isinstance(condition.value, str):
        word_P = as_words(values)
        found_P: np.ndarray = np.asarray(compare(word_P, condition.value), dtype=bool) & (word_P != "")
        return found_P
    number_P = as_numbers(values)
    known_P: np.ndarray = np.asarray(compare(number_P, condition.value), dtype=bool) & ~np.isnan(number_P)
    return known_P


def _among(word_P: np.ndarray, categories: tuple[str, ...]) -> np.ndarray:
    place = {word: number for number, word in enumerate(categories)}
    return np.array([place.get(word, NOWHERE) for word in word_P], dtype=np.int64)


def _between(number_P: np.ndarray, edge_E: np.ndarray) -> np.ndarray:
    """Cells of numbers, those beyond the ends in the outermost; a number that is missing is nowhere."""
    place_P = np.clip(np.searchsorted(edge_E, number_P, side="right") - 1, 0, len(edge_E) - 2)
    inside_P: np.ndarray = np.where(np.isnan(number_P), NOWHERE, place_P).astype(np.int64)
    return inside_P


def _values(of: Quantity, site: Site) -> pd.Series:
    try:
        return of_signal(site, of.name, of.summary) if of.summary else of_attribute(site, of.name)
    except DataError as error:
        raise ClientError("quantity_unknown", str(error)) from None
