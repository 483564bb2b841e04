"""Training many sites at once gives each the update that it gets alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from client.site import Part, site_names, training_examples
from client.stacked import Work, can_stack, train_many
from client.trainer import train, trainable
from conf.load import load
from conf.schema import Config, Strategy
from privacy.errors import PrivacyError
from privacy.noise import NoiseStream
from tests.heart_hospitals import settings, write_folder
from trust.digest import Arrays
from trust.plan import Terms
from twin import models, tasks
from twin.models.chain import hidden_layers
from twin.tasks.protocol import Examples

CASES = [
    ("heart", "linear", True),
    ("heart", "mlp", True),
    ("heart", "mlp", False),
    ("glucose", "linear", True),
    ("glucose", "mlp", False),
    ("glucose", "tcn", True),
    ("glucose", "tcn", False),
    ("glucose", "gru", True),
    ("glucose", "gru", False),
    ("hypoxemia", "mlp", True),
    ("hypoxemia", "tcn", True),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hospitals")
    write_folder(root / "heart", patients=9)
    for site in ("alpha", "beta", "gamma"):
        (root / "records" / site).mkdir(parents=True)
        _records(site).to_csv(root / "records" / site / "observations.csv", index=False)
    return root


def _records(site: str, patients: int = 6, minutes: int = 600) -> pd.DataFrame:
    """Ten hours of glucose, oxygen saturation and pulse that wander."""
    draws = np.random.default_rng(len(site))
    parts = []
    for patient in range(patients):
        for signal, unit, every_min, middle, width in (
            ("glucose", "mg/dL", 5, 140.0, 8.0),
            ("spo2", "%", 1, 92.0, 0.7),
            ("heart_rate", "/min", 1, 80.0, 3.0),
        ):
            at_min = np.arange(0, minutes, every_min)
            walk = np.zeros(len(at_min))
            for place in range(1, len(at_min)):
                walk[place] = 0.95 * walk[place - 1] + draws.normal(0, width)
            value = np.round(np.clip(middle + walk, 60.0, 99.0 if signal == "spo2" else 300.0), 1)
            time = pd.Timestamp("2024-03-01T00:00:00Z") + pd.to_timedelta(at_min, unit="min")
            parts.append(
                pd.DataFrame(
                    {
                        "patient_id": f"{site}-{patient}",
                        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
                        "signal": signal,
                        "value": value,
                        "unit": unit,
                    }
                )
            )
    return pd.concat(parts)


def _config(task: str, model: str, folder: Path) -> Config:
    words = [f"model={model}", *([] if model == "linear" else ["model.hidden=6"])]
    if task == "heart":
        return settings(folder / "heart", *words)
    return load(["data=folder", f"data.path={folder / 'records'}", f"task={task}", *words])


def _terms(*, private: bool, rate: float = 1.0, windows: int = 7, clip: float = 0.2) -> Terms:
    return Terms(
        private=private,
        noise_multiplier=0.7 if private else 0.0,
        clip_norm=clip,
        sampling_rate=rate,
        windows_per_patient=windows,
        steps=3,
        epsilon=None,
        delta=1e-4,
    )


@cache
def _examples(task: str, folder: Path) -> tuple[Examples, ...]:
    config = _config(task, "linear", folder)
    return tuple(training_examples(config, name, Part()) for name in site_names(config))


def _ragged(sites: tuple[Examples, ...]) -> list[Examples]:
    """Sites of unequal size, with patients of unequal numbers of windows."""
    made = []
    for number, whole in enumerate(sites):
        keep_N = torch.arange(len(whole)) % (number + 2) != 1
        keep_N |= whole.patient_N == 0
        made.append(whole.at(keep_N & (whole.patient_N < len(whole.patients) - number)))
    return made


def _works(sites: list[Examples]) -> list[Work]:
    return [
        Work(examples=part, declared=10, stream=NoiseStream(bytes([number]) * 32, b"round 1"))
        for number, part in enumerate(sites)
    ]


def _both(
    config: Config, sites: list[Examples], terms: Terms, strategy: Strategy, floats: int = 2**30
) -> list[tuple[Arrays, Arrays]]:
    """Each site's update, alone and with others."""
    task = tasks.build(config.task)
    state = _state(config)
    network = models.build(config.model, task)
    assert can_stack(network)
    chunks = train_many(
        model=network,
        state=state,
        works=_works(sites),
        task=task,
        terms=terms,
        strategy=strategy,
        floats_at_once=floats,
    )
    found = dict(entry for chunk in chunks for entry in chunk)
    pairs = []
    for place, work in enumerate(_works(sites)):
        alone = train(
            model=network,
            state=state,
            examples=work.examples,
            task=task,
            terms=terms,
            strategy=strategy,
            declared=work.declared,
            stream=work.stream,
        )
        together = found[place]
        assert not isinstance(together, PrivacyError)
        pairs.append((alone, together))
    return pairs


