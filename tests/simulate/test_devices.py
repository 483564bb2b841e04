"""Training on a device that is not the CPU, without owning one.

`Far` tensors say that they lie on another device and refuse what CUDA refuses: arithmetic with tensors of
the CPU, and numpy. Underneath the CPU computes, so that the bits must be those of the CPU where the same is
computed. What this cannot show is the kernels, memory and speed of a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import client.site
from simulate.federation import run_federation
from tests.heart_hospitals import settings, write_folder

# The only device without kernels that autograd serves from the thread of the CPU.
FAR = torch.device("meta")
COPIES = ("aten::_to_copy", "aten::copy_")


class Far(torch.Tensor):
    """A tensor that is elsewhere; `near` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), dtype=near.dtype, device=FAR
        )

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def tolist(self) -> Any:
        return self.near.tolist()  # CUDA allows it, and waits

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": FAR} | kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Within it, tensors can be made at, and sent to, the far device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried(func, args, kwargs or {})


def carried(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, done near, if a device would do it."""
    name = func._schema.name
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, Far)]
    if far and name not in COPIES:
        mixed = [tensor for tensor in tensors if not isinstance(tensor, Far) and tensor.dim() > 0]
        if mixed:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {name} got one of the CPU"
            )
    asked = kwargs.get("device")
    goes_far = bool(far) if asked is None else torch.device(asked) == FAR
    if name == "aten::copy_":
        goes_far = isinstance(args[0], Far)
    near_kwargs = kwargs if asked is None else kwargs | {"device": torch.device("cpu")}
    own = {id(tensor.near): tensor for tensor in far}
    found = func(*tree_map(_near, args), **tree_map(_near, near_kwargs))

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor) or not goes_far:
            return value
        return own.get(id(value)) if id(value) in own else Far(value)

    return tree_map(back, found)


def _near(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sites train on the far device."""
    made: Callable[..., Tensor] = torch.tensor

    def tensor(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        found = made(*args, **kwargs)  # which torch itself would make without asking anybody
        return found if device is None else found.to(device)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(client.site, "_device", lambda _: FAR)
    with Elsewhere():
        yield


def test_the_far_device_refuses_what_cuda_refuses(elsewhere: None) -> None:
    there = torch.ones(3).to(FAR)
    assert isinstance(there + there, Far)
    assert (there * 2.0).cpu().tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()


PLANS = {
    "private": ["model=mlp", "model.hidden=5", "strategy.local_steps=2", "privacy.sampling_rate=0.7"],
    "open": ["model=mlp", "model.hidden=5", "privacy=none", "strategy.learning_rate=0.1"],
    "scaffold": ["model=linear", "strategy=scaffold"],
    "fedprox": ["model=linear", "strategy=fedprox", "strategy.proximal_mu=0.5", "strategy.local_steps=2"],
}


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("plan", sorted(PLANS))
@pytest.mark.parametrize("engine", ["local", "batched"])
def test_a_federation_on_another_device_gives_the_model_of_the_cpu(
    engine: str, plan: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = settings(write_folder(tmp_path / "data"), f"engine={engine}", *PLANS[plan], rounds=2)
    near = run_federation(config, directory=tmp_path / "near")
    request.getfixturevalue("elsewhere")
    far = run_federation(config, directory=tmp_path / "far")
    assert [entry.participants for entry in far.rounds] == [3, 3]
    if plan == "open":  # its products are numpy's on a CPU, and torch's elsewhere
        for name, value in near.model.items():
            np.testing.assert_allclose(far.model[name], value, rtol=1e-5, atol=1e-7)
    else:
        assert far.sha256 == near.sha256
