"""The diagonal of the Fisher information of a causal language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Labels = Literal["model", "data"]


def diagonal_fisher(
    model: Any, examples: Sequence[Tensor], parameters: Mapping[str, Tensor], labels: Labels, seed: int
) -> dict[str, Tensor]:
    """F = 1/N Σ_i (∇ Σ_t log p(y_it | x_i,<t))², entry by entry, float32, shaped as the parameters.

    Matena and Raffel (2022), section 3.2, with the tokens of a text as its labels. `examples`: N rows of token ids
    [T_i], T_i at least 2, one gradient at a time. `labels`: y_it is drawn from the model's own distribution at every
    position of the text (`model`: the Fisher information, whose expectation one draw per token estimates without
    bias, since gradients at different positions are uncorrelated), or is the text's next token (`data`: the
    empirical Fisher). Draws are made on the CPU by a generator of their own, seeded with `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for tokens in examples:
        with torch.enable_grad():
            logits = model(tokens[None], use_cache=False).logits[0, :-1]
            logprobs = torch.log_softmax(logits.float(), dim=-1)
            target = tokens[1:] if labels == "data" else _draw(logprobs, generator)
            likelihood = logprobs.gather(1, target[:, None]).sum()
            gradients = torch.autograd.grad(likelihood, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient.square()
    return {name: (total / len(examples)).cpu() for name, total in sums.items()}


def _draw(logprobs: Tensor, generator: torch.Generator) -> Tensor:
    """One token per position. [T, vocabulary] -> [T]."""
    drawn = torch.multinomial(logprobs.detach().double().exp().cpu(), 1, generator=generator)[:, 0]
    return drawn.to(logprobs.device)