def _state(config: Config) -> Arrays:
    """A model in the middle of its training: no weight is zero."""
    generator = torch.Generator().manual_seed(5)
    network = models.build(config.model, tasks.build(config.task))
    named = {name: value.detach() for name, value in network.state_dict().items()}
    for name in trainable(network):
        named[name] = 0.2 * torch.randn(named[name].shape, generator=generator)
    return {name: value.numpy() for name, value in named.items()}


def _assert_equal(pairs: list[tuple[Arrays, Arrays]]) -> None:
    for alone, together in pairs:
        assert list(alone) == list(together)
        for name, value in alone.items():
            assert together[name].dtype == np.float32
            assert np.abs(value).max() > 0
            np.testing.assert_allclose(together[name], value, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(("task", "model", "private"), CASES)
def test_a_site_gets_the_same_update_alone_and_among_others(
    task: str, model: str, private: bool, folder: Path
) -> None:
    config = _config(task, model, folder)
    sites = _ragged(_examples(task, folder))
    strategy = Strategy(name="fedprox", proximal_mu=0.3, local_steps=3, learning_rate=0.2)
    _assert_equal(_both(config, sites, _terms(private=private, rate=0.6), strategy))


def test_chunks_of_sites_give_what_all_at_once_give(folder: Path) -> None:
    config = _config("heart", "mlp", folder)
    sites = _ragged(_examples("heart", folder)) * 3
    strategy, terms = Strategy(local_steps=2, learning_rate=0.2), _terms(private=True, rate=0.5)
    for floats in (1, 10_000, 2**30):
        _assert_equal(_both(config, sites, terms, strategy, floats))


def test_a_patient_who_overflows_adds_nothing_and_harms_nobody(folder: Path) -> None:
    config = _config("glucose", "mlp", folder)
    sites = _ragged(_examples("glucose", folder))
    table_NF = sites[1].table_NF.clone()
    table_NF[sites[1].patient_N == 2] = 1e30
    sites[1] = replace(sites[1], table_NF=table_NF)
    _assert_equal(_both(config, sites, _terms(private=True), Strategy(local_steps=2, learning_rate=0.2)))


def test_without_privacy_a_site_that_overflows_is_refused_and_the_others_are_not(folder: Path) -> None:
    config = _config("heart", "mlp", folder)
    sites = _ragged(_examples("heart", folder))
    sites[1] = replace(sites[1], table_NF=torch.full_like(sites[1].table_NF, float("inf")))
    chunks = train_many(
        model=models.build(config.model, tasks.build(config.task)),
        state=_state(config),
        works=_works(sites),
        task=tasks.build(config.task),
        terms=_terms(private=False),
        strategy=Strategy(local_steps=2),
        floats_at_once=2**30,
    )
    found = dict(entry for chunk in chunks for entry in chunk)
    assert [isinstance(found[place], PrivacyError) for place in range(3)] == [False, True, False]


def test_a_model_that_computes_something_else_is_no_chain(folder: Path) -> None:
    config = _config("heart", "mlp", folder)
    chain = models.build(config.model, tasks.build(config.task))
    assert hidden_layers(chain) == ("first", "second")

    class Other(type(chain)):  # type: ignore[misc]  # a subclass of whatever is built
        pass

    chain.__class__ = Other
    assert hidden_layers(chain) is None
    frozen = models.build(config.model, tasks.build(config.task))
    frozen.get_submodule("first").requires_grad_(requires_grad=False)
    assert hidden_layers(frozen) is None
    watched = models.build(config.model, tasks.build(config.task))
    watched.get_submodule("second").register_forward_hook(lambda *_: None)
    assert hidden_layers(watched) is None
