"""The plain transformers engine: the same protocol, for machines without vLLM and models that vLLM cannot run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from heterosis.builder import Builder
from heterosis.checkpoints import content_digest, open_family, tensor_digest
from heterosis.errors import CanaryError, EngineError
from heterosis.evaluation.engine import (
    Applied,
    Continuation,
    Generation,
    Likelihood,
    Sources,
    Tokens,
    context_length,
    cut,
)
from heterosis.evaluation.observed import Observed
from heterosis.recipe import Recipe

# Tokens per forward pass, padding included.
BATCH_TOKENS = 2048


def padded(rows: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """Token ids [rows, width], zeros behind the shorter rows, and the attention mask."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, values in enumerate(rows):
        tokens[row, : len(values)] = torch.tensor(values)
        mask[row, : len(values)] = 1
    return tokens, mask


class TransformersEngine:
    """transformers behind the Engine protocol. Greedy decoding only."""

    def __init__(self, sources: Sources, dtype: str, options: Mapping[str, Any]) -> None:
        """`dtype`: what to compute in. Options: max_model_len, device."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device = torch.device(options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
        family = open_family(sources.base, sources.parents)
        self.builder = Builder(family, self.device)
        self.max_length = context_length(family.base.config, options.get("max_model_len"))
        self.tokenizer = AutoTokenizer.from_pretrained(sources.base)
        self.dtype = dtype
        try:
            model = AutoModelForCausalLM.from_pretrained(sources.base, dtype=getattr(torch, self.dtype))
            self.model = model.to(self.device).eval()
        except Exception as error:  # transformers raises whatever the configuration leads it to
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"transformers cannot load the base ({type(error).__name__}: {reason}).") from error
        ends = self.model.generation_config.eos_token_id
        self._ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        unknown = sorted(set(family.names) - set(self.model.state_dict()))
        if unknown:
            raise EngineError(f"transformers renames {unknown[0]} of this architecture. Set engine.kind: vllm.")

    @torch.inference_mode()
    def apply(self, recipe: Recipe) -> Applied:
        """Copy the merge into the model, then check the model's own tensors against it."""
        merge = Observed(self.builder, recipe)
        state: dict[str, Tensor] = self.model.state_dict()
        for name, tensor in merge:
            state[name].copy_(tensor)
        digest = merge.digest()
        state = self.model.state_dict()
        live = {name: tensor_digest(state[name].to(spec.dtype)) for name, spec in merge.specs.items()}
        if content_digest(merge.specs, live) != digest:
            raise CanaryError("canary: the live weights are not the merged ones; the candidate is not scored.")
        return Applied(digest, merge.seconds)

    @torch.inference_mode()
    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """Forward passes over batches of similar length, right-padded. Requests that share a row share its pass."""
        rows: dict[Tokens, list[int]] = {}
        for i, request in enumerate(requests):
            rows.setdefault(request.context + request.target[:-1], []).append(i)
        order = sorted(rows, key=lambda row: (-len(row), row))
        answers: dict[int, Likelihood] = {}
        start = 0
        while start < len(order):
            batch = order[start : start + max(1, BATCH_TOKENS // len(order[start]))]
            start += len(batch)
            first = min(len(requests[i].context) - 1 for row in batch for i in rows[row])
            for row, logits in zip(batch, self._logits(batch, first), strict=True):
                for i in rows[row]:
                    answers[i] = _likelihood(logits, first, requests[i])
        return [answers[i] for i in range(len(requests))]

    def _logits(self, rows: Sequence[Tokens], first: int) -> Tensor:
        """Logits of all rows from position `first` on: [rows, width - first, vocabulary]."""
        tokens, mask = padded(rows)
        output: Any = self.model(
            tokens.to(self.device),
            attention_mask=mask.to(self.device),
            use_cache=False,
            logits_to_keep=torch.arange(first, tokens.shape[1], device=self.device),
        )
        logits: Tensor = output.logits
        return logits

    @torch.inference_mode()
    def generate(self, requests: Sequence[Generation]) -> list[str]:
        """Greedy generation with a key-value cache, one prompt at a time, until a stop string appears."""
        if any(request.temperature > 0.0 for request in requests):
            raise EngineError(
                "the transformers engine only decodes greedily. Set engine.kind: vllm for sampling tasks."
            )
        return [self._greedy(request) for request in requests]

    def _greedy(self, request: Generation) -> str:
        tokens: list[int] = []
        inputs, cache = torch.tensor([request.prompt], device=self.device), None
        text = ""
        for _ in range(request.max_tokens):
            output: Any = self.model(inputs, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            token = int(output.logits[0, -1].argmax())
            if token in self._ends:
                break
            tokens.append(token)
            text = self.tokenizer.decode(tokens)
            if any(stop in text for stop in request.stop):
                break
            inputs = torch.tensor([[token]], device=self.device)
        return cut(text, request.stop)

    def describe(self) -> dict[str, Any]:
        """Name, version and settings."""
        import transformers

        return {
            "engine": "transformers",
            "version": transformers.__version__,
            "device": str(self.device),
            "dtype": self.dtype,
        }

    def kill(self) -> None:
        """Nothing to stop: it computes in this very process, where a call cannot be cut short."""

    def close(self) -> None:
        """Let go of the model."""
        self.builder.family.close()


def _likelihood(logits: Tensor, offset: int, request: Continuation) -> Likelihood:
    first = len(request.context) - 1 - offset
    target = torch.tensor(request.target, device=logits.device)
    logprobs = torch.log_softmax(logits[first : first + len(target)].float(), dim=-1)
    greedy = bool((logprobs.argmax(dim=-1) == target).all())
    return Likelihood(float(logprobs.gather(1, target[:, None]).double().sum()), greedy)
