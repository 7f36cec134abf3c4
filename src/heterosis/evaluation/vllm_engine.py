"""The vLLM engine: started once per study, told recipes instead of weights."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from heterosis.builder import Builder
from heterosis.checkpoints import Family, open_family
from heterosis.checkpoints.weights import read_json
from heterosis.errors import CanaryError, CandidateError, EngineError, StudyError
from heterosis.evaluation.canary import REFERENCE_BYTES, cache_prompt, compare
from heterosis.evaluation.engine import (
    Applied,
    Continuation,
    Generation,
    Likelihood,
    Probe,
    Sources,
    Tokens,
    context_length,
    count_in,
    cut,
)
from heterosis.evaluation.owner import owning
from heterosis.evaluation.recheck import Recheck
from heterosis.recipe import Recipe

WORKER = "heterosis.evaluation.vllm_worker.MergeWorker"
# A target up to this long is scored as a chain of one-token requests that share their context through the prefix
# cache; a longer one by prompt log-probabilities, which recompute the context and rank the whole vocabulary.
CHAIN_LENGTH = 8
# Token ids that one request may ask for: vLLM's limit is 128.
MAX_TOKEN_IDS = 128
CPU_KV_CACHE_BYTES = 1 << 30
STOP_SECONDS = 2.0


class NextToken(NamedTuple):
    """What may follow a prompt."""

    logprobs: dict[int, float]
    greedy: int
    cached: int
    """Tokens of the prompt that came from the prefix cache."""


class VllmEngine:
    """vLLM behind the Engine protocol."""

    def __init__(
        self,
        sources: Sources,
        dtype: str,
        probes: Sequence[Probe],
        options: Mapping[str, Any],
        seed: int = 0,
        log: Path | None = None,
        family: Family | None = None,
    ) -> None:
        """`dtype`: what to compute in. `log`: file for the output of vLLM's processes; None: the terminal.

        `family`: the sources, where this process has them open already.
        """
        config = read_json(sources.base / "config.json", "base")
        self.max_length = context_length(config, options.get("max_model_len"))
        self._probes = list(probes)
        self._last: tuple[str, list[list[float]]] | None = None
        self._log = log
        before = set(multiprocessing.active_children())
        with _output_to(log):
            self._options = _engine_options(config, options, dtype, self.max_length, seed)
            self._llm = _start(sources.base, self._options, log)
        self._processes = set(multiprocessing.active_children()) - before
        weights = sum(path.stat().st_size for path in sources.base.glob("*.safetensors"))
        parents = {name: str(folder) for name, folder in sources.parents.items()}
        questions = [(list(probe.prompt), list(probe.targets)) for probe in self._probes]
        summed = self._rpc("heterosis_open", str(sources.base), parents, questions, weights <= REFERENCE_BYTES)
        self._live_weights_compared = all(summed)
        family = family or open_family(sources.base, sources.parents)
        self._recheck = Recheck(Builder(family, compiled=False))  # compiling would pay for a whole model only
        self._cache_prompt = cache_prompt(
            self._probes, self._llm.llm_engine.vllm_config.cache_config.block_size, self.max_length
        )

    def apply(self, recipe: Recipe) -> Applied:
        """Merge inside the workers, forget all cached prefixes, and prove the result on the probes."""
        answers = self._rpc("heterosis_apply", recipe.model_dump_json())
        for answer in answers:
            if "error" in answer:
                raise (CanaryError if answer["canary"] else CandidateError)(answer["error"])
        if len({answer["digest"] for answer in answers}) != 1:
            raise CanaryError(
                "canary: the workers of one engine merged different weights; the candidate is not scored."
            )
        first = answers[0]
        rechecked = self._recheck.start(recipe, first["digests"]) if first["digests"] else None
        if not self._llm.reset_prefix_cache():
            raise CanaryError("canary: the prefix cache could not be cleared; the candidate is not scored.")
        self._compare(first["digest"], self._probe(), first["expected"])
        if rechecked is not None:
            rechecked.result()
        return Applied(first["digest"], first["merge_seconds"])

    def _probe(self) -> list[list[float]]:
        wanted: dict[Tokens, set[int]] = {}
        for probe in self._probes:
            wanted.setdefault(probe.prompt, set()).update(probe.targets)
        if self._cache_prompt is not None:
            wanted.setdefault(self._cache_prompt, set()).update(self._cache_prompt[-1:])
        found = self._next_tokens(wanted)
        if any(found[prompt].cached for prompt in wanted):
            raise CanaryError("canary: a probe was answered from cached prefixes of earlier weights.")
        return [[found[probe.prompt].logprobs[target] for target in probe.targets] for probe in self._probes]

    def _compare(self, digest: str, live: list[list[float]], expected: list[list[float]] | None) -> None:
        """Against the reference; for models too large to have one, against the answers of the weights before."""
        if expected is not None:
            compare(live, expected, self._options["dtype"])
        elif self._last is not None and self._last[0] != digest and self._last[1] == live:
            raise CanaryError("canary: the probes' answers did not change with the weights; the swap did not take.")
        self._last = (digest, live)

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """Short targets by chains of next-token requests, long ones by prompt log-probabilities."""
        chained = [request for request in requests if len(request.target) <= CHAIN_LENGTH]
        found = dict(zip(chained, self._chains(chained), strict=True))
        long = list(dict.fromkeys(request for request in requests if len(request.target) > CHAIN_LENGTH))
        found.update(zip(long, self._prompt_logprobs(long), strict=True))
        return [found[request] for request in requests]

    def _chains(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """log p(target) = Σ_j log p(target[j] | context + target[:j]), with every prefix asked once."""
        wanted: dict[Tokens, set[int]] = {}
        for context, target in requests:
            for j, token in enumerate(target):
                wanted.setdefault(context + target[:j], set()).add(token)
        found = self._next_tokens(wanted)
        likelihoods = []
        for context, target in requests:
            logprob, greedy = 0.0, True
            for j, token in enumerate(target):
                step = found[context + target[:j]]
                logprob += step.logprobs[token]
                greedy &= step.greedy == token
            likelihoods.append(Likelihood(logprob, greedy))
        return likelihoods

    def _next_tokens(self, wanted: Mapping[Tokens, set[int]]) -> dict[Tokens, NextToken]:
        """Log-probabilities of the wanted tokens after each prompt, in as many requests as vLLM's limit asks for."""
        from vllm import SamplingParams

        asked = [(prompt, part) for prompt, tokens in wanted.items() for part in _parts(sorted(tokens), MAX_TOKEN_IDS)]
        parameters = [
            SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=part) for _, part in asked
        ]
        found: dict[Tokens, NextToken] = {}
        outputs = self._generate([prompt for prompt, _ in asked], parameters)
        for (prompt, part), output in zip(asked, outputs, strict=True):
            answer = output.outputs[0]
            step = found.setdefault(prompt, NextToken({}, answer.token_ids[0], output.num_cached_tokens or 0))
            step.logprobs.update((token, answer.logprobs[0][token].logprob) for token in part)
        return found

    def _prompt_logprobs(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, prompt_logprobs=0)
        prompts = [request.context + request.target for request in requests]
        likelihoods = []
        for request, output in zip(requests, self._generate(prompts, [parameters] * len(prompts)), strict=True):
            logprob, greedy = 0.0, True
            tail = output.prompt_logprobs[len(request.context) :]
            for token, candidates in zip(request.target, tail, strict=True):
                logprob += candidates[token].logprob
                greedy &= candidates[token].rank == 1
            likelihoods.append(Likelihood(logprob, greedy))
        return likelihoods

    def generate(self, requests: Sequence[Generation]) -> list[str]:
        """Generated texts, without the stop string."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                max_tokens=request.max_tokens,
                stop=list(request.stop),
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed if request.temperature > 0.0 else None,
                skip_special_tokens=False,  # as lm-eval: a special token may be a stop string
                spaces_between_special_tokens=False,
            )
            for request in requests
        ]
        outputs = self._generate([request.prompt for request in requests], parameters)
        return [cut(output.outputs[0].text, request.stop) for output, request in zip(outputs, requests, strict=True)]

    def _generate(self, prompts: Sequence[Tokens], parameters: Sequence[Any]) -> list[Any]:
        from vllm.inputs import TokensPrompt

        if not prompts:
            return []
        try:
            outputs: list[Any] = self._llm.generate(
                [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts], list(parameters), use_tqdm=False
            )
        except Exception as error:  # vLLM wraps a dead worker in several types
            raise EngineError(f"vLLM failed while answering: {_first_line(error)}.") from error
        return outputs

    def _rpc(self, method: str, *arguments: Any) -> list[Any]:
        try:
            answers: list[Any] = self._llm.collective_rpc(method, args=arguments)
        except Exception as error:  # the worker's own exception arrives as text
            raise EngineError(f"vLLM failed in {method}: {_first_line(error)}.") from error
        return answers

    def describe(self) -> dict[str, Any]:
        """Name, version and settings."""
        import vllm

        return {
            "engine": "vllm",
            "version": vllm.__version__,
            "options": self._options,
            "live_weights_compared": self._live_weights_compared,
        }

    def kill(self) -> None:
        """Kill vLLM's processes; its own watch over them makes a waiting call fail."""
        for process in self._processes:
            process.kill()

    def close(self) -> None:
        """Stop vLLM and its processes."""
        with _output_to(self._log):
            self._llm.llm_engine.engine_core.shutdown(timeout=STOP_SECONDS)


