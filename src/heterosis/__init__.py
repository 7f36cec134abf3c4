"""Heterosis: searches how to merge language models, and proves that what it found is better."""

import os

__version__ = "0.1.0"

if "HETEROSIS_ENGINE_OWNER" in os.environ:  # a process of vLLM's that we started, before it waits for its owner
    from heterosis.evaluation.owner import follow_owner

    follow_owner()
