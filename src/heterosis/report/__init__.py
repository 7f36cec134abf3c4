"""The report: a study on one page, to be read in two minutes or studied in twenty."""

from heterosis.report.page import REPORT, write_report

__all__ = ["REPORT", "write_report"]
