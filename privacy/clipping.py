"""Sums over patients of gradients that are clipped per patient, the one thing that noise is added to.

A patient's gradient is that of the mean loss over the patient's windows. However many windows a
patient has, the patient moves the sum by at most `clip_norm` in L2 over all trainable parameters. A
patient whose gradient is not finite is clipped to zero.

The fast path is book-keeping (Bu, Wang, Zha, Karypis 2023, "Differentially private optimization on
large model at small cost", arXiv:2210.00038): one backward pass to the pre-activations of the
layers; the gradient of a patient is then one matrix product per layer. Deviations: a patient's
windows are one more shared axis beside time, and gradients of patients are made explicitly (in
chunks of bounded memory) rather than by Gram matrices, since with hundreds of windows per patient
that is cheaper, and since the norm is then taken of the very numbers that are summed: the
bound does not hang on cancellation in a second product. Any other layer takes one backward pass per
patient, which is slower and right for every model.

What is assumed of the model: the loss of a window depends on that window alone. Layers that mix
windows (BatchNorm) are refused.

Shapes: N windows, P patients, K patients of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from privacy.errors import InseparableError, PrivacyError
from privacy.layers import NotBookkeepable, Recorder, keeps_book

FLOATS_AT_ONCE = 2**25
"""Bound on the numbers that the explicit gradients of one chunk of patients may hold (128 MiB)."""

Method = Literal["auto", "bookkeeping", "loop"]
Gradients = dict[str, Tensor]
"""Name of a parameter → gradients of K patients, (K, *shape of the parameter)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedSum:
    """The sum of clipped gradients of patients; sums of chunks of patients may be added.

    Attributes:
        sums: name of each trainable parameter → sum, float64, shape of the parameter.
        norms_P: norm of each patient's gradient before clipping, float64; 0 without windows.
            Infinite or NaN where the gradient was not finite. It is private: it must never leave the site.
    """

    sums: dict[str, Tensor]
    norms_P: Tensor

    def __add__(self, other: ClippedSum) -> ClippedSum:
        """The sum over both; no patient may have windows in more than one of them."""
        if bool(((self.norms_P > 0) & (other.norms_P > 0)).any()):
            raise PrivacyError(
                "Sums that share a patient cannot be added: expected whole patients in each chunk."
            )
        return ClippedSum(
            sums={name: value + other.sums[name] for name, value in self.sums.items()},
            norms_P=self.norms_P + other.norms_P,
        )


def clipped_patient_sum(
    model: nn.Module,
    forward: Callable[[], Tensor],
    patient_N: Tensor,
    patients: int,
    clip_norm: float,
    *,
    method: Method = "auto",
) -> ClippedSum:
    """The sum over patients of their clipped gradients.

    Args:
        model: its trainable parameters (requires_grad) are what the gradient is of.
        forward: runs `model` once on N windows (first axis of every layer's input) and gives the
            loss of each window, shape (N,).
        patient_N: int64, which patient a window is of, in [0, patients).
        patients: number of patients, with windows or without.
        clip_norm: most that one patient moves the sum, in L2, above 0.
        method: "bookkeeping" (Linear and Conv1d), "loop" (one backward pass per patient), or
            "auto", the first where it applies, else the second.

    Raises:
        PrivacyError: a layer mixes windows, or shapes do not fit.
        InseparableError: a gradient is not finite, and without book-keeping it cannot be told whose
            it is; call it for each patient alone, where this is not raised.
    """
    if not (clip_norm > 0 and clip_norm < float("inf")):
        raise PrivacyError(f"clip_norm must be a positive number, not {clip_norm}; see privacy.clip_norm.")
    return _sum(model, forward, patient_N, patients, clip_norm, method)


def patient_sum(
    model: nn.Module, forward: Callable[[], Tensor], patient_N: Tensor, patients: int
) -> dict[str, Tensor]:
    """The same sum without clipping (privacy=none): one ordinary backward pass, float64."""
    _refuse_what_mixes_windows(model)
    parameters = _trainable(model)
    _check_patients(patient_N, patients)
    if len(patient_N) == 0:
        return {name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()}
    losses_N = _losses(forward, patient_N)
    total = (losses_N * _window_weights(patient_N, patients, losses_N)).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)
    sums = {name: value.double() for name, value in zip(parameters, gradients, strict=True)}
    if not all(bool(value.isfinite().all()) for value in sums.values()):
        raise _not_finite()
    return sums


def patient_chunks(model: nn.Module, patient_N: Tensor, *, windows: int) -> Iterator[Tensor]:
    """Index tensors over N that hold whole patients and at most `windows` windows (or one patient).

    A model that book-keeping does not know gets one patient at a time: its one backward pass per
    patient then runs over that patient's windows only.
    """
    order_N = torch.argsort(patient_N, stable=True)
    _, counts = torch.unique(patient_N, return_counts=True)
    at_most = windows if keeps_book(model) else 1
    start = stop = 0
    for count in counts.tolist():
        if stop > start and stop + count - start > at_most:
            yield order_N[start:stop]
            start = stop
        stop += count
    if stop > start:
        yield order_N[start:stop]


