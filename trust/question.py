"""A question: how many patients of the sites are so and so, as data with one hash.

A question is to patients' numbers what a plan (trust/plan.py) is to training: signed by the coordinator,
offered to each site, approved there, charged, and answered once. Its cells are public and stand in it, so
that an answer is numbers alone. Whoever asks for the same again, letter by letter, gets the same bytes.

A quantity is a signal's summary over a patient's record, or a static attribute; it is written
`mean(glucose)` or `age`. A condition compares one with a number or a word, `age >= 50`; a patient of whom
the quantity is not known fulfils no condition. All conditions must hold.

The canonical form is that of plans: JSON in UTF-8, sorted keys, no spaces.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Final, Literal

from trust.digest import sha256
from trust.errors import PlanError
from trust.plan import RELEASE, Plan
from trust.plan import from_json as plan_from_json

VERSION: Final = 1
KINDS: Final = ("count", "histogram", "quantiles")
SUMMARIES: Final = ("mean", "last", "min", "max")
COMPARISONS: Final = ("<=", ">=", "!=", "<", ">", "=")
MOST_CELLS: Final = 200
MOST_CONDITIONS: Final = 16
MOST_LEVELS: Final = 20
LONGEST_WORD: Final = 200
LONGEST_TEXT: Final = 40_000

Kind = Literal["count", "histogram", "quantiles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One value of each patient.

    Attributes:
        name: of a signal of the catalogue, or of a column of the patients' table.
        summary: of the signal over the record, one of SUMMARIES; empty for an attribute.
    """

    name: str
    summary: str = ""

    def __str__(self) -> str:
        return f"{self.summary}({self.name})" if self.summary else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A comparison of a quantity with a number, or with a word (= and != only)."""

    of: Quantity
    comparison: str
    value: float | str

    def __str__(self) -> str:
        value = f"{self.value:g}" if isinstance(self.value, float) else self.value
        return f"{self.of} {self.comparison} {value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, in which cells, at what price in privacy.

    Attributes:
        purpose: for the people who approve; another purpose makes another question.
        kind: count has one cell; histogram has one per pair of edges or per category; quantiles are
            made of a histogram, whose cells are gathered where they hold few.
        of: quantity that is counted by; None for a count.
        edges: ascending; cell i is [edge i, edge i+1). Values beyond the ends count in the outermost
            cells.
        categories: words; a patient with another word counts in no cell.
        levels: of the quantiles, ascending, in (0, 1).
        conditions: that all must hold for a patient to count.
        noise_multiplier: standard deviation of the noise in each count, in patients.
        epsilon, delta: upper bound that the coordinator expects; a site computes its own.
        versions: release of the software that the question was made for.
    """

    question: int = VERSION
    purpose: str
    kind: Kind
    of: Quantity | None = None
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    levels: tuple[float, ...] = ()
    conditions: tuple[Condition, ...] = ()
    noise_multiplier: float
    epsilon: float
    delta: float
    versions: str = RELEASE

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise PlanError(
                "This question cannot be answered:\n" + "\n".join(f"- {fault}" for fault in faults)
            )

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical form."""
        return sha256(self.to_json().encode())

    @property
    def offer_hash(self) -> str:
        """The same: a question has no participants."""
        return self.hash

    @property
    def cells(self) -> int:
        """How many numbers an answer has."""
        return 1 if self.kind == "count" else len(self.categories) or len(self.edges) - 1

    def to_json(self) -> str:
        """The canonical form."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def words(self) -> str:
        """The question as one line for people."""
        asked = f"{self.kind} of patients" if self.of is None else f"{self.kind} of {self.of}"
        where = " and ".join(str(condition) for condition in self.conditions)
        return f"{asked} where {where}" if where else asked

    def labels(self) -> tuple[str, ...]:
        """A name for each cell."""
        if self.kind == "count":
            return ("patients",)
        if self.categories:
            return self.categories
        inner = [f"{low:g} to {high:g}" for low, high in pairwise(self.edges)]
        if len(inner) == 1:
            return ("any value",)
        return (f"below {self.edges[1]:g}", *inner[1:-1], f"{self.edges[-2]:g} or more")


