"""The engine of a running study: started when the first question comes, and started anew after it died."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heterosis.errors import CanaryError
from heterosis.evaluation.engine import Applied, Continuation, Engine, Generation, Likelihood
from heterosis.interrupts import Interrupts
from heterosis.ledger.record import Record
from heterosis.recipe import Recipe
from heterosis.study import Prepared
from heterosis.watch import Watcher


class LiveEngine:
    """The study's engine behind the Engine protocol; a finished study is shown without starting one."""

    def __init__(self, prepared: Prepared, record: Record, watcher: Watcher) -> None:
        self.interrupts = Interrupts(watcher.warn, self.kill)
        self._prepared = prepared
        self._record = record
        self._watcher = watcher
        self._engine: Engine | None = None
        self._weights = {c.recipe_digest: c.weights_digest for c in record.candidates if c.weights_digest is not None}

    def _get(self) -> Engine:
        if self._engine is None:
            self._watcher.starting(self._prepared.config.engine.kind)
            self._engine = start_engine(self._prepared)
            self._record.note("engine", self._engine.describe())
        return self._engine

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        return self._get().max_length

    def apply(self, recipe: Recipe) -> Applied:
        """Become the merge that the recipe describes, unless the user wants to stop.

        CanaryError if they are not the weights of the last time: an earlier rung, another split, before a resume.
        """
        self.interrupts.check()
        applied = self._get().apply(recipe)
        known = self._weights.setdefault(recipe.digest, applied.weights_digest)
        if known != applied.weights_digest:
            raise CanaryError(
                f"canary: the recipe gave weights {known[:12]} before and gives {applied.weights_digest[:12]} now; the "
                "candidate is not scored. Has a model's file changed, or is the machine's memory faulty?"
            )
        return applied

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """Log-likelihoods, in the order of the requests."""
        return self._get().likelihoods(requests)

    def generate(self, requests: Sequence[Generation]) -> list[str]:
        """Generated texts, in the order of the requests."""
        return self._get().generate(requests)

    def describe(self) -> dict[str, Any]:
        """Name, versions and settings."""
        return self._get().describe()

    def restart(self, reason: str) -> None:
        """Let go of an engine that can no longer be trusted; the next question starts another."""
        self.interrupts.check()  # Ctrl-C reaches the engine's processes too, and they die of it
        self._watcher.warn(f"{reason} Starting another engine.")
        self.kill()
        self.close()

    def kill(self) -> None:
        """Stop the engine's processes at once; a call under way raises EngineError. From any thread."""
        if self._engine is not None:
            self._engine.kill()

    def close(self) -> None:
        """Stop it."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def start_engine(prepared: Prepared) -> Engine:
    """The engine that the study asks for."""
    config, dtype = prepared.config, prepared.engine_dtype
    options = config.engine.options
    if config.engine.kind == "transformers":
        from heterosis.evaluation.transformers_engine import TransformersEngine

        return TransformersEngine(prepared.sources, dtype, options)
    from heterosis.evaluation.vllm_engine import VllmEngine

    log = prepared.folder / "engine.log"
    return VllmEngine(prepared.sources, dtype, prepared.panel.probes(), options, config.seed, log, prepared.family)