def _engine_options(
    config: Mapping[str, Any], options: Mapping[str, Any], dtype: str, max_length: int, seed: int
) -> dict[str, Any]:
    """The user's options over ours. On a CPU, settings that suit a search: no compilation, a small KV cache."""
    from vllm.platforms import current_platform

    ours: dict[str, Any] = {
        "dtype": dtype,
        "seed": seed,
        "max_model_len": max_length,
        "max_logprobs": MAX_TOKEN_IDS,
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():
        _check_head_size(config)
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")  # this process only waits while the engine works
        ours |= {"enforce_eager": True, "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES}
    return ours | dict(options)


def _check_head_size(config: Mapping[str, Any]) -> None:
    heads, hidden = count_in(config, "num_attention_heads", "n_head"), count_in(config, "hidden_size", "n_embd")
    size = count_in(config, "head_dim") or (hidden // heads if heads and hidden else 64)
    if size % 16 or size < 32:
        raise EngineError(
            f"vLLM on a CPU needs attention heads of a multiple of 16, at least 32; this model's are {size}. "
            "Set engine.kind: transformers."
        )


def _start(base: Path, options: Mapping[str, Any], log: Path | None) -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import LLM, EngineArgs

    known = {field.name for field in fields(EngineArgs)} | signature(LLM).parameters.keys()
    for name in (each for each in options if each not in known):  # no other engine would take it either
        near = get_close_matches(name, known, 1)
        raise StudyError(f"engine.options: vLLM has no {name}{f'; did you mean {near[0]}?' if near else '.'}")
    try:
        with owning():
            return LLM(model=str(base), worker_extension_cls=WORKER, enable_prefix_caching=True, **options)
    except Exception as error:  # start-up fails in as many ways as there are machines
        where = "engine.options" if log is None else f"{log} and engine.options"
        raise EngineError(f"vLLM did not start: {_first_line(error)}. See {where}.") from error


@contextlib.contextmanager
def _output_to(log: Path | None) -> Iterator[None]:
    """Send this process's output and that of the processes it starts to a file; the children keep it.

    vLLM's log writes to whatever sys.stdout is when it is imported: a live view may have put something else there.
    """
    if log is None:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept, streams = (os.dup(1), os.dup(2)), (sys.stdout, sys.stderr)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = sys.__stdout__ or sys.stdout, sys.__stderr__ or sys.stderr
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)


def _parts(tokens: list[int], size: int) -> Iterator[list[int]]:
    return (tokens[at : at + size] for at in range(0, len(tokens), size))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
