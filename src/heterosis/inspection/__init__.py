"""Is merging sensible here? How large the task vectors are, how they lie to one another, and what follows."""

from heterosis.inspection.differences import Difference, differences
from heterosis.inspection.page import write_page
from heterosis.inspection.records import Advice, Survey
from heterosis.inspection.survey import inspect_models, survey_models
from heterosis.inspection.table import render

__all__ = [
    "Advice",
    "Difference",
    "Survey",
    "differences",
    "inspect_models",
    "render",
    "survey_models",
    "write_page",
]
