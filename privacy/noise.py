"""A site's own randomness: keyed streams for Gaussian noise and for drawing patients and windows.

Who knows the key can subtract the noise, so a stream is keyed by a secret that never leaves the
site, and by a context (plan, round, base model). The same secret and context give the same
numbers, so a release that a crash interrupted is made again bit by bit and not drawn anew; any
other context gives a stream that is computationally independent. Key derivation is HKDF-SHA256
(RFC 5869), the generator is ChaCha20 (RFC 8439), normal numbers are made by privacy/ziggurat.py.

What it is not: a proof against attacks on floating-point numbers (Mironov 2012, "On significance of
the least significant bits for differential privacy"). Accounting speaks of real numbers. As a
mitigation `add_noise` rounds what it returns to a grid far coarser than the spacing of the numbers
that noise is made of, so that which numbers are possible no longer tells what was added; docs/privacy.md
says what is claimed.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NoReturn

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

from privacy.errors import PrivacyError
from privacy.ziggurat import MORE_WORDS, normal

SECRET_BYTES: Final = 32
GRID_BITS: Final = 20
"""Releases are rounded to steps of about the noise's standard deviation / 2**GRID_BITS."""
_NORMALS_AT_ONCE: Final = 2**16
"""More take memory that the system has to give anew each time."""


class NoiseStream:
    """Random numbers that follow from a site's secret and a context; reading moves the stream on."""

    __slots__ = ("_context", "_extracted", "_keystream")

    def __init__(self, secret: bytes, context: bytes) -> None:
        """A stream at its start.

        Args:
            secret: of the site, at least SECRET_BYTES random bytes; never logged, never sent.
            context: what the numbers are for, e.g. plan, round and base model. Two uses must never
                share a context: equal noise cancels in a difference.
        """
        if len(secret) < SECRET_BYTES:
            raise PrivacyError(f"A site's secret must have at least {SECRET_BYTES} bytes; make one anew.")
        self._begin(_extract(secret), context)

    def _begin(self, extracted: bytes, context: bytes) -> None:
        self._extracted, self._context = extracted, context
        self._keystream: CipherContext | None = None

    def __repr__(self) -> str:
        return "NoiseStream(<secret>)"

    def __reduce__(self) -> NoReturn:
        # Attack: bytes of a stream are the site's key; and a copy gives equal noise, which cancels.
        raise PrivacyError("A stream is neither copied nor pickled; make another with `child` or `at`.")

    def at(self, context: bytes) -> NoiseStream:
        """The stream of the same secret for another context, at its start."""
        found = NoiseStream.__new__(NoiseStream)
        found._begin(self._extracted, context)
        return found

    def child(self, label: str | bytes) -> NoiseStream:
        """The stream at its start for a part of this context (a step, or one use within a step)."""
        name = label.encode() if isinstance(label, str) else label
        lengths = len(self._context).to_bytes(8, "big") + len(name).to_bytes(8, "big")
        found = NoiseStream.__new__(NoiseStream)
        found._begin(self._extracted, b"child" + lengths + self._context + name)
        return found

    def read(self, words: int) -> bytes:
        """The next words of 64 bits of the key stream."""
        if self._keystream is None:  # only now: most streams are read through their children alone
            material = _expand(self._extracted, b"twinward noise 1" + self._context)
            # ChaCha20 here takes counter and nonce as one; the 32-bit counter starts at zero.
            nonce = bytes(4) + material[32:44]
            self._keystream = Cipher(ChaCha20(material[:32], nonce), mode=None).encryptor()
        return self._keystream.update(bytes(8 * words))

    def uniform(self, count: int) -> np.ndarray:
        """`count` numbers in (0, 1), float64, the middles of 2**53 equal intervals."""
        return uniforms(self.read(count))

    def normal(self, shape: int | tuple[int, ...]) -> np.ndarray:
        """Standard normal numbers, float64 (privacy/ziggurat.py); none is beyond 13 in magnitude."""
        size = shape if isinstance(shape, int) else math.prod(shape)
        return normals([self], size)[0].numpy().reshape(shape)

    def poisson_sample(self, count: int, rate: float) -> np.ndarray:
        """Which of `count` patients take part, each on its own with probability `rate`; bool, (count,)."""
        if not 0 <= rate <= 1:
            raise PrivacyError(f"A sampling rate lies in [0, 1], not {rate}; see privacy.sampling_rate.")
        return self.uniform(count) < rate

    def choose(self, counts_P: np.ndarray, at_most: int) -> np.ndarray:
        """Indices of chosen windows, at most `at_most` of each patient, ascending int64.

        Systematic sampling: evenly spaced over the patient's record from a random start, so that each
        window is equally likely and neighbours, which say nearly the same, seldom come together.

        Args:
            counts_P: number of windows of each patient; windows are numbered patient by patient.
            at_most: 1 or more.
        """
        if at_most < 1:
            raise PrivacyError(f"At least one window per patient must be allowed, not {at_most}.")
        return spread(counts_P, self.uniform(len(counts_P)), at_most)


