"""`twinward coordinator ask|questions`: how many patients are there for a study, with privacy."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from typing import TYPE_CHECKING, Any

from cli.coordinator import WAIT_S, coordinator_of, operator_parser, seconds
from cli.words import output, read
from conf.errors import ConfigError

if TYPE_CHECKING:
    from server.operator import Coordinator
    from trust.question import Question

_ASK = """\
examples:
  twinward coordinator ask count --where 'age >= 50' --where 'sex = F' --purpose "glucose study" --wait
  twinward coordinator ask histogram 'mean(glucose)' --edges 70,140,180,250,400 --purpose "glucose study"
  twinward coordinator ask histogram sex --categories F,M --purpose "glucose study"
  twinward coordinator ask quantiles age --edges 0:100:5 --levels 0.25,0.5,0.75 --purpose "glucose study"

A quantity is a signal over a patient's whole record, mean(...), last(...), min(...) or max(...), in the
unit of docs/data.md; or a column of the patients' table. Edges and categories are public: choose them
without the data. Each patient counts in at most one cell. Hospitals approve questions as they approve
plans, and the cost is charged to their privacy ledgers. The same question again costs nothing and has the
same answer.
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return _ask(name, words) if name == "coordinator ask" else _questions(name, words)


def _ask(name: str, words: list[str]) -> int:
    args = operator_parser(name, "Ask hospitals how many patients are so and so.", _ASK)
    args.add_argument("kind", choices=["count", "histogram", "quantiles"])
    args.add_argument("of", nargs="?", default="", help="quantity, as age or mean(glucose); none for a count")
    args.add_argument("--where", action="append", default=[], help="condition; several must all hold")
    args.add_argument("--edges", default="", help="of the cells: 70,140,180 or low:high:step")
    args.add_argument("--categories", default="", help="words of an attribute, with commas between them")
    args.add_argument("--levels", default="0.25,0.5,0.75", help="of quantiles; default 0.25,0.5,0.75")
    args.add_argument("--purpose", required=True, help="what for; the hospitals' people read it")
    args.add_argument("--epsilon", type=float, default=0.5, help="cost at each hospital; default 0.5")
    args.add_argument("--delta", type=float, default=1e-4, help="at which it is stated; default 1e-4")
    args.add_argument("--sites", default="", help="names with commas between them; default all members")
    args.add_argument(
        "--approval-deadline", type=seconds, default=7 * 86400.0, help="90s, 30m, 2h, 7d; default 7d"
    )
    args.add_argument("--wait", action="store_true", help="until all have answered, or the deadline")
    said = read(args, words)
    asked = question(said)
    with coordinator_of(said.operator, said.address) as at:
        found = at.call(
            "ask",
            question=asked.to_json(),
            request=secrets.token_hex(16),
            approval_s=said.approval_deadline,
            sites=[site for site in said.sites.split(",") if site],
        )["question"]
        if said.wait:
            found = _wait(at, found, quiet=said.json)
    if said.json:
        print(json.dumps(found, indent=2))
    elif said.wait:
        show(found)
    else:
        print(f"Asked {found['id']}. The answers: twinward coordinator questions {found['id']}")
    return 0 if found["answered"] or not said.wait else 1


def question(said: argparse.Namespace) -> Question:
    """The question in the words of a command.

    Raises:
        ConfigError: it is none.
    """
    from privacy.accounting import calibrate, epsilon
    from privacy.errors import PrivacyError
    from privacy.questions import release
    from trust.errors import PlanError
    from trust.question import Question, read_condition, read_quantity

    try:
        noise = calibrate(said.epsilon, said.delta, 1.0, 1)
        return Question(
            purpose=said.purpose,
            kind=said.kind,
            of=read_quantity(said.of) if said.of else None,
            edges=_edges(said.edges),
            categories=tuple(word.strip() for word in said.categories.split(",") if word.strip()),
            levels=_numbers(said.levels, "--levels") if said.kind == "quantiles" else (),
            conditions=tuple(read_condition(text) for text in said.where),
            noise_multiplier=noise,
            epsilon=epsilon([release(noise)], said.delta),
            delta=said.delta,
        )
    except (PlanError, PrivacyError) as error:
        raise ConfigError(str(error)) from None


def _edges(text: str) -> tuple[float, ...]:
    if ":" not in text:
        return _numbers(text, "--edges") if text else ()
    parts = _numbers(text.replace(":", ","), "--edges")
    low, high, step = parts if len(parts) == 3 else (0.0, 0.0, 0.0)
    if not (step > 0 and low < high and (high - low) / step <= 1000):
        raise ConfigError(f"--edges: expected low:high:step such as 0:100:5; {text!r} came")
    count = round((high - low) / step)
    return tuple(round(low + step * place, 9) for place in range(count + 1))


