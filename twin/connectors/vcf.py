"""Variants from VCF, bgzipped VCF or BCF: the panel's genotypes as facts of the samples, who are patients.

A place is known by its position in the build that the header's contigs, or the option `build`, say; neither,
or one against the other, refuses the file. So does a reference allele that is not the genome's (the wrong
strand or build). Records of a gVCF that say "reference" over a stretch count for the places in it.

Unknown, and never the reference, is a place that has no record, whose genotype misses an allele, whose
filter failed, whose genotype quality is below 20, or that has an allele which the panel does not know.

Reading is by pysam (htslib), with the file's index if there is one. Nothing but the panel is read out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pysam

from twin.connectors.exports import Files, Reader, Refused
from twin.connectors.feed import FACTS, Batch
from twin.connectors.panel import LENGTHS, PANEL, Call, Variant, meanings
from twin.connectors.sources import PanelFile
from twin.errors import DataError

_LEAST_QUALITY: Final = 20
_SYMBOLIC: Final = frozenset({"<NON_REF>", "<*>", "."})
_MOST_SAMPLES: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Vcf(Files):
    """A file or a folder of variants; the names of samples are the patients' identifiers.

    Attributes:
        build: "GRCh37" or "GRCh38" for files whose header does not say; "" refuses those.
    """

    build: str = ""

    def __post_init__(self) -> None:
        if self.build not in ("", *LENGTHS):
            raise DataError(f'feed {self.name!r}: option build must be "GRCh37", "GRCh38" or "".')

    def reader(self) -> Reader:
        return PanelFile(build=self.build)

    def endings(self) -> tuple[str, ...]:
        return (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")


def read_panel(path: Path, build: str = "") -> Batch:
    """The facts of every sample of a file; what could not be called is counted.

    Raises:
        Refused: it is none, says no build or another one, or its reference alleles are not the genome's.
    """
    pysam.set_verbosity(0)
    try:
        with pysam.VariantFile(str(path)) as file:
            samples = list(file.header.samples)
            if not samples or len(samples) > _MOST_SAMPLES:
                raise Refused("it has no samples, or more than 100,000")
            found = _build(file.header, build)
            calls: list[dict[str, Call]] = [{} for _ in samples]
            rejected: dict[str, int] = {}
            for variant, record in _records(file, found):
                is_here = record.pos == variant.position(found)
                _call(variant, record, is_here, samples, calls, rejected)
    except Refused:
        raise
    except (ValueError, OSError, KeyError, IndexError, UnicodeDecodeError):
        raise Refused("it is no whole VCF or BCF") from None
    facts = [
        (sample, name, value)
        for sample, called in zip(samples, calls, strict=True)
        for name, value in meanings(called).items()
    ]
    missing = sum(len(PANEL) - len(called) for called in calls)
    if missing:
        rejected["place of the panel without a call"] = missing
    return Batch(facts=pd.DataFrame(facts, columns=list(FACTS), dtype="str"), rejected=rejected)


def _build(header: Any, declared: str) -> str:
    """GRCh38 or GRCh37, by the lengths of contigs, else as declared."""
    seen = set()
    for name, contig in header.contigs.items():
        for build, lengths in LENGTHS.items():
            if contig.length and contig.length == lengths.get(_plain(name)):
                seen.add(build)
    if len(seen) > 1 or (seen and declared and seen != {declared}):
        raise Refused("its header says another build than the option build, or two")
    if not seen and not declared:
        raise Refused('its header does not say the build: set the option build to "GRCh37" or "GRCh38"')
    return seen.pop() if seen else declared


def _plain(name: str) -> str:
    return name.removeprefix("chr")


def _records(file: Any, build: str) -> Iterator[tuple[Variant, Any]]:
    """Records that stand over a place of the panel, with it."""
    by_chromosome: dict[str, list[Variant]] = {}
    for variant in PANEL:
        by_chromosome.setdefault(variant.chromosome, []).append(variant)
    if file.index is not None:
        for name in list(file.header.contigs):
            for variant in by_chromosome.get(_plain(name), []):
                at = variant.position(build)
                for record in file.fetch(name, at - 1, at):
                    yield variant, record
        return
    for record in file:
        for variant in by_chromosome.get(_plain(record.chrom), ()):
            if record.pos <= variant.position(build) <= max(record.stop, record.pos):
                yield variant, record


def _call(
    variant: Variant,
    record: Any,
    is_here: bool,
    samples: list[str],
    calls: list[dict[str, Call]],
    rejected: dict[str, int],
) -> None:
    alleles = record.alleles or ()
    is_block = bool(alleles) and all(alternative in _SYMBOLIC for alternative in alleles[1:])
    if is_here and alleles and len(alleles[0]) == 1 and alleles[0].upper() != variant.reference:
        raise Refused(
            f"its reference allele at {variant.rsid} is not the genome's: another build or the other strand"
        )
    if not is_here and not is_block:
        _count(rejected, "another variant over a place of the panel", 1)
        for called in calls:
            called.pop(variant.rsid, None)
        return
    failed = bool(set(record.filter.keys()) - {"PASS"})
    for sample, called in zip(samples, calls, strict=True):
        found = None if failed else _genotype(variant, alleles, is_block, record.samples[sample])
        if found is None:
            _count(rejected, "genotype not called, filtered, of low quality or with another allele", 1)
            called.pop(variant.rsid, None)
        elif variant.rsid in called and called[variant.rsid] != found:
            _count(rejected, "place of the panel called twice", 1)
            called.pop(variant.rsid, None)
        else:
            called[variant.rsid] = found


def _genotype(variant: Variant, alleles: tuple[str, ...], is_block: bool, sample: Any) -> Call | None:
    genotype = sample.get("GT")
    quality = sample.get("GQ")
    if not genotype or None in genotype or len(genotype) > 2:
        return None
    if quality is not None and not (isinstance(quality, int | float) and quality >= _LEAST_QUALITY):
        return None
    if is_block:
        found = [variant.reference if allele == 0 else "?" for allele in genotype]
    else:
        found = [alleles[allele].upper() if allele < len(alleles) else "?" for allele in genotype]
    if not set(found) <= {variant.reference, variant.other}:
        return None
    effects = [place for place, allele in enumerate(found) if allele == variant.effect]
    phased = bool(sample.phased) and len(found) == 2
    return Call(
        effects=len(effects), ploidy=len(found), haplotypes=frozenset(effects) if phased else frozenset()
    )


def _count(rejected: dict[str, int], reason: str, rows: int) -> None:
    rejected[reason] = rejected.get(reason, 0) + rows
