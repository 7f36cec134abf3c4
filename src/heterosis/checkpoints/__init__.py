"""Checkpoints in and out: folders of safetensors, their layout over depth, and what makes them one family."""

from heterosis.checkpoints.adapter import Adapter
from heterosis.checkpoints.family import Family, open_family
from heterosis.checkpoints.layout import DEFAULT_GROUPS, Layout
from heterosis.checkpoints.local import at_hand
from heterosis.checkpoints.reader import Checkpoint
from heterosis.checkpoints.source import ModelRef, resolve
from heterosis.checkpoints.tensors import TensorSource, TensorSpec, content_digest, tensor_digest
from heterosis.checkpoints.writer import write_checkpoint

__all__ = [
    "DEFAULT_GROUPS",
    "Adapter",
    "Checkpoint",
    "Family",
    "Layout",
    "ModelRef",
    "TensorSource",
    "TensorSpec",
    "at_hand",
    "content_digest",
    "open_family",
    "resolve",
    "tensor_digest",
    "write_checkpoint",
]