def from_json(text: str) -> Question:
    """The question that `Question.to_json` wrote.

    Raises:
        PlanError: not JSON, too long, unknown or missing keys, values of another type, or a question
            that cannot be answered.
    """
    if len(text) > LONGEST_TEXT:
        raise PlanError(f"Expected a question of at most {LONGEST_TEXT} letters; {len(text)} came.")
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise PlanError("Expected a question in JSON; the text does not parse.") from None
    values = _object(Question, data, "question")
    question = Question(
        question=_typed(values["question"], int, "question"),
        purpose=_typed(values["purpose"], str, "purpose"),
        kind=_typed(values["kind"], str, "kind"),
        of=None if values["of"] is None else _quantity(values["of"], "of"),
        edges=tuple(_number(item, "edges") for item in _items(values["edges"], "edges")),
        categories=tuple(
            _typed(item, str, "categories") for item in _items(values["categories"], "categories")
        ),
        levels=tuple(_number(item, "levels") for item in _items(values["levels"], "levels")),
        conditions=tuple(_condition(item) for item in _items(values["conditions"], "conditions")),
        noise_multiplier=_number(values["noise_multiplier"], "noise_multiplier"),
        epsilon=_number(values["epsilon"], "epsilon"),
        delta=_number(values["delta"], "delta"),
        versions=_typed(values["versions"], str, "versions"),
    )
    if question.to_json() != text:  # what was signed and approved is what is hashed
        raise PlanError("Expected a question in its canonical form.")
    return question


def read_offer(text: str) -> Plan | Question:
    """The plan or the question in a text.

    Raises:
        PlanError: it is neither.
    """
    return from_json(text) if _is_question(text) else plan_from_json(text)


def read_quantity(text: str) -> Quantity:
    """The quantity that a person writes: `mean(glucose)`, or `age`.

    >>> read_quantity("last(heart_rate)")
    Quantity(name='heart_rate', summary='last')

    Raises:
        PlanError: it is not of this form.
    """
    match = re.fullmatch(r"\s*(\w+)\s*\(\s*([\w.-]+)\s*\)\s*", text)
    if match is not None and match[1] in SUMMARIES:
        return Quantity(name=match[2], summary=match[1])
    if re.fullmatch(r"\s*[\w.][\w. -]*", text) is None:
        raise PlanError(
            f"Expected a signal's summary such as mean(glucose), or the name of an attribute; {text!r} came."
            f" Summaries: {', '.join(SUMMARIES)}."
        )
    return Quantity(name=text.strip())


def read_condition(text: str) -> Condition:
    """The condition that a person writes: `age >= 50`, `sex = F`.

    >>> str(read_condition("mean(glucose)>180"))
    'mean(glucose) > 180'

    Raises:
        PlanError: it is not of this form.
    """
    match = re.fullmatch(rf"([^<>=!]+)({'|'.join(COMPARISONS)})\s*([^<>=!]+)", text)
    if match is None:
        raise PlanError(
            f"Expected a condition such as 'age >= 50' or 'sex = F'; {text!r} came."
            f" Comparisons: {', '.join(COMPARISONS)}."
        )
    of, value = read_quantity(match[1]), match[3].strip()
    try:
        return Condition(of=of, comparison=match[2], value=float(value))
    except ValueError:
        return Condition(of=of, comparison=match[2], value=value)


def _is_question(text: str) -> bool:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "question" in data


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def _object(kind: type, data: Any, where: str) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    if not isinstance(data, dict) or set(data) != names:
        raise PlanError(f"Expected an object with the keys {sorted(names)} at {where}.")
    return data


