"""A small panel of variants, and what they mean together: diplotypes and phenotypes by CPIC's tables.

Positions and alleles are those of the forward strand of GRCh38 and GRCh37. Star alleles are told apart only
by the variants below: an allele with none of them is called *1, as every test with a panel does, although a
rarer one may hide behind it. Two variants of one gene are taken to stand on different chromosomes, which for
these is how they occur; a phased genotype that says otherwise, or more than two, is indeterminate. So is a
gene with a variant that was not called.

Sources: PharmVar and PharmCAT (positions of CYP2C19, CYP2C9, SLCO1B1), dbSNP (the others); CPIC guidelines
for clopidogrel 2022 (CYP2C19), NSAIDs 2020 (activity scores of CYP2C9), statins 2022 (SLCO1B1) and G6PD 2022.
TCF7L2, KCNJ11, SLC30A8 and PPARG are common variants of type 2 diabetes: counts of the allele that is named,
with no phenotype. None of it is a diagnosis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

INDETERMINATE: Final = "indeterminate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One place of the panel.

    Attributes:
        chromosome: without "chr".
        grch38, grch37: 1-based positions.
        reference, effect: forward-strand alleles; `effect` is what is counted, it may be the reference.
        other: the forward-strand allele beside the reference.
        star: the allele that it makes; "" if it makes none.
    """

    rsid: str
    gene: str
    chromosome: str
    grch38: int
    grch37: int
    reference: str
    other: str
    effect: str
    star: str = ""

    def position(self, build: str) -> int:
        """1-based position in a build, GRCh38 or GRCh37."""
        return self.grch38 if build == "GRCh38" else self.grch37


def _variant(rsid: str, gene: str, at: tuple[str, int, int], alleles: str, star: str = "") -> Variant:
    """`alleles` is REF>OTHER, with an asterisk before the one that is counted if that is the reference."""
    reference, other = alleles.strip("*").split(">")
    effect = reference if alleles.startswith("*") else other
    return Variant(
        rsid=rsid,
        gene=gene,
        chromosome=at[0],
        grch38=at[1],
        grch37=at[2],
        reference=reference,
        other=other,
        effect=effect,
        star=star,
    )


PANEL: Final = (
    _variant("rs12248560", "CYP2C19", ("10", 94761900, 96521657), "C>T", "*17"),
    _variant("rs4986893", "CYP2C19", ("10", 94780653, 96540410), "G>A", "*3"),
    _variant("rs4244285", "CYP2C19", ("10", 94781859, 96541616), "G>A", "*2"),
    _variant("rs1799853", "CYP2C9", ("10", 94942290, 96702047), "C>T", "*2"),
    _variant("rs1057910", "CYP2C9", ("10", 94981296, 96741053), "A>C", "*3"),
    _variant("rs4149056", "SLCO1B1", ("12", 21178615, 21331549), "T>C", "rs4149056C"),
    _variant("rs5030868", "G6PD", ("X", 154534419, 153762634), "G>A", "Mediterranean"),
    _variant("rs1050828", "G6PD", ("X", 154536002, 153764217), "C>T", "A-"),
    _variant("rs7903146", "TCF7L2", ("10", 112998590, 114758349), "C>T"),
    _variant("rs5219", "KCNJ11", ("11", 17388025, 17409572), "*T>C"),
    _variant("rs13266634", "SLC30A8", ("8", 117172544, 118184783), "*C>T"),
    _variant("rs1801282", "PPARG", ("3", 12351626, 12393125), "*C>G"),
)

LENGTHS: Final[Mapping[str, Mapping[str, int]]] = {
    "GRCh38": {
        "3": 198295559,
        "8": 145138636,
        "10": 133797422,
        "11": 135086622,
        "12": 133275309,
        "X": 156040895,
    },
    "GRCh37": {
        "3": 198022430,
        "8": 146364022,
        "10": 135534747,
        "11": 135006516,
        "12": 133851895,
        "X": 155270560,
    },
}
"""Lengths of the chromosomes that tell the builds apart."""

_CYP2C19: Final = {
    ("*1", "*1"): "normal metabolizer",
    ("*1", "*17"): "rapid metabolizer",
    ("*17", "*17"): "ultrarapid metabolizer",
    ("*1", "*2"): "intermediate metabolizer",
    ("*1", "*3"): "intermediate metabolizer",
    ("*17", "*2"): "intermediate metabolizer",
    ("*17", "*3"): "intermediate metabolizer",
    ("*2", "*2"): "poor metabolizer",
    ("*2", "*3"): "poor metabolizer",
    ("*3", "*3"): "poor metabolizer",
}
_CYP2C9_ACTIVITY: Final = {"*1": 1.0, "*2": 0.5, "*3": 0.0}
_SLCO1B1: Final = ("normal function", "decreased function", "poor function")
_GENES: Final = ("CYP2C19", "CYP2C9", "SLCO1B1", "G6PD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A genotype at a place of the panel.

    Attributes:
        effects: alleles that are the counted one; ploidy: of how many (1 on a man's X).
        haplotypes: of a phased genotype, on which of the two; empty if it is not phased.
    """

    effects: int
    ploidy: int = 2
    haplotypes: frozenset[int] = frozenset()


def meanings(calls: Mapping[str, Call]) -> dict[str, str]:
    """Facts by name: `variant:<rsid>` counts, `diplotype:<gene>`, `phenotype:<gene>`.

    Args:
        calls: by rsid; what is not there was not called, and is unknown, never the reference.
    """
    facts = {f"variant:{v.rsid}": str(calls[v.rsid].effects) for v in PANEL if v.rsid in calls}
    for gene in _GENES:
        stars = _diplotype(gene, calls)
        if stars is not None:
            facts[f"diplotype:{gene}"] = "/".join(stars)
        if any(v.rsid in calls for v in PANEL if v.gene == gene):
            facts[f"phenotype:{gene}"] = INDETERMINATE if stars is None else _phenotype(gene, stars)
    return facts


def _diplotype(gene: str, calls: Mapping[str, Call]) -> tuple[str, ...] | None:
    """The gene's alleles, one for each chromosome; None if they cannot be told."""
    found: list[str] = []
    places: list[int] = []
    ploidy = 2
    for variant in (v for v in PANEL if v.gene == gene):
        call = calls.get(variant.rsid)
        if call is None:
            return None
        ploidy = min(ploidy, call.ploidy)
        found += [variant.star] * call.effects
        places += sorted(call.haplotypes)
    if len(found) > ploidy or len(set(places)) < len(places):
        return None
    normal = {"SLCO1B1": "rs4149056T", "G6PD": "B"}.get(gene, "*1")
    return tuple(sorted(found + [normal] * (ploidy - len(found))))


def _phenotype(gene: str, stars: tuple[str, ...]) -> str:
    if gene == "CYP2C19":
        return _CYP2C19.get((stars[0], stars[-1]), INDETERMINATE) if len(stars) == 2 else INDETERMINATE
    if gene == "CYP2C9":
        if len(stars) != 2:
            return INDETERMINATE
        score = sum(_CYP2C9_ACTIVITY[star] for star in stars)
        kind = "normal" if score == 2 else "intermediate" if score >= 1 else "poor"
        return f"{kind} metabolizer"
    deficient = sum(star not in ("rs4149056T", "B") for star in stars)
    if gene == "SLCO1B1":
        return _SLCO1B1[deficient] if len(stars) == 2 else INDETERMINATE
    return "deficient" if deficient == len(stars) else "variable" if deficient else "normal"