def uniforms(words: bytes) -> np.ndarray:
    """Numbers in (0, 1), float64, from words of 64 bits: the middles of 2**53 equal intervals."""
    numbers = np.frombuffer(words, dtype="<u8") >> np.uint64(11)
    # As signed numbers, which they fit, they become floats several times faster.
    uniform: np.ndarray = numbers.view(np.int64).astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-53
    return uniform


def normals(streams: Sequence[NoiseStream], size: int) -> Tensor:
    """`size` standard normal numbers from each stream, float64, (streams, size); as `NoiseStream.normal`."""

    def more(places: np.ndarray) -> np.ndarray:
        counts = np.bincount(places // size, minlength=len(streams)).tolist()
        words = [own.read(count * MORE_WORDS) for own, count in zip(streams, counts, strict=True) if count]
        return np.frombuffer(b"".join(words), dtype="<u8").reshape(-1, MORE_WORDS)

    words = np.frombuffer(b"".join([stream.read(size) for stream in streams]), dtype="<i8")
    return torch.from_numpy(normal(words, more)).view(len(streams), size)


def spread(counts_P: np.ndarray, start_P: np.ndarray, at_most: int) -> np.ndarray:
    """The windows of `NoiseStream.choose`, for starts in (0, 1)."""
    taken_P = np.minimum(counts_P, at_most)
    step_P = counts_P / np.maximum(taken_P, 1)
    first_P, before_P = np.cumsum(counts_P) - counts_P, np.cumsum(taken_P) - taken_P
    patient_M = np.repeat(np.arange(len(counts_P)), taken_P)
    place_M = np.arange(int(taken_P.sum())) - before_P[patient_M]
    offset_M = np.floor((place_M + start_P[patient_M]) * step_P[patient_M]).astype(np.int64)
    index_M: np.ndarray = first_P[patient_M] + np.minimum(offset_M, counts_P[patient_M] - 1)
    return index_M


def _extract(secret: bytes) -> bytes:
    """The first half of HKDF-SHA256 without salt, which does not hang on what the numbers are for."""
    return hmac.digest(bytes(32), secret, "sha256")


def _expand(extracted: bytes, info: bytes) -> bytes:
    """48 bytes, the second half; a test holds both against the library's, which is slower."""
    first = hmac.digest(extracted, info + b"\x01", "sha256")
    return first + hmac.digest(extracted, first + info + b"\x02", "sha256")[:16]


def add_noise(sums: Mapping[str, Tensor], noise_std: float, stream: NoiseStream) -> dict[str, Tensor]:
    """Clipped sums with Gaussian noise, rounded to a grid of about noise_std / 2**GRID_BITS; float64.

    Args:
        sums: by parameter; noise is drawn at once for all of them, in the order of their names.
        noise_std: noise multiplier × clip norm, in the unit of the sums; 0 adds nothing.
        stream: used for this release and for nothing else.
    """
    names = sorted(sums)
    if not names:
        return {}
    flat_1D = torch.cat([sums[name].reshape(1, -1) for name in names], dim=1)
    parts = torch.split(noised(flat_1D, noise_std, [stream])[0], [sums[name].numel() for name in names])
    found = {name: part.reshape(sums[name].shape) for name, part in zip(names, parts, strict=True)}
    return {name: found[name] for name in sums}


def noised(sums_SD: Tensor, noise_std: float, streams: Sequence[NoiseStream]) -> Tensor:
    """The same for S sites, each with noise from its own stream, and D numbers of each, float64."""
    _check_std(noise_std)
    if noise_std == 0:
        return sums_SD.double()
    found_SD = torch.empty(sums_SD.shape, dtype=torch.float64, device=sums_SD.device)
    for some, noisy_SD in _noisy(sums_SD, noise_std, streams):
        torch.mul(noisy_SD, _grid(noise_std), out=found_SD[some])
    return found_SD


def noised_means(
    sums_SD: Tensor, noise_std: float, streams: Sequence[NoiseStream], over_S: Sequence[float]
) -> Tensor:
    """Noised sums of S sites, each over a public number of its own; float32."""
    _check_std(noise_std)
    if noise_std == 0:
        return (sums_SD.double() / sums_SD.new_tensor(over_S, dtype=torch.float64)[:, None]).float()
    if len(over_S) == 1:
        drawn_1D = normals(streams, sums_SD.shape[1]).to(sums_SD.device)
        return mean_with(sums_SD, noise_std, drawn_1D, over_S[0])
    factor_S1 = _grid(noise_std) / torch.tensor(over_S, dtype=torch.float64, device=sums_SD.device)[:, None]
    found_SD = torch.empty(sums_SD.shape, dtype=torch.float32, device=sums_SD.device)
    for some, noisy_SD in _noisy(sums_SD, noise_std, streams):
        found_SD[some] = noisy_SD.mul_(factor_S1[some])
    return found_SD


def mean_with(sums_1D: Tensor, noise_std: float, drawn_1D: Tensor, over: float) -> Tensor:
    """The same for one site from standard normal numbers that were drawn before, and are overwritten."""
    grid = _grid(noise_std)
    return _rounded(drawn_1D, sums_1D, noise_std, grid).mul_(grid / over).float()


class StepNoise:
    """Standard normal numbers for each step of a round, each from a stream of its own (`child`).

    They are drawn for as many steps at once as are cheap, and are the same as step by step.
    """

    def __init__(self, stream: NoiseStream, size: int, steps: int) -> None:
        """`size` numbers for each of `steps` steps."""
        self._stream, self._size, self._steps = stream, size, steps
        self._drawn: dict[int, Tensor] = {}

    def at(self, step: int) -> Tensor:
        """Those of a step, float64, (1, size); once."""
        if step not in self._drawn:
            at_once = max(1, _NORMALS_AT_ONCE // max(1, self._size))
            some = range(step, max(step + 1, min(step + at_once, self._steps)))
            drawn = normals([self._stream.child(f"noise {each}") for each in some], self._size)
            self._drawn = dict(zip(some, torch.split(drawn, 1), strict=True))
        return self._drawn.pop(step)


def _noisy(
    sums_SD: Tensor, noise_std: float, streams: Sequence[NoiseStream]
) -> Iterator[tuple[slice, Tensor]]:
    """Sites that go together, and their sums with noise, rounded, in steps of the grid; float64."""
    grid, size = _grid(noise_std), sums_SD.shape[1]
    at_once = max(1, _NORMALS_AT_ONCE // max(1, size))
    for first in range(0, len(streams), at_once):
        some = slice(first, first + at_once)
        drawn_SD = normals(streams[some], size).to(sums_SD.device)
        yield some, _rounded(drawn_SD, sums_SD[some], noise_std, grid)


def _rounded(drawn_SD: Tensor, sums_SD: Tensor, noise_std: float, grid: float) -> Tensor:
    # The grid is a power of two: sums over it lose nothing.
    return drawn_SD.mul_(noise_std / grid).add_(sums_SD, alpha=1.0 / grid).round_()


def _grid(noise_std: float) -> float:
    return 2.0 ** (math.floor(math.log2(noise_std)) - GRID_BITS)


def _check_std(noise_std: float) -> None:
    if not (0 <= noise_std < math.inf):
        raise PrivacyError(f"The noise's standard deviation must be 0 or above and finite, not {noise_std}.")


def new_site_secret() -> bytes:
    """A fresh secret from the operating system, for a site to keep on its own disk."""
    return secrets.token_bytes(SECRET_BYTES)


def site_secret_from_seed(seed: int, site: str) -> bytes:
    """The secret of a simulated site. Never for a real one: who knows the seed can subtract the noise."""
    return hashlib.sha256(f"twinward simulated site\0{seed}\0{site}".encode()).digest()