def _items(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise PlanError(f"Expected a list at {where}; {type(data).__name__} came.")
    return data


def _typed(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind:
        raise PlanError(f"Expected {kind.__name__} at {where}; {type(value).__name__} came.")
    return value


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float):
        raise PlanError(f"Expected a number at {where}; {type(value).__name__} came.")
    try:
        return float(value)
    except OverflowError:
        raise PlanError(f"Expected a finite number at {where}.") from None


def _quantity(data: Any, where: str) -> Quantity:
    values = _object(Quantity, data, where)
    return Quantity(name=_typed(values["name"], str, where), summary=_typed(values["summary"], str, where))


def _condition(data: Any) -> Condition:
    values = _object(Condition, data, "conditions")
    value = values["value"]
    return Condition(
        of=_quantity(values["of"], "conditions.of"),
        comparison=_typed(values["comparison"], str, "conditions.comparison"),
        value=value if isinstance(value, str) else _number(value, "conditions.value"),
    )


def _faults(question: Question) -> list[str]:
    checks = [*_form(question), *_cells(question), *_price(question)]
    checks += [check for condition in question.conditions for check in _compared(condition)]
    return [text for holds, text in checks if not holds]


def _form(question: Question) -> list[tuple[bool, str]]:
    asked = [] if question.of is None else [question.of]
    words = [question.purpose, *question.categories]
    return [
        (question.question == VERSION, f"question: {VERSION} is understood, {question.question} came"),
        (question.kind in KINDS, f"kind: one of {', '.join(KINDS)}, {question.kind!r} came"),
        (all(_is_quantity(quantity) for quantity in asked), "of: a name, and no summary or a known one"),
        (len(question.conditions) <= MOST_CONDITIONS, f"conditions: at most {MOST_CONDITIONS}"),
        (
            bool(question.purpose.strip()) and all(len(word) <= LONGEST_WORD for word in words),
            f"purpose and categories: 1 to {LONGEST_WORD} letters",
        ),
        (
            re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", question.versions) is not None,
            "versions: a release, MAJOR.MINOR",
        ),
    ]


def _cells(question: Question) -> list[tuple[bool, str]]:
    edges, categories, levels = question.edges, question.categories, question.levels
    if question.kind == "count":
        bare = question.of is None and not (edges or categories or levels)
        return [(bare, "a count has conditions and nothing else")]
    ascending = all(low < high for low, high in pairwise(edges))
    numeric = question.kind == "quantiles" or not categories
    checks = [
        (question.of is not None, f"of: {question.kind} of which quantity"),
        (
            not numeric or (2 <= len(edges) <= MOST_CELLS + 1 and ascending and _finite(edges)),
            f"edges: 2 to {MOST_CELLS + 1} finite numbers, ascending",
        ),
        (
            numeric or (not edges and len(set(categories)) == len(categories) <= MOST_CELLS),
            f"categories: at most {MOST_CELLS}, each once, and then no edges",
        ),
        (all(word == word.strip() != "" for word in categories), "categories: words without outer blanks"),
    ]
    if question.kind == "quantiles":
        proper = all(low < high for low, high in zip((0.0, *levels), (*levels, 1.0), strict=True))
        checks.append((not categories, "quantiles: of numbers, not of categories"))
        checks.append(
            (1 <= len(levels) <= MOST_LEVELS and proper, f"levels: 1 to {MOST_LEVELS}, ascending in (0, 1)")
        )
    else:
        checks.append((not levels, "levels: of quantiles only"))
    return checks


def _price(question: Question) -> list[tuple[bool, str]]:
    noise = question.noise_multiplier
    return [
        (0 < noise < math.inf, f"noise_multiplier: above 0 and finite, {noise} came"),
        (0 < question.epsilon < math.inf, f"epsilon: above 0 and finite, {question.epsilon} came"),
        (0 < question.delta < 1, f"delta: in (0, 1), {question.delta} came"),
    ]


def _compared(condition: Condition) -> list[tuple[bool, str]]:
    value, word = condition.value, isinstance(condition.value, str)
    return [
        (_is_quantity(condition.of), "conditions.of: a name, and no summary or a known one"),
        (condition.comparison in COMPARISONS, f"comparison: one of {', '.join(COMPARISONS)}"),
        (
            not word or (condition.comparison in ("=", "!=") and not condition.of.summary),
            "a word is compared with = or !=, and with an attribute",
        ),
        (
            0 < len(value.strip()) <= LONGEST_WORD if isinstance(value, str) else math.isfinite(value),
            f"conditions.value: a finite number, or a word of 1 to {LONGEST_WORD} letters",
        ),
    ]


def _is_quantity(quantity: Quantity) -> bool:
    return 0 < len(quantity.name) <= LONGEST_WORD and quantity.summary in ("", *SUMMARIES)


def _finite(numbers: tuple[float, ...]) -> bool:
    return all(math.isfinite(number) for number in numbers)
