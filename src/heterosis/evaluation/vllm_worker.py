"""The half of the vLLM engine that lives inside each vLLM worker: it opens the parents once and merges in place.

vLLM mixes `MergeWorker` into its own worker class, so every name here starts with `heterosis_` and all state hangs on
one attribute. Under tensor parallelism each worker merges whole tensors and vLLM's own loaders take their shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heterosis.builder import Builder
from heterosis.checkpoints import Family, open_family
from heterosis.checkpoints.layout import storage_order
from heterosis.errors import CanaryError, CandidateError
from heterosis.evaluation.canary import Reference
from heterosis.evaluation.engine import Probe
from heterosis.evaluation.live_weights import check_tied_head, live_checksum, watch_packing
from heterosis.evaluation.observed import WORD, Observed, multiset_checksum
from heterosis.evaluation.owner import follow_owner
from heterosis.recipe import Recipe


class MergeWorker:
    """Worker extension: `collective_rpc("heterosis_open", …)` once, then `heterosis_apply` per candidate."""

    device: torch.device
    model_runner: Any

    def heterosis_open(self, base: str, parents: dict[str, str], probes: list[Any], reference: bool) -> bool:
        """Open the family; returns whether the live weights can be summed up and compared with a merge.

        `reference`: also answer the probes from the merged tensors, for the canary.
        """
        follow_owner()  # VLLM_PLUGINS may leave the plugin out
        family = open_family(Path(base), {name: Path(folder) for name, folder in parents.items()})
        device = _resident_device(self.device, family)
        self.heterosis_state = WorkerState(
            Builder(family, device),
            [Probe(tuple(prompt), tuple(targets)) for prompt, targets in probes],
            Reference(Path(base)) if reference else None,
            _live_dtype(self.model_runner, family),
        )
        return self.heterosis_state.live_dtype is not None

    def heterosis_apply(self, recipe_json: str) -> dict[str, Any]:
        """Merge into the live model. Returns digests, timings and the probes' reference answers, or an `error`."""
        state: WorkerState = self.heterosis_state
        try:
            recipe = Recipe.model_validate_json(recipe_json)
            stream = Observed(state.builder, recipe, state.reference is not None, state.live_dtype)
            live = _swap(self.model_runner, stream)
            digest = stream.digest()
            if state.live_dtype is not None and live != stream.checksum():
                raise CanaryError(
                    "canary: the weights in the engine are not those that were merged. The swap did not take; the "
                    "candidate is not scored."
                )
        except CandidateError as error:
            return {"error": str(error), "canary": isinstance(error, CanaryError)}
        expected = state.reference.answer(stream.kept, state.probes) if state.reference is not None else None
        answer = {"digest": digest, "expected": expected, "merge_seconds": stream.seconds}
        # An accelerator may round otherwise than this machine's processor, which is what checks these digests.
        return answer | {"digests": stream.digests() if state.builder.device.type == "cpu" else {}}


class WorkerState:
    """What a worker keeps between candidates."""

    def __init__(
        self, builder: Builder, probes: list[Probe], reference: Reference | None, live_dtype: torch.dtype | None
    ) -> None:
        self.builder = builder
        self.probes = probes
        self.reference = reference
        self.live_dtype = live_dtype
        """What the live weights are kept in; None where their checksum says nothing of a merge."""


def _live_dtype(runner: Any, family: Family) -> torch.dtype | None:
    """What the live weights are kept in, if the checksum of the base in the engine is that of the base at rest.

    It is not where vLLM computes something from what it loads, quantises it, or divides it among several workers.
    """
    dtype: torch.dtype = runner.model_config.dtype
    if runner.vllm_config.parallel_config.world_size != 1:
        return None
    at_rest = 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal at_rest
        for name in storage_order(family.names):
            tensor = family.base.tensor(name)
            at_rest += multiset_checksum(tensor.to(dtype))
            yield name, tensor.clone()  # vLLM keeps some until a layer is complete

    return dtype if _swap(runner, tensors()) == at_rest % WORD else None


def _swap(runner: Any, tensors: Iterable[tuple[str, Tensor]]) -> int:
    """Load tensors into the live model in place, by vLLM's own loaders. Returns the checksum of what it then holds.

    These are the steps of vLLM's `reload_weights`, which only warns of parameters that were not loaded.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    model = runner.get_model()
    with set_current_vllm_config(runner.vllm_config), torch.inference_mode(), watch_packing(model) as packed:
        expected = {name for name, _ in model.named_parameters()}
        initialize_layerwise_reload(model)
        loaded = model.load_weights(iter(tensors))
        finalize_layerwise_reload(model, runner.model_config)
        _refresh_tied_head(model)
        check_tied_head(model, packed)
    missing = sorted(expected - set(loaded)) if loaded is not None else []
    if missing:
        raise CandidateError(f"vLLM did not load {missing[0]} ({len(missing)} parameters in all).")
    return live_checksum(model, packed)


def _refresh_tied_head(model: Any) -> None:
    """A tied head may hold a packed copy of the embedding, which a reload of the embedding leaves behind."""
    head = getattr(model, "lm_head", None)
    method = getattr(head, "quant_method", None)
    if method is not None and getattr(model.config, "tie_word_embeddings", False):
        method.process_weights_after_loading(head)


def _resident_device(device: torch.device, family: Family) -> torch.device:
    """Where to merge: on the accelerator when all sources and some room fit beside the engine, else on the CPU."""
    if device.type != "cuda":
        return torch.device("cpu")
    needed = sum(member.bytes for member in family.members.values())
    free, _ = torch.cuda.mem_get_info(device)
    return device if needed * 1.2 < free else torch.device("cpu")
