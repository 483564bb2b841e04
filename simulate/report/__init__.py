"""The report of a run: one HTML page that needs nothing but itself."""

from simulate.report.collect import differences_of, examples_of, pairs_of
from simulate.report.data import CostRow, Example, Pairs, ReportData
from simulate.report.page import write_report

__all__ = [
    "CostRow",
    "Example",
    "Pairs",
    "ReportData",
    "differences_of",
    "examples_of",
    "pairs_of",
    "write_report",
]
