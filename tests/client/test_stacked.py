"""Training many sites at once gives each the update that it gets alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import client.stacked
from client.anatomy import can_stack
from client.app import _SHOPS
from client.chunks import chunks
from client.site import Part, site_names, training_examples
from client.stacked import Base, Work, Workshop, train_many
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


@pytest.mark.filterwarnings("error::RuntimeWarning")
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


def _open_base(config: Config, *, local_steps: int = 3, rate: float = 0.6) -> Base:
    state = _state(config)
    for array in state.values():
        array.flags.writeable = False
    strategy = Strategy(local_steps=local_steps, learning_rate=0.2)
    return Base(state=state, terms=_terms(private=False, rate=rate), strategy=strategy)


def _shop(config: Config) -> Workshop:
    task = tasks.build(config.task)
    return Workshop(models.build(config.model, task), task)


def _copied(made: list[tuple[int, Arrays | PrivacyError]]) -> list[Arrays]:
    return [_array_copies(update) for _, update in made if isinstance(update, Mapping)]


def _array_copies(update: Arrays) -> Arrays:
    return {name: value.copy() for name, value in update.items()}


def _assert_bits(found: list[Arrays], expected: list[Arrays]) -> None:
    assert len(found) == len(expected) > 0
    for own, other in zip(found, expected, strict=True):
        for name, value in other.items():
            np.testing.assert_array_equal(own[name], value)


@pytest.mark.parametrize("task", ["heart", "glucose"])
def test_a_workshop_that_did_other_work_gives_the_bits_of_a_new_one_and_changes_nothing_that_it_gave(
    task: str, folder: Path
) -> None:
    config = _config(task, "mlp", folder)
    sites, used = _ragged(_examples(task, folder)), _shop(config)
    first = _open_base(config)
    other = replace(first, terms=_terms(private=False, rate=1.0, windows=2))
    slower = replace(
        first, strategy=Strategy(local_steps=2, learning_rate=0.01, name="fedprox", proximal_mu=1.0)
    )
    broken = replace(sites[1], table_NF=torch.full_like(sites[1].table_NF, float("nan")))
    moved = _open_base(config)
    moved = replace(moved, state={name: value + np.float32(0.1) for name, value in moved.state.items()})
    given, kept = [], []
    for base, chosen in (
        (first, sites),
        (other, sites),
        (first, [sites[0], broken, sites[2]]),
        (slower, sites[:1]),
        (moved, sites[:2]),
        (first, sites[1:]),
        (first, sites),
    ):
        made = used.trained(base, _works(chosen))
        _assert_bits(_copied(made), _copied(_shop(config).trained(base, _works(chosen))))
        given += [update for _, update in made if isinstance(update, Mapping)]
        kept += _copied(made)
    _assert_bits(given, kept)


def test_a_model_that_can_be_written_to_is_read_anew(folder: Path) -> None:
    config = _config("heart", "mlp", folder)
    shop, base = _shop(config), _open_base(config)
    base = replace(base, state=_array_copies(dict(base.state)))
    works = _works(_ragged(_examples("heart", folder)))
    before = _copied(shop.trained(base, works))
    base.state["head.weight"][...] += 1.0
    after = _copied(shop.trained(replace(base), works))
    _assert_bits(after, _copied(_shop(config).trained(base, works)))
    assert not np.array_equal(before[0]["head.weight"], after[0]["head.weight"])


def test_after_a_model_of_another_shape_the_one_before_it_is_still_right(folder: Path) -> None:
    config = _config("heart", "mlp", folder)
    shop, base = _shop(config), _open_base(config)
    works = _works(_ragged(_examples("heart", folder)))
    expected = _copied(shop.trained(base, works))
    wrong = {name: np.zeros_like(value) for name, value in base.state.items()} | {
        "head.weight": np.zeros((1, 1))
    }
    with pytest.raises(RuntimeError):
        shop.trained(replace(base, state=wrong), works)
    _assert_bits(_copied(shop.trained(base, works)), expected)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_windows_that_a_site_draws_once_it_is_done_do_not_reach_its_update(model: str, folder: Path) -> None:
    config = _config("heart", model, folder)
    sites = _ragged(_examples("heart", folder))
    base = _open_base(config, local_steps=6, rate=0.25)
    # Who has a turn in the first of four steps is found by breaking one patient after the other.
    task, shop = tasks.build(config.task), _shop(config)
    found = 0
    for patient in range(len(sites[0].patients)):
        table_NF = sites[0].table_NF.clone()
        table_NF[sites[0].patient_N == patient] = float("nan")
        works = _works([replace(sites[0], table_NF=table_NF), *sites[1:]])
        works[0] = replace(works[0], steps=1, known_counts=works[0].counts_P)
        try:
            alone = train(
                model=models.build(config.model, task),
                state=base.state,
                examples=works[0].examples,
                task=task,
                terms=base.terms,
                strategy=replace(base.strategy, local_steps=1),
                declared=10,
                stream=works[0].stream,
            )
        except PrivacyError:
            assert isinstance(shop.trained(base, works)[0][1], PrivacyError)
            continue
        together = shop.trained(base, works)[0][1]
        assert isinstance(together, dict)
        _assert_equal([(alone, together)])
        found += 1
    assert found


def test_a_site_alone_whose_step_is_passed_in_pieces_is_not_held_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config("heart", "mlp", folder)
    base, (site, *_) = _open_base(config), _ragged(_examples("heart", folder))
    task = tasks.build(config.task)
    monkeypatch.setattr(client.stacked, "WINDOWS_AT_ONCE", 1)
    found = _copied(_shop(config).trained(base, _works([site])))
    expected = train(
        model=models.build(config.model, task),
        state=base.state,
        examples=site,
        task=task,
        terms=base.terms,
        strategy=base.strategy,
        declared=10,
        stream=_works([site])[0].stream,
    )
    _assert_bits(found, [expected])


def test_a_workshop_is_kept_as_long_as_its_model_and_no_longer(folder: Path) -> None:
    config = _config("heart", "mlp", folder)
    task = tasks.build(config.task)
    model: nn.Module = models.build(config.model, task)
    shop = weakref.ref(_SHOPS.of(model, task))
    assert _SHOPS.of(model, task) is shop()
    del model
    gc.collect()
    assert shop() is None


def _sometimes(size: float) -> int:
    return 8 if size <= 10 else 3


@given(
    sizes=st.lists(st.integers(1, 20), max_size=60),
    floats=st.integers(1, 80),
    most=st.sampled_from([_sometimes, lambda _: 5]),
    done=st.sets(st.integers(0, 60)),
)
def test_when_some_chunks_are_done_the_others_are_made_of_the_same_sites_again(
    sizes: list[int], floats: int, most: Callable[[float], int], done: set[int]
) -> None:
    whole = list(chunks(sizes, floats, most))
    assert sorted(place for chunk in whole for place in chunk) == list(range(len(sizes)))
    left = [chunk for number, chunk in enumerate(whole) if number not in done]
    places = sorted(place for chunk in left for place in chunk)
    again = chunks([sizes[place] for place in places], floats, most)
    assert [[places[number] for number in chunk] for chunk in again] == left
