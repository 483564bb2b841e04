"""A policy refuses each thing that it does not admit, with that thing's code, and waits by default."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import CODES, ClientError
from client.policy import DEFAULT_POLICY, Facts, Policy, cost, judge, parse_policy, policy_to_toml
from conf.schema import Model, Strategy, Task
from privacy.accounting import calibrate
from trust.plan import Plan, Terms

POLICY = parse_policy(DEFAULT_POLICY)
AUTOMATIC = replace(POLICY, automatic=True, automatic_tasks=("heart",), automatic_epsilon_per_plan=8.0)
TERMS = Terms(
    private=True,
    noise_multiplier=calibrate(8.0, 1e-4, 1.0, 20),
    clip_norm=0.25,
    sampling_rate=1.0,
    windows_per_patient=64,
    steps=20,
    epsilon=8.0,
    delta=1e-4,
)
PLAN = Plan(
    purpose="test",
    task=Task(name="heart"),
    model=Model(),
    strategy=Strategy(),
    terms=TERMS,
    rounds=20,
    base_sha256="0" * 64,
)
FACTS = Facts(key="k" * 16, patients=12, plugin_fault="", spent_after=8.0)


def test_a_plan_that_passes_waits_for_a_person_by_default() -> None:
    verdict = judge(POLICY, PLAN, FACTS)
    assert (verdict.decision, verdict.code) == ("wait", "awaiting_approval")


def test_a_plan_within_the_automatic_limits_is_admitted() -> None:
    assert judge(AUTOMATIC, PLAN, FACTS).decision == "admit"


@pytest.mark.parametrize(
    "policy",
    [
        replace(AUTOMATIC, automatic=False),
        replace(AUTOMATIC, automatic_tasks=("glucose",)),
        replace(AUTOMATIC, automatic_epsilon_per_plan=7.9),
    ],
    ids=["switched off", "another task", "costs more"],
)
def test_what_is_beyond_the_automatic_limits_waits(policy: Policy) -> None:
    assert judge(policy, PLAN, FACTS).decision == "wait"


def test_no_plan_without_privacy_runs_automatically() -> None:
    open_house = replace(AUTOMATIC, required=False, automatic_epsilon_per_plan=1e9)
    plain = replace(PLAN, terms=replace(TERMS, private=False, noise_multiplier=0.0, epsilon=None))
    assert judge(open_house, plain, FACTS).decision == "wait"


@pytest.mark.parametrize(
    ("policy", "plan", "facts", "code"),
    [
        (POLICY, replace(PLAN, versions="9.9"), FACTS, "version_refused"),
        (replace(POLICY, coordinators=("other",)), PLAN, FACTS, "key_refused"),
        (replace(POLICY, aggregations=()), PLAN, FACTS, "terms_refused"),
        (replace(POLICY, tasks=("glucose",)), PLAN, FACTS, "task_refused"),
        (replace(POLICY, models=("mlp",)), PLAN, FACTS, "model_refused"),
        (replace(POLICY, strategies=("fedprox",)), PLAN, FACTS, "strategy_refused"),
        (POLICY, PLAN, replace(FACTS, plugin_fault="other bytes"), "plugin_refused"),
        (
            POLICY,
            replace(PLAN, terms=replace(TERMS, private=False, noise_multiplier=0.0, epsilon=None)),
            FACTS,
            "terms_refused",
        ),
        (POLICY, replace(PLAN, terms=replace(TERMS, delta=1e-3)), FACTS, "delta_refused"),
        (replace(POLICY, epsilon_per_plan=7.9), PLAN, FACTS, "epsilon_refused"),
        (POLICY, PLAN, replace(FACTS, patients=4), "too_few_patients"),
        (POLICY, PLAN, replace(FACTS, spent_after=16.01), "budget_exhausted"),
    ],
)
def test_each_rule_refuses_with_its_code_also_where_plans_run_automatically(
    policy: Policy, plan: Plan, facts: Facts, code: str
) -> None:
    limits = {"automatic": True, "automatic_tasks": ("heart",), "automatic_epsilon_per_plan": 100.0}
    for tried in (policy, replace(policy, **limits)):  # type: ignore[arg-type]  # values are of their fields
        verdict = judge(tried, plan, facts)
        assert (verdict.decision, verdict.code) == ("refuse", code)
        assert verdict.code in CODES
        assert verdict.text


def test_epsilon_is_the_sites_own_and_a_plan_that_understates_it_is_refused() -> None:
    quiet = replace(TERMS, noise_multiplier=TERMS.noise_multiplier / 2)
    claimed = judge(replace(POLICY, epsilon_per_plan=100.0), replace(PLAN, terms=quiet), FACTS)
    assert claimed.code == "terms_refused"
    assert "claims" in claimed.text
    honest = replace(quiet, epsilon=cost(replace(PLAN, terms=quiet), 1e-4))
    assert judge(POLICY, replace(PLAN, terms=honest), FACTS).code == "epsilon_refused"


def test_patients_that_were_not_counted_yet_do_not_refuse() -> None:
    assert judge(POLICY, PLAN, replace(FACTS, patients=None)).decision == "wait"


def test_the_default_policy_survives_its_own_text() -> None:
    assert parse_policy(policy_to_toml(POLICY)) == POLICY
    pinned = replace(AUTOMATIC, plugins={"twinward.tasks:mine": "a" * 64})
    assert parse_policy(policy_to_toml(pinned)) == pinned


def test_every_key_and_every_code_of_a_verdict_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
    for section, entries in tomllib.loads(DEFAULT_POLICY).items():
        for key in entries:
            assert f"| `[{section}] {key}` |" in text
    known = (Path(__file__).parents[2] / "docs" / "federation.md").read_text(encoding="utf-8") + text
    assert [code for code in CODES if f"`{code}`" not in known] == []


@given(st.floats(min_value=1e-3, max_value=1e6), st.integers(min_value=1, max_value=10**9))
def test_numbers_survive_the_text_of_a_policy(epsilon: float, patients: int) -> None:
    policy = replace(POLICY, epsilon_per_plan=epsilon, minimum_patients=patients)
    assert parse_policy(policy_to_toml(policy)) == policy


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[admit]", "[admits]"),
        ("required = true", "require = true"),
        ("required = true", 'required = "yes"'),
        ("epsilon_per_plan = 8.0", "epsilon_per_plan = nan"),
        ("epsilon_per_plan = 8.0", "epsilon_per_plan = inf"),
        ("epsilon_per_plan = 0.0", "epsilon_per_plan = nan"),
        ("delta = 1e-4", "delta = 0"),
        ("delta = 1e-4", ""),
        ("minimum_patients = 5", "minimum_patients = 5.0"),
        ("minimum_patients = 5", "minimum_patients = 0"),
        ('tasks = ["glucose", "heart", "hypoxemia"]', 'tasks = "glucose"'),
        ("[plugins]", "[plugins]\nx = 'short'"),
        ("[plugins]", "[surprise]"),
        ("[admit]", "[admit"),
    ],
)
def test_a_policy_that_is_not_understood_whole_admits_nothing(before: str, after: str) -> None:
    assert before in DEFAULT_POLICY
    with pytest.raises(ClientError, match="policy_unreadable"):
        parse_policy(DEFAULT_POLICY.replace(before, after))
