"""A coordinator's questions over a grid: who answered, who is asked again, what is added up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

import client.app
from client.hospital import hospital
from link.local import LocalGrid
from link.wire import Answer, Counts, answer, question_answer, read_plan_request
from server.errors import ServerError
from server.inquiries import Inquiries, answered
from server.questioner import Questioner, Reach
from server.questions import DONE, WITHDRAWN, Questions, Said
from tests.hospital_home import AUTOMATIC, founded
from tests.question_asked import question
from trust.errors import PlanError
from trust.question import from_json

SITES = ("alpha", "beta")


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def questions(tmp_path: Path, clock: list[float]) -> Iterator[Questions]:
    opened = Questions(tmp_path / "questions.sqlite", clock=lambda: clock[0])
    yield opened
    opened.close()


def _sites(*says: Callable[[str], RecordDict]) -> LocalGrid:
    """A grid whose nodes, in order, answer a question's hash as they are told."""
    app = ClientApp()

    @app.query("question")
    def handler(message: Message, context: Any) -> Message:
        hash_ = from_json(read_plan_request(message.content).plan).hash
        return Message(says[int(context.node_config["partition-id"])](hash_), reply_to=message)

    return LocalGrid(app, {}, range(len(says)))


def _telling(site: str, *counts: int, smallest: int = 10) -> Callable[[str], RecordDict]:
    return lambda hash_: question_answer(
        Answer(site=site, plan=hash_), Counts(counts=counts, smallest=smallest)
    )


def _refusing(site: str, code: str) -> Callable[[str], RecordDict]:
    return lambda hash_: answer(Answer(site=site, plan=hash_, error=code))


def _reach(grid: LocalGrid, clock: list[float], members: tuple[str, ...] = SITES, **more: Any) -> Reach:
    nodes = dict(zip(SITES, grid.get_node_ids(), strict=False))
    return Reach(
        **{
            "grid": lambda: grid,
            "sites": lambda: members,
            "node_of": nodes.__getitem__,
            "sign": lambda text: "",
            "record": lambda kind, **facts: None,
            "clock": lambda: clock[0],
            "first_pause_s": 0.0,
        }
        | more
    )


def _ask(questions: Questions, **more: Any) -> str:
    what = question("histogram", "age", edges=(20.0, 50.0, 90.0))
    return questions.ask(what, list(SITES), 60.0, who="ann", request=str(more.get("request", "one"))).id


def test_answers_are_kept_and_added_up_over_who_answered(questions: Questions, clock: list[float]) -> None:
    id_ = _ask(questions)
    asker = Questioner(questions, _reach(_sites(_telling("alpha", 30, -1), _telling("beta", 12, 50)), clock))
    assert asker.work()
    assert asker.work() is False
    shown = answered(questions.get(id_))
    assert (shown["state"], shown["answered"]) == (DONE, ["alpha", "beta"])
    one = math.sqrt(4.0**2 + 1 / 12)
    assert shown["totals"] == [
        {"patients": 42, "standard_error": pytest.approx(math.sqrt(2) * one), "told": 2, "suppressed": 0},
        {"patients": 50, "standard_error": pytest.approx(one), "told": 1, "suppressed": 1},
    ]


def test_a_site_that_refuses_is_asked_once_and_one_that_waits_until_the_deadline(
    questions: Questions, clock: list[float]
) -> None:
    id_ = _ask(questions)
    grid = _sites(_refusing("alpha", "question_refused"), _refusing("beta", "awaiting_approval"))
    asker = Questioner(questions, _reach(grid, clock))
    for _ in range(3):
        assert asker.work()
    assert grid.sent == 4
    found = questions.get(id_)
    assert {site: said.code for site, said in found.said.items()} == {
        "alpha": "question_refused",
        "beta": "awaiting_approval",
    }
    clock[0] += 60
    asker.work()
    assert questions.get(id_).state == DONE
    assert answered(questions.get(id_))["totals"][0]["told"] == 0


def test_after_a_crash_who_answered_is_not_asked_again(questions: Questions, clock: list[float]) -> None:
    id_ = _ask(questions)
    first = _sites(_telling("alpha", 30, 20), _refusing("beta", "awaiting_approval"))
    Questioner(questions, _reach(first, clock)).work()
    second = _sites(_telling("alpha", 99, 99), _telling("beta", 12, 50))
    Questioner(questions, _reach(second, clock)).work()
    assert second.sent == 1
    assert questions.get(id_).counts == {"alpha": (30, 20), "beta": (12, 50)}
    questions.note(id_, "alpha", Said(code="", counts=(1, 1), smallest=1))
    assert questions.get(id_).counts["alpha"] == (30, 20)