def _sum(
    model: nn.Module,
    forward: Callable[[], Tensor],
    patient_N: Tensor,
    patients: int,
    clip_norm: float,
    method: Method,
) -> ClippedSum:
    _refuse_what_mixes_windows(model)
    parameters = _trainable(model)
    _check_patients(patient_N, patients)
    device = next(iter(parameters.values())).device
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()}
    norms_P = torch.zeros(patients, dtype=torch.float64, device=device)
    if len(patient_N) == 0:
        return ClippedSum(sums=sums, norms_P=norms_P)
    for index_K, gradients in _gradients(model, forward, patient_N, patients, method):
        norms_K = _norms(gradients)
        norms_P[index_K] = norms_K
        scale_K = (clip_norm / norms_K.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
        # Attack: whether a step fails says something of the patients, without noise. It never fails:
        # a patient whose gradient is not finite adds nothing, as if absent.
        finite_K = norms_K.isfinite()
        whole = bool(finite_K.all())
        for name, value in gradients.items():
            kept = value if whole else value[finite_K]
            sums[name] += torch.tensordot(scale_K if whole else scale_K[finite_K], kept.double(), dims=1)
    return ClippedSum(sums=sums, norms_P=norms_P)


def _norms(gradients: Gradients) -> Tensor:
    flat = [value.flatten(1) for value in gradients.values()]
    norms = [torch.linalg.vector_norm(value, dim=1, dtype=torch.float64) for value in flat]
    norms_K: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return norms_K


def _gradients(
    model: nn.Module, forward: Callable[[], Tensor], patient_N: Tensor, patients: int, method: Method
) -> Iterator[tuple[Tensor, Gradients]]:
    """Chunks of patients with their explicit gradients."""
    if method not in ("auto", "bookkeeping", "loop"):
        raise PrivacyError(f"method must be auto, bookkeeping or loop, not {method!r}.")
    if method == "loop" or (method == "auto" and not keeps_book(model)):
        losses_N = _losses(forward, patient_N)
        yield from _loop(model, losses_N, patient_N, patients)
        return
    if not keeps_book(model):
        raise PrivacyError("Book-keeping knows plain Linear and Conv1d layers only. Use method=auto.")
    with Recorder(model) as recorder:
        losses_N = _losses(forward, patient_N)
    weights_N = _window_weights(patient_N, patients, losses_N)
    order_N = torch.argsort(patient_N, stable=True)
    try:
        book = recorder.book((losses_N * weights_N).sum(), order_N)
    except NotBookkeepable as reason:
        if method == "bookkeeping":
            raise PrivacyError(f"Book-keeping does not fit this model: {reason} Use method=auto.") from None
        yield from _loop(model, losses_N, patient_N, patients)
        return
    size = sum(value.numel() for value in _trainable(model).values())
    index_P, counts_P = torch.unique(patient_N, return_counts=True)
    start, most = 0, max(1, FLOATS_AT_ONCE // size)
    for index_K, counts_K in zip(index_P.split(most), counts_P.split(most), strict=True):
        counts = counts_K.tolist()
        yield index_K.to(losses_N.device), book.gradients(start, counts)
        start += sum(counts)


def _loop(
    model: nn.Module, losses_N: Tensor, patient_N: Tensor, patients: int
) -> Iterator[tuple[Tensor, Gradients]]:
    parameters = _trainable(model)
    weighted_N = losses_N * _window_weights(patient_N, patients, losses_N)
    present = torch.unique(patient_N)
    for patient in present:
        total = weighted_N[patient_N == patient].sum()
        gradients = torch.autograd.grad(
            total, list(parameters.values()), retain_graph=True, materialize_grads=True
        )
        # All windows went through one graph, in which zero times infinity is no number: the patient
        # whose gradient this is need not be the one whose windows overflowed.
        if len(present) > 1 and not all(bool(value.isfinite().all()) for value in gradients):
            raise InseparableError("A gradient is not finite; take the patients one at a time.")
        named = {name: value.unsqueeze(0) for name, value in zip(parameters, gradients, strict=True)}
        yield patient.reshape(1).to(losses_N.device), named


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise PrivacyError("The model has no trainable parameter: expected at least one with requires_grad.")
    return found


def _losses(forward: Callable[[], Tensor], patient_N: Tensor) -> Tensor:
    losses_N = forward()
    if losses_N.shape != patient_N.shape:
        raise PrivacyError(
            f"Expected one loss per window, shape {tuple(patient_N.shape)}, got {tuple(losses_N.shape)}:"
            " `forward` must not reduce over windows."
        )
    return losses_N


def _window_weights(patient_N: Tensor, patients: int, losses_N: Tensor) -> Tensor:
    """One over the number of the patient's windows: sums over them become means."""
    index_N = patient_N.to(losses_N.device)
    counts_P = torch.bincount(index_N, minlength=patients).to(losses_N.dtype)
    return 1.0 / counts_P[index_N]


def _check_patients(patient_N: Tensor, patients: int) -> None:
    if patient_N.ndim != 1 or patient_N.dtype != torch.int64:
        raise PrivacyError(
            f"patient_N must be int64 of shape (N,), not {patient_N.dtype} {tuple(patient_N.shape)}."
        )
    if len(patient_N) and not (int(patient_N.min()) >= 0 and int(patient_N.max()) < patients):
        raise PrivacyError(f"patient_N must lie in [0, patients={patients}).")


def _refuse_what_mixes_windows(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or getattr(
            module, "track_running_stats", False
        ):
            raise PrivacyError(
                f"Layer {name or '(root)'} ({type(module).__name__}) mixes patients: what one patient changes"
                " is not bounded by clipping. Use LayerNorm, GroupNorm or no normalisation."
            )


def _not_finite() -> PrivacyError:
    return PrivacyError(
        "A gradient is not finite, so this step without privacy was refused. Expected finite losses:"
        " check the scaling of inputs, or lower strategy.learning_rate."
    )
