from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twin.connectors.feed import Batch
from twin.connectors.feeds import build
from twin.errors import DataError

pysam = pytest.importorskip("pysam")

from twin.connectors.panel import LENGTHS, PANEL, Call, meanings  # noqa: E402 - after the package is known to be there
from twin.connectors.vcf import read_panel  # noqa: E402 - as above

HOM_REF = {v.rsid: "0/0" for v in PANEL}


def vcf(
    path: Path,
    *genotypes: dict[str, str],
    version: str = "GRCh38",
    contigs: bool = True,
    chr_: str = "chr",
    swap: dict[str, str] | None = None,
    quality: int = 99,
    extra: str = "",
) -> Path:
    """A VCF with a sample for each of `genotypes`; only the places that one of them names."""
    head = ["##fileformat=VCFv4.2", '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">']
    head += [
        '##FORMAT=<ID=GQ,Number=1,Type=Integer,Description="Quality">',
        '##FILTER=<ID=low,Description="low">',
    ]
    head += ['##INFO=<ID=END,Number=1,Type=Integer,Description="End">']
    lengths = LENGTHS[version]
    head += [
        f"##contig=<ID={chr_}{name}{f',length={size}' if contigs else ''}>" for name, size in lengths.items()
    ]
    head += [
        "\t".join(
            [
                "#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT".replace(" ", "\t"),
                *(f"S{k}" for k in range(len(genotypes))),
            ]
        )
    ]
    rows = []
    order = list(lengths)
    for v in sorted(PANEL, key=lambda v: (order.index(v.chromosome), v.position(version))):
        if any(v.rsid in calls for calls in genotypes):
            calls = [f"{calls.get(v.rsid, './.')}:{quality}" for calls in genotypes]
            reference = (swap or {}).get(v.rsid, v.reference)
            row = [
                f"{chr_}{v.chromosome}",
                str(v.position(version)),
                v.rsid,
                reference,
                v.other,
                ".",
                "PASS",
                ".",
            ]
            rows.append("\t".join([*row, "GT:GQ", *calls]))
    path.write_text("\n".join([*head, *rows]) + "\n" + extra, encoding="utf-8")
    return path


def facts(batch: Batch, sample: str = "S0") -> dict[str, str]:
    mine = batch.facts[batch.facts["patient"] == sample]
    return dict(zip(mine["name"], mine["value"], strict=True))


@pytest.mark.parametrize("version", ["GRCh38", "GRCh37"])
@pytest.mark.parametrize("chr_", ["chr", ""])
def test_both_builds_and_both_spellings_of_chromosomes_give_the_same_facts(
    tmp_path: Path, version: str, chr_: str
) -> None:
    calls = HOM_REF | {"rs4244285": "0/1", "rs1057910": "1/1", "rs4149056": "0|1", "rs7903146": "1/1"}
    found = facts(read_panel(vcf(tmp_path / "a.vcf", calls, version=version, chr_=chr_)))
    assert found["diplotype:CYP2C19"] == "*1/*2"
    assert found["phenotype:CYP2C19"] == "intermediate metabolizer"
    assert found["phenotype:CYP2C9"] == "poor metabolizer"
    assert found["phenotype:SLCO1B1"] == "decreased function"
    assert found["phenotype:G6PD"] == "normal"
    assert found["variant:rs7903146"] == "2"
    assert found["variant:rs5219"] == "2"  # the genome has the allele that is counted