def _numbers(text: str, where: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"{where}: expected numbers with commas between them; {text!r} came") from None


def _questions(name: str, words: list[str]) -> int:
    args = operator_parser(name, "List questions, show the answers to one, or withdraw one.", "")
    args.add_argument("question", nargs="?", help="id of one, such as question-0001")
    args.add_argument("--wait", action="store_true", help="until all have answered it, or its deadline")
    args.add_argument("--withdraw", action="store_true", help="ask no site any more; answers stay spent")
    args.add_argument("--why", default="", help="reason of a withdrawal, for the audit log")
    said = read(args, words)
    if (said.wait or said.withdraw) and said.question is None:
        raise ConfigError("say which question: twinward coordinator questions question-0001 ...")
    with coordinator_of(said.operator, said.address) as at:
        if said.question is None:
            found = at.call("questions")["questions"]
        elif said.withdraw:
            found = at.call("withdraw", question=said.question, why=said.why)["question"]
        else:
            found = at.call("question", question=said.question)["question"]
            found = _wait(at, found, quiet=said.json) if said.wait else found
    if said.json:
        print(json.dumps(found, indent=2))
    elif said.question is None:
        _show_all(found)
    else:
        show(found)
    return 0


def _wait(at: Coordinator, found: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """The question once nobody is asked any more; says on the way what each site says."""
    told = dict.fromkeys(found["sites"], "no_answer")
    while True:
        answer = at.call("question", question=found["id"])
        found = answer["question"]
        says = {site: said["code"] or "answered" for site, said in found["sites"].items()}
        for site in sorted(site for site, code in says.items() if told.get(site) != code):
            if not quiet:
                print(f"{site}: {says[site]}", file=sys.stderr, flush=True)
        told = says
        if found["state"] != "asking":
            return found
        at.call("wait", seen=answer["changes"], timeout_s=WAIT_S)


def _show_all(questions: list[dict[str, Any]]) -> None:
    from rich.table import Table

    if not questions:
        print("Nothing was asked yet. Ask: twinward coordinator ask --help")
        return
    table = Table("question", "state", "asks for", "purpose", "answered", "epsilon", "by", box=None)
    for asked in questions:
        share = f"{len(asked['answered'])}/{len(asked['sites'])}"
        purpose, price = asked["question"]["purpose"], f"{asked['epsilon']:.4g}"
        table.add_row(asked["id"], asked["state"], asked["words"], purpose, share, price, asked["who"])
    output().print(table, highlight=False)


def show(asked: dict[str, Any]) -> None:
    """The answers to a question: of each site, in total, and who refused with which code."""
    from rich.table import Table

    shown = output()
    shown.print(f"{asked['id']} {asked['state']}: {asked['words']}", highlight=False)
    sites = asked["answered"]
    if sites:
        table = Table("", *sites, "in total", "standard error", box=None)
        for place, label in enumerate(asked["cells"]):
            told = [_told(asked["sites"][site]["counts"][place]) for site in sites]
            if "totals" not in asked and set(told) == {_told(-1)}:
                continue  # of quantiles: told together with a later cell
            table.add_row(label, *told, *_sum(asked, place))
        shown.print(table, highlight=False)
    if asked["question"]["kind"] == "quantiles":
        _show_quantiles(asked)
    for site, said in asked["sites"].items():
        if said["code"]:
            shown.print(f"{site}: {said['code']}", highlight=False)
    shown.print(
        f"Noise of {asked['noise']:.4g} patients in each count of a site. Cost at each: epsilon"
        f" {asked['epsilon']:.4g} at delta {asked['delta']:g}, unit patient. Totals are of the"
        f" {len(sites)} of {len(asked['sites'])} sites that answered; what is not told (-) is not in them.",
        highlight=False,
    )


def _show_quantiles(asked: dict[str, Any]) -> None:
    everyone = asked["patients"]
    for entry in asked["quantiles"]:
        print(f"quantile {entry['level']:g}: {entry['value']:g} ({entry['low']:g} to {entry['high']:g})")
    if not asked["quantiles"]:
        print("No site told enough for quantiles.")
        return
    print(
        f"of about {everyone['patients']} patients (standard error {everyone['standard_error']:.3g}); in"
        " brackets two standard errors of the noise. Cells that hold few are told together with the next."
    )


def _sum(asked: dict[str, Any], place: int) -> tuple[str, str]:
    if "totals" not in asked:
        return "", ""
    found = asked["totals"][place]
    if not found["told"]:
        return "-", ""
    kept = f" ({found['suppressed']} not told)" if found["suppressed"] else ""
    return f"{found['patients']}{kept}", f"{found['standard_error']:.3g}"


def _told(count: int) -> str:
    return "-" if count < 0 else str(count)
