"""Scoring: tasks and items from lm-eval, the panel that fixes them for a study, and engines that answer."""