@pytest.mark.parametrize(
    ("genotype", "phenotype"),
    [
        ({}, "normal metabolizer"),
        ({"rs12248560": "0/1"}, "rapid metabolizer"),
        ({"rs12248560": "1/1"}, "ultrarapid metabolizer"),
        ({"rs12248560": "0/1", "rs4244285": "0/1"}, "intermediate metabolizer"),
        ({"rs4986893": "0/1", "rs4244285": "0/1"}, "poor metabolizer"),
        ({"rs4244285": "1/1"}, "poor metabolizer"),
        ({"rs4244285": "1/1", "rs12248560": "0/1"}, "indeterminate"),
        ({"rs4986893": "0|1", "rs4244285": "0|1"}, "indeterminate"),
        ({"rs4986893": "1|0", "rs4244285": "0|1"}, "poor metabolizer"),
        ({"rs4244285": "./."}, "indeterminate"),
        ({"rs4244285": "./1"}, "indeterminate"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else "+".join(f"{k}={v}" for k, v in value.items()) or "none"
    ),
)
def test_cyp2c19_phenotypes_are_those_of_cpic(
    tmp_path: Path, genotype: dict[str, str], phenotype: str
) -> None:
    found = facts(read_panel(vcf(tmp_path / "a.vcf", HOM_REF | genotype)))
    assert found["phenotype:CYP2C19"] == phenotype


def test_a_place_without_a_record_or_call_is_unknown_and_never_the_reference(tmp_path: Path) -> None:
    batch = read_panel(vcf(tmp_path / "a.vcf", {"rs4244285": "0/1", "rs7903146": "./."}))
    found = facts(batch)
    assert found == {"variant:rs4244285": "1", "phenotype:CYP2C19": "indeterminate"}
    assert batch.rejected["place of the panel without a call"] == len(PANEL) - 1


def test_low_quality_failed_filters_and_other_alleles_are_unknown(tmp_path: Path) -> None:
    assert facts(read_panel(vcf(tmp_path / "a.vcf", HOM_REF, quality=10))) == {}
    text = vcf(tmp_path / "b.vcf", HOM_REF).read_text(encoding="utf-8")
    (tmp_path / "b.vcf").write_text(text.replace("\tPASS\t", "\tlow\t"), encoding="utf-8")
    assert facts(read_panel(tmp_path / "b.vcf")) == {}
    other = text.replace("rs7903146\tC\tT", "rs7903146\tC\tG").replace("GT:GQ\t0/0", "GT:GQ\t0/1")
    (tmp_path / "c.vcf").write_text(other, encoding="utf-8")
    assert "variant:rs7903146" not in facts(read_panel(tmp_path / "c.vcf"))


def test_a_mans_single_x_is_normal_or_deficient_and_a_womans_two_may_be_variable(tmp_path: Path) -> None:
    man, woman = HOM_REF | {"rs1050828": "1", "rs5030868": "0"}, HOM_REF | {"rs1050828": "0/1"}
    batch = read_panel(vcf(tmp_path / "a.vcf", man, woman))
    assert facts(batch, "S0")["phenotype:G6PD"] == "deficient"
    assert facts(batch, "S0")["diplotype:G6PD"] == "A-"
    assert facts(batch, "S1")["phenotype:G6PD"] == "variable"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swap": {"rs7903146": "G"}}, "reference allele"),
        ({"contigs": False}, "does not say the build"),
    ],
    ids=["strand", "no build"],
)
def test_what_may_be_another_build_or_strand_is_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_panel(vcf(tmp_path / "a.vcf", HOM_REF, **options))  # type: ignore[arg-type]  # of several types


def test_a_declared_build_counts_where_the_header_is_silent_and_may_not_contradict_it(tmp_path: Path) -> None:
    silent = vcf(tmp_path / "a.vcf", HOM_REF, version="GRCh37", contigs=False)
    assert facts(read_panel(silent, "GRCh37"))["phenotype:CYP2C9"] == "normal metabolizer"
    with pytest.raises(DataError, match="another build"):
        read_panel(vcf(tmp_path / "b.vcf", HOM_REF, version="GRCh37"), "GRCh38")


def test_reference_blocks_of_a_gvcf_count_for_the_places_in_them(tmp_path: Path) -> None:
    block = "chr8\t117172000\t.\tA\t<NON_REF>\t.\tPASS\tEND=117173000\tGT:GQ\t0/0:60\n"
    batch = read_panel(vcf(tmp_path / "a.vcf", {"rs4149056": "0/0"}, extra=block))
    assert facts(batch)["variant:rs13266634"] == "2"
    assert "variant:rs7903146" not in facts(batch)


def test_bgzip_with_an_index_and_bcf_give_what_the_text_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    people = [{v.rsid: rng.choice(["0/0", "0/1", "1/1", "./."]) for v in PANEL} for _ in range(6)]
    plain = vcf(tmp_path / "a.vcf", *people)
    expected = read_panel(plain).facts
    with (
        pysam.VariantFile(str(plain)) as source,
        pysam.VariantFile(str(tmp_path / "b.bcf"), "wb", header=source.header) as target,
    ):
        for record in source:
            target.write(record)
    pysam.tabix_compress(str(plain), str(tmp_path / "c.vcf.gz"))
    pysam.tabix_index(str(tmp_path / "c.vcf.gz"), preset="vcf")
    for name in ("b.bcf", "c.vcf.gz"):
        pd.testing.assert_frame_equal(read_panel(tmp_path / name).facts, expected)
    feed = build("vcf", {"name": "g", "path": str(tmp_path), "settle_s": 0.0})
    assert sum(len(batch.facts) for batch in feed.batches("")) == 3 * len(expected)


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_vcf_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(vcf(tmp_path / "a.vcf", HOM_REF).read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=6))
    (tmp_path / "a.vcf").write_bytes(bytes(raw))
    feed = build("vcf", {"name": "g", "path": str(tmp_path / "a.vcf"), "settle_s": 0.0})
    (batch,) = feed.batches("")
    assert len(batch.facts) or batch.rejected


