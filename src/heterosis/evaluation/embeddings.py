"""Hidden states of merges through a plain transformers model, and how alike those of two models are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heterosis.errors import EngineError
from heterosis.evaluation.engine import Tokens
from heterosis.evaluation.transformers_engine import BATCH_TOKENS, padded

# What hidden states of originals may take in memory.
MOST_BYTES = 2 << 30


class Embedder:
    """A transformers model that becomes one merge after another and shows its hidden states, in float32."""

    def __init__(self, folder: Path, names: Sequence[str], device: str = "cpu") -> None:
        """`folder`: the base, whose configuration it takes; `names`: tensors that a merge brings."""
        from transformers import AutoModelForCausalLM

        try:
            with torch.random.fork_rng(devices=[]):
                model = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
                )
        except Exception as error:  # transformers raises whatever the configuration leads it to
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"transformers cannot load the base ({type(error).__name__}: {reason}).") from error
        self.model = model.to(device).eval()
        self.device = device
        if unknown := sorted(set(names) - set(self.model.state_dict())):
            raise EngineError(
                f"transformers renames {unknown[0]} of this architecture, so hidden states cannot be compared. "
                "Leave sweep.similarity out."
            )

    @property
    def layers(self) -> int:
        """Hidden states that it shows: the embeddings, and behind each layer."""
        return int(self.model.config.num_hidden_layers) + 1

    def bytes_for(self, tokens: int) -> int:
        """Memory that the hidden states of so many tokens take."""
        return tokens * self.layers * int(self.model.config.hidden_size) * 4

    @torch.inference_mode()
    def become(self, merge: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the tensors of a merge."""
        state: dict[str, Tensor] = self.model.state_dict()
        for name, tensor in merge:
            state[name].copy_(tensor)

    @torch.inference_mode()
    def states(self, texts: Sequence[Tokens]) -> list[Tensor]:
        """Of each text its hidden states, [layers + 1, tokens, hidden]. The last has gone through the final norm."""
        order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
        found: dict[int, Tensor] = {}
        start = 0
        while start < len(order):
            batch = order[start : start + max(1, BATCH_TOKENS // len(texts[order[start]]))]
            start += len(batch)
            stacked = torch.stack(self._hidden([texts[i] for i in batch]))  # [layers + 1, rows, width, hidden]
            for row, i in enumerate(batch):
                found[i] = stacked[:, row, : len(texts[i])].clone()
        return [found[i] for i in range(len(texts))]

    def _hidden(self, rows: Sequence[Tokens]) -> tuple[Tensor, ...]:
        tokens, mask = padded(rows)
        output: Any = self.model(
            tokens.to(self.device),
            attention_mask=mask.to(self.device),
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=1,
        )
        hidden: tuple[Tensor, ...] = output.hidden_states
        return hidden


def cosines(ours: Tensor, theirs: Tensor) -> list[float]:
    """Cosine of the hidden states of two models on one text, mean over its tokens.

    [layers, tokens, hidden] -> [layers]; NaN where a state is zero or not finite.
    """
    dot = (ours * theirs).double().sum(dim=-1)
    norms = ours.double().norm(dim=-1) * theirs.double().norm(dim=-1)
    means: list[float] = (dot / norms).mean(dim=-1).tolist()
    return means