WRONG = [
    _telling("beta", 30, 20),
    _telling("alpha", 30),
    _telling("alpha", 30, 5),
    _telling("alpha", 30, -2),
    _telling("alpha", 30, 20, smallest=0),
    _telling("alpha", 30, 10**15),
    _refusing("alpha", "A text, not a code"),
    lambda hash_: question_answer(Answer(site="alpha", plan="0" * 64), Counts(counts=(30, 20), smallest=10)),
    lambda hash_: answer(Answer(site="alpha", plan=hash_)),
    lambda hash_: RecordDict(),
]


def test_what_is_no_answer_is_not_added_up(questions: Questions, clock: list[float]) -> None:
    for number, wrong in enumerate(WRONG):
        id_ = _ask(questions, request=str(number))
        Questioner(questions, _reach(_sites(wrong, _telling("beta", 12, 50)), clock)).work()
        found = questions.get(id_)
        assert found.state == DONE
        assert found.counts == {"beta": (12, 50)}
        assert found.said["alpha"].code in ("malformed", "foreign_site")


def test_a_site_that_is_no_member_any_more_is_not_asked(questions: Questions, clock: list[float]) -> None:
    id_ = _ask(questions)
    grid = _sites(_telling("alpha", 30, 20), _telling("beta", 12, 50))
    Questioner(questions, _reach(grid, clock, members=("beta",))).work()
    assert questions.get(id_).said["alpha"].code == "not_a_member"
    assert grid.sent == 1


def test_a_request_that_is_repeated_asks_once_and_a_withdrawn_question_nobody(
    questions: Questions, clock: list[float]
) -> None:
    recorded: list[str] = []
    desk = Inquiries(
        questions=questions, members=lambda: SITES, record=lambda kind, **facts: recorded.append(kind)
    )
    text = question().to_json()
    asked = [desk.ask("ann", text, request="one", approval_s=60.0, sites=[]) for _ in range(2)]
    assert asked[0] == asked[1]
    assert asked[0].sites == SITES
    with pytest.raises(ServerError, match="new request"):
        desk.ask("ann", question(purpose="x").to_json(), request="one", approval_s=60.0, sites=[])
    assert desk.withdraw("ann", asked[0].id, why="no").state == WITHDRAWN
    grid = _sites(_telling("alpha", 30), _telling("beta", 30))
    assert Questioner(questions, _reach(grid, clock)).work() is False
    assert grid.sent == 0
    with pytest.raises(ServerError, match="withdrawn"):
        desk.withdraw("ann", asked[0].id, why="again")
    assert recorded[0] == "question_asked"


def test_an_operator_cannot_ask_what_no_site_could_answer(questions: Questions) -> None:
    desk = Inquiries(questions=questions, members=lambda: SITES, record=lambda kind, **facts: None)

    def ask(text: str, sites: list[str]) -> None:
        desk.ask("ann", text, request="one", approval_s=60.0, sites=sites)

    with pytest.raises(ServerError, match="catalogue"):
        ask(question(where=("mean(mood) > 3",)).to_json(), [])
    with pytest.raises(ServerError, match="gamma"):
        ask(question().to_json(), ["gamma"])
    with pytest.raises(PlanError):
        ask("{}", [])
    for name in ("question-9", "run-0001", "../x", "question-1e3"):
        with pytest.raises(ServerError, match="question"):
            questions.get(name)


def test_a_hospital_approves_and_answers_over_the_grid_and_another_refuses(
    questions: Questions, clock: list[float], tmp_path: Path
) -> None:
    policy = replace(AUTOMATIC, questions=True, epsilon_per_question=2.0)
    with (
        founded(tmp_path / "a", policy, patients=200) as alpha,
        founded(tmp_path / "b", replace(policy, questions=False), site="beta") as beta,
    ):
        beta.home.save_coordinator_keys({alpha.signer.key_id: alpha.signer.public_hex})
        homes = [str(one.home.directory) for one in (alpha, beta)]
        grid = LocalGrid(client.app.app, {}, homes)
        reach = _reach(grid, clock, sign=lambda text: alpha.signer.sign("question", text.encode()))
        what = question()
        id_ = questions.ask(what, list(SITES), 60.0, who="ann", request="one").id
        asker = Questioner(questions, reach)
        asker.work()
        said = questions.get(id_).said
        assert (said["alpha"].code, said["beta"].code) == ("awaiting_approval", "question_refused")
        hospital(homes[0]).approve(what.hash, who="dr a")
        asker.work()
        found = questions.get(id_)
        assert found.state == DONE
        assert found.counts["alpha"][0] == pytest.approx(200, abs=30)