@given(counts=st.lists(st.integers(0, 2), min_size=len(PANEL), max_size=len(PANEL)))
def test_a_diplotype_has_as_many_variant_alleles_as_were_counted(counts: list[int]) -> None:
    calls = {v.rsid: Call(effects=n) for v, n in zip(PANEL, counts, strict=True)}
    found = meanings(calls)
    for gene in ("CYP2C19", "CYP2C9"):
        total = sum(calls[v.rsid].effects for v in PANEL if v.gene == gene)
        stars = found.get(f"diplotype:{gene}")
        assert (stars is None) == (total > 2)
        assert stars is None or sum(star != "*1" for star in stars.split("/")) == total


def omics(path: Path, **options: object) -> list[Batch]:
    given_ = {"name": "o", "path": str(path), "settle_s": 0.0, "assay": "protein", "unit": "NPX", **options}
    return list(build("omics", given_).batches(""))


TABLE = pd.DataFrame(
    {"P01308": [5.1, 6.2, np.nan], "GCG": [1.0, 0.0, 3.5]},
    index=pd.Index(["Ada 1", "Bob", "Cy"], name="sample"),
)
EXPECTED = {
    ("Ada 1", "protein:P01308 [NPX]", "5.1"),
    ("Bob", "protein:P01308 [NPX]", "6.2"),
    ("Ada 1", "protein:GCG [NPX]", "1"),
    ("Bob", "protein:GCG [NPX]", "0"),
    ("Cy", "protein:GCG [NPX]", "3.5"),
}


@pytest.mark.parametrize("layout", ["long", "samples_in_rows", "samples_in_columns"])
@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
def test_long_and_wide_tables_in_every_form_give_the_same_facts(
    tmp_path: Path, layout: str, form: str
) -> None:
    table = {
        "long": TABLE.reset_index().melt(id_vars="sample", var_name="feature", value_name="value"),
        "samples_in_rows": TABLE.reset_index(),
        "samples_in_columns": TABLE.T.rename_axis("feature").reset_index(),
    }[layout]
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="," if form == "csv" else "\t")
    batches = omics(path, layout=layout)
    assert {tuple(row) for batch in batches for row in batch.facts.to_numpy()} == EXPECTED
    assert batches[0].rejected == {"no finite number": 1}


def test_log2_and_z_scores_follow_declared_numbers_and_not_who_else_is_in_the_file(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "t.csv")
    (tmp_path / "ref").mkdir()
    (tmp_path / "ref" / "r.csv").write_text("feature,mean,sd\nGCG,1.5,0.5\n", encoding="utf-8")
    (log,) = omics(
        tmp_path / "t.csv", layout="samples_in_rows", transform="log2", offset=1.0, features=["GCG"]
    )
    assert dict(zip(log.facts["patient"], log.facts["value"].astype(float), strict=True)) == pytest.approx(
        {"Ada 1": 1.0, "Bob": 0.0, "Cy": np.log2(4.5)}
    )
    assert set(log.facts["name"]) == {"protein:GCG [log2 NPX]"}
    options = {
        "layout": "samples_in_rows",
        "transform": "zscore",
        "reference": str(tmp_path / "ref" / "r.csv"),
    }
    (z,) = omics(tmp_path / "t.csv", **options)
    TABLE.iloc[:1].to_csv(tmp_path / "t.csv")
    (alone,) = omics(tmp_path / "t.csv", **options)
    assert alone.facts.to_numpy().tolist() == [["Ada 1", "protein:GCG [z NPX]", "-1"]]
    assert alone.facts.to_numpy().tolist()[0] in z.facts.to_numpy().tolist()


@pytest.mark.parametrize(
    "options",
    [{"unit": " "}, {"transform": "log2", "scale": "log"}, {"transform": "zscore"}, {"layout": "wide"}],
    ids=["no unit", "log of logs", "no reference", "layout"],
)
def test_undeclared_normalisation_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(DataError):
        omics(tmp_path, **options)


def test_too_many_features_and_strange_names_are_not_taken(tmp_path: Path) -> None:
    wide = pd.DataFrame({"sample": ["a"], "INS": [1.0], "name of a person": [2.0], "GCG": [3.0]})
    wide.to_csv(tmp_path / "t.csv", index=False)
    (batch,) = omics(tmp_path / "t.csv", layout="samples_in_rows")
    assert set(batch.facts["name"]) == {"protein:INS [NPX]", "protein:GCG [NPX]"}
    (refused,) = omics(tmp_path / "t.csv", layout="samples_in_rows", most_features=1)
    assert "more than 1 features" in next(iter(refused.rejected))
