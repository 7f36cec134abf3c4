"""Workers that go wrong: each fault switched on by name, inside vLLM's own worker process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from heterosis.evaluation import vllm_worker
from heterosis.evaluation.vllm_worker import MergeWorker
from heterosis.recipe import Recipe

Stream = Iterator[tuple[str, Tensor]]


class FaultyWorker(MergeWorker):
    """`heterosis_fault(NAME)` breaks the next candidates in one way; `heterosis_fault("")` mends it."""

    def heterosis_fault(self, name: str) -> None:
        """Switch on one fault in place of the last."""
        if not hasattr(self, "heterosis_mend"):
            self.heterosis_mend: Callable[[], None] = lambda: None
        self.heterosis_mend()
        self.heterosis_mend = FAULTS[name](self)


def healthy(worker: Any) -> Callable[[], None]:
    return lambda: None


def head_not_refreshed(worker: Any) -> Callable[[], None]:
    """The tied head goes on answering from the packed copy of an earlier embedding."""
    head = worker.model_runner.get_model().lm_head
    stale, refresh = head.cpu_linear, vllm_worker._refresh_tied_head
    vllm_worker._refresh_tied_head = lambda model: setattr(model.lm_head, "cpu_linear", stale)

    def mend() -> None:
        vllm_worker._refresh_tied_head = refresh

    return mend


def one_parameter_not_loaded(worker: Any) -> Callable[[], None]:
    """vLLM says that it loaded a norm, and did not: the least that a model can lack."""
    return _through_load_weights(worker, lambda stream: (pair for pair in stream if NORM not in pair[0]), say=NORM)


def one_of_a_fused_parameter_not_loaded(worker: Any) -> Callable[[], None]:
    """The loader loses q_proj and says that qkv_proj is loaded, as it is in part."""
    return _through_load_weights(worker, lambda stream: (pair for pair in stream if QUERY not in pair[0]))


def tensor_of_the_previous_candidate(worker: Any) -> Callable[[], None]:
    """One tensor on its way into the engine is the one of the candidate before."""
    kept: dict[str, Tensor] = {}

    def swapped(stream: Stream) -> Stream:
        for name, tensor in stream:
            before = kept.get(name)
            if QUERY in name:
                kept[name] = tensor.clone()
            yield name, tensor if before is None else before

    return _through_load_weights(worker, swapped)


def bit_flipped_on_the_way(worker: Any) -> Callable[[], None]:
    """The lowest bit of one entry, after the digest was taken."""

    def flipped(stream: Stream) -> Stream:
        for name, tensor in stream:
            yield name, _flip(tensor.clone()) if QUERY in name else tensor

    return _through_load_weights(worker, flipped)


def bit_flipped_in_the_live_model(worker: Any) -> Callable[[], None]:
    """The lowest bit of one entry of the embedding, once it is loaded."""
    original = vllm_worker.live_checksum

    def flip_first(model: Any, packed: Any) -> int:
        _flip(model.model.embed_tokens.weight.data)
        return original(model, packed)

    vllm_worker.live_checksum = flip_first  # type: ignore[assignment]

    def mend() -> None:
        vllm_worker.live_checksum = original

    return mend


def bit_flipped_in_the_merge(worker: Any) -> Callable[[], None]:
    """The lowest bit of one entry, before anything looks at the tensor: worker, digest and reference agree."""

    def flipped(stream: Stream) -> Stream:
        for name, tensor in stream:
            yield name, _flip(tensor) if QUERY in name else tensor

    return _through_builder(worker, flipped)


def previous_tensor_in_the_merge(worker: Any) -> Callable[[], None]:
    """The merge itself yields a tensor of the candidate before."""
    kept: dict[str, Tensor] = {}

    def swapped(stream: Stream) -> Stream:
        for name, tensor in stream:
            before = kept.get(name, tensor)
            kept[name] = tensor.clone()
            yield name, before if QUERY in name else tensor

    return _through_builder(worker, swapped)


def parents_swapped(worker: Any) -> Callable[[], None]:
    """Two parents answer to each other's digest."""
    by_digest = worker.heterosis_state.builder._by_digest
    first, second = sorted(by_digest)[:2]

    def swap() -> None:
        by_digest[first], by_digest[second] = by_digest[second], by_digest[first]

    swap()
    return swap


def masks_of_another_seed(worker: Any) -> Callable[[], None]:
    """The worker reads another seed than the recipe has."""
    builder = worker.heterosis_state.builder
    plan = builder.plan
    builder.plan = lambda recipe: plan(recipe.model_copy(update={"seed": recipe.seed + 1}))

    def mend() -> None:
        del builder.plan

    return mend


def another_recipe(worker: Any) -> Callable[[], None]:
    """The worker goes on with the recipe before."""
    builder = worker.heterosis_state.builder
    plan, last = builder.plan, []

    def stale(recipe: Recipe) -> Any:
        last.append(recipe)
        return plan(last[0])

    builder.plan = stale

    def mend() -> None:
        del builder.plan

    return mend


def not_a_number(worker: Any) -> Callable[[], None]:
    """One entry of the merge is NaN."""

    def broken(stream: Stream) -> Stream:
        for name, tensor in stream:
            if QUERY in name:
                tensor.view(-1)[0] = torch.nan
            yield name, tensor

    return _through_builder(worker, broken)


def _through_load_weights(worker: Any, change: Callable[[Stream], Stream], say: str = "") -> Callable[[], None]:
    model = worker.model_runner.get_model()
    original = model.load_weights

    def load(weights: Any) -> Any:
        loaded = original(change(weights))
        return loaded | {name for name, _ in model.named_parameters() if say and say in name}

    model.load_weights = load

    def mend() -> None:
        del model.load_weights

    return mend


def _through_builder(worker: Any, change: Callable[[Stream], Stream]) -> Callable[[], None]:
    builder = worker.heterosis_state.builder
    original = builder.tensors
    builder.tensors = lambda plan: change(original(plan))

    def mend() -> None:
        del builder.tensors

    return mend


def _flip(tensor: Tensor) -> Tensor:
    tensor.view(-1)[:1].view(torch.int16 if tensor.element_size() == 2 else torch.int32).bitwise_xor_(1)
    return tensor


NORM, QUERY = "layers.0.input_layernorm", "layers.1.self_attn.q_proj"
FAULTS: dict[str, Callable[[Any], Callable[[], None]]] = {
    "": healthy,
    "tied head not refreshed": head_not_refreshed,
    "one parameter not loaded": one_parameter_not_loaded,
    "a part of a fused parameter not loaded": one_of_a_fused_parameter_not_loaded,
    "a tensor of the previous candidate left in place": tensor_of_the_previous_candidate,
    "a tensor of the previous candidate in the merge": previous_tensor_in_the_merge,
    "a bit flipped in the merge": bit_flipped_in_the_merge,
    "a bit flipped on the way into the engine": bit_flipped_on_the_way,
    "a bit flipped in the live model": bit_flipped_in_the_live_model,
    "two parents swapped": parents_swapped,
    "masks with another seed": masks_of_another_seed,
    "the recipe of the previous candidate": another_recipe,
    "NaN in the merge": not_a_number,
}
