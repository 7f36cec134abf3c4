"""What an adapter's configuration says about the maths, and what its tensors' names say about where they belong.

The format is PEFT's: `adapter_config.json` beside `adapter_model.safetensors`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from heterosis.checkpoints.weights import read_json
from heterosis.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"

READ_KEYS = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
        "modules_to_save",
        "init_lora_weights",
    }
)
# Keys that say where an adapter sits (its tensors' names say that already), how it was trained, or what it is called.
OTHER_KEYS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
# Initialisations that leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract from it.
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraSettings:
    """The settings of an adapter that change its weights' meaning."""

    rank: int
    alpha: float
    rslora: bool
    dora: bool
    fan_in_fan_out: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    modules_to_save: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """Rank of one module."""
        return self.rank_pattern.get(_pattern(self.rank_pattern, module), self.rank)

    def scaling_of(self, module: str) -> float:
        """α / r, or α / √r where rank-stabilised (Kalajdzievski 2023, eq. 5), of one module."""
        alpha = self.alpha_pattern.get(_pattern(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _pattern(patterns: Mapping[str, object], module: str) -> str:
    """The first key that matches the module's whole name, or the end of it from a dot on, as a regular expression."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def check_origin(folder: Path, name: str, model_type: object) -> None:
    """Refuse an adapter that says it was trained on a model of another kind, where that model is at hand."""
    said = read_json(folder / ADAPTER_CONFIG, name).get("base_model_name_or_path")
    if not isinstance(said, str) or not said:
        return
    for place in (folder / said, Path(said)):
        if (place / "config.json").is_file():
            kind = read_json(place / "config.json", name).get("model_type")
            if kind != model_type:
                raise CheckpointError(
                    f"{name}: the adapter was trained on {said}, a {kind}; the base is a {model_type}. "
                    "Give the base that the adapter belongs to."
                )
            return


def read_settings(folder: Path, name: str) -> LoraSettings:
    """Read and check an adapter's configuration. What changes the maths and is not known here is refused by name."""
    content = read_json(folder / ADAPTER_CONFIG, name)
    kind = content.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{name}: {ADAPTER_CONFIG} has peft_type {kind!r}; only LORA can be merged. {_REMEDY}")
    for key, value in content.items():
        if key not in READ_KEYS | OTHER_KEYS and value:
            raise CheckpointError(f"{name}: {ADAPTER_CONFIG} sets {key!r}, which is not supported. {_REMEDY}")
    init = content.get("init_lora_weights")
    if not any(init is plain or (isinstance(plain, str) and init == plain) for plain in PLAIN_INITS):
        raise CheckpointError(
            f"{name}: {ADAPTER_CONFIG} has init_lora_weights {init!r}, which also changes the base. "
            "Save it with path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
        )
    _check_types(content, name)
    return LoraSettings(
        rank=content.get("r", 8),
        alpha=float(content.get("lora_alpha", 8)),
        rslora=bool(content.get("use_rslora")),
        dora=bool(content.get("use_dora")),
        fan_in_fan_out=bool(content.get("fan_in_fan_out")),
        rank_pattern=content.get("rank_pattern") or {},
        alpha_pattern={key: float(value) for key, value in (content.get("alpha_pattern") or {}).items()},
        modules_to_save=tuple(content.get("modules_to_save") or ()),
    )


_REMEDY = "Merge it into its base with PEFT's merge_and_unload and give the full model."


def _check_types(content: Mapping[str, Any], name: str) -> None:
    def is_map(value: object, fits: Any) -> bool:
        return value is None or (isinstance(value, dict) and all(map(fits, value.values())))

    fits = {
        "r": _is_rank(content.get("r", 8)),
        "lora_alpha": _is_alpha(content.get("lora_alpha", 8)),
        "rank_pattern": is_map(content.get("rank_pattern"), _is_rank),
        "alpha_pattern": is_map(content.get("alpha_pattern"), _is_alpha),
        "modules_to_save": isinstance(modules := content.get("modules_to_save") or [], list)
        and all(isinstance(module, str) for module in modules),
    }
    if wrong := [key for key, fit in fits.items() if not fit]:
        raise CheckpointError(f"{name}: {ADAPTER_CONFIG} has an impossible {wrong[0]}. Save the adapter again.")
    for setting in ("rank_pattern", "alpha_pattern"):
        for key in content.get(setting) or ():
            try:
                re.compile(rf"(.*\.)?({key})$")
            except (re.error, RecursionError, OverflowError) as error:
                raise CheckpointError(
                    f"{name}: {setting} in {ADAPTER_CONFIG} has {key!r}, which is no regular expression ({error}). "
                    "Save the adapter again."
                ) from error


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # NaN is not below


PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")


class Key(NamedTuple):
    """Name of a stored tensor, taken apart."""

    module: str
    part: str
    """One of PARTS, or "" for a weight that is stored in full."""

    leaf: str
    """`weight` or `bias`."""


def parse_key(key: str) -> Key:
    """`base_model.model.<module>.<part>[.<adapter name>][.weight]` or `base_model.model.<module>.<leaf>`.

    A full weight may also stand below `base_layer`, or below `modules_to_save.<adapter name>`.
    """
    words = key.removeprefix("base_model.model.").split(".")
    for at, word in enumerate(words):
        if word in PARTS:
            return Key(".".join(words[:at]), word, "bias" if words[-1] == "bias" else "weight")
    leaf = words.pop()
    if words and words[-1] == "base_layer":
        words.pop()
    if len(words) > 1 and words[-2] == "modules_to_save":
        words = words[:-2]
    return Key(".".join(words), "", leaf)
