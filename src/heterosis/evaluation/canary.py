"""The canary: after every swap, does the live model say what the recipe's weights say?

The engine answers a few probes; the same probes go through a plain transformers model that holds the merged tensors
straight from the merge. Two implementations in low precision never agree to the last digit, so the comparison is of
means, wide enough for rounding and far below what a stale cache, a stale head or a missing tensor does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heterosis.errors import CanaryError
from heterosis.evaluation.engine import Continuation, Probe, Tokens

# Mean absolute difference in log-probability that rounding may cause, by what the engine computes in: a constant part,
# and one that grows with the size of the log-probabilities (bf16 keeps three digits).
TOLERANCES = {"float32": (1e-3, 1e-3), "float16": (0.02, 0.01), "bfloat16": (0.05, 0.03)}
# Tokens in the smallest block of a prefix cache.
BLOCK = 16
# Largest model, in bytes of weights, that gets a second copy for the comparison.
REFERENCE_BYTES = 1 << 30


def pick_probes(requests: Sequence[Continuation], count: int = 6, length: int = 48) -> list[Probe]:
    """Probes from a panel's own requests: short contexts, spread over the panel, with the targets asked for there."""
    # Probes that began alike would share cached prefixes among themselves, which must not look like a stale cache.
    distinct = list({request.context[-length:][:BLOCK]: request for request in requests}.values())
    step = max(1, len(distinct) // count)
    return [Probe(request.context[-length:], request.target[:1]) for request in distinct[::step][:count]]


def cache_prompt(probes: Sequence[Probe], block: int, max_length: int) -> Tokens | None:
    """A prompt that fills a block of the prefix cache, so that it would be answered from one that was not cleared.

    Probes may be shorter than a block, while the panel's prompts are not. None where no prompt fills a block. It shares
    no beginning with a probe: what is asked at the same time may well be answered from each other's prefixes.
    """
    length = block + 1  # the last token is always computed
    if not probes or length >= max_length:
        return None
    first = probes[0].prompt
    used = {probe.prompt[0] for probe in probes}
    start = next((token for token in range(max(first)) if token not in used), None)
    if start is None:
        return None
    return (start, *(first * (length // len(first) + 1))[: length - 1])


class Reference:
    """A transformers model of the same architecture that answers probes from given weights."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder)
        with torch.random.fork_rng(devices=[]):
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self.model.eval()
        self.names = set(self.model.state_dict())

    @torch.inference_mode()
    def answer(self, weights: Mapping[str, Tensor], probes: Sequence[Probe]) -> list[list[float]]:
        """Log-probabilities of every probe's targets, [probes][targets]."""
        state = {name: tensor.to("cpu", torch.float32) for name, tensor in weights.items()}
        answers = []
        for probe in probes:
            output: Any = torch.func.functional_call(self.model, state, (torch.tensor([probe.prompt]),))
            logprobs = torch.log_softmax(output.logits[0, -1].float(), dim=-1)
            answers.append(logprobs[list(probe.targets)].tolist())
        return answers


def compare(live: Sequence[Sequence[float]], expected: Sequence[Sequence[float]], dtype: str) -> None:
    """Raise CanaryError when the live model's log-probabilities are not those of the recipe's weights."""
    pairs = [(a, b) for some, others in zip(live, expected, strict=True) for a, b in zip(some, others, strict=True)]
    difference = sum(abs(a - b) for a, b in pairs) / len(pairs)
    absolute, relative = TOLERANCES.get(dtype, TOLERANCES["bfloat16"])
    allowed = absolute + relative * sum(abs(b) for _, b in pairs) / len(pairs)
    if not difference <= allowed:  # NaN must fail too
        raise CanaryError(
            f"canary: the engine's log-probabilities differ from the recipe's by {difference:.4f} on average over "
            f"{len(pairs)} probes (allowed: {allowed:.4f}). The swap did not take; the candidate is not scored."
        )
