"""From lm-eval's text requests to token ids, by lm-eval's own rules, once per study.

The rules for splitting context from continuation, for empty contexts, for rolling windows and for stop sequences are
lm-eval's; truncation is that of its vLLM model. So a panel asks exactly what `lm_eval --model vllm` would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, maybe_truncate, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from heterosis.errors import CheckpointError, TaskError
from heterosis.evaluation.engine import Continuation, Generation

DEFAULT_MAX_TOKENS = 256
DECODING = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}


class RollingWindows(NamedTuple):
    """A whole text as disjoint windows; its log-likelihood is their sum."""

    windows: tuple[Continuation, ...]


Request = Continuation | RollingWindows | Generation


class Tokenizer(TemplateLM):  # type: ignore[misc]
    """An lm-eval model that tokenises and answers nothing."""

    def __init__(self, folder: Path, max_length: int) -> None:
        from transformers import AutoTokenizer

        super().__init__()
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # transformers raises whatever the files lead it to
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{folder}: no tokenizer that transformers can load ({reason}).") from error
        if self.tokenizer.eos_token_id is None:
            raise CheckpointError(f"{folder}: its tokenizer has no end-of-sequence token. Set eos_token in its config.")
        self.max_length = max_length

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    @property
    def tokenizer_name(self) -> str:
        """Name for lm-eval's caches, which this program does not use."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Few-shot turns as the model's own chat format."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; a text that already starts with the beginning-of-sequence token gets no second one."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, **given)
        return ids

    def requests(self, instances: Sequence[Instance]) -> list[Request]:
        """Token requests for lm-eval instances, in their order."""
        by_type: dict[str, Callable[[list[Instance]], list[Request]]] = {
            "loglikelihood": lambda group: self.loglikelihood(group, disable_tqdm=True),
            "loglikelihood_rolling": self.loglikelihood_rolling,
            "generate_until": self.generate_until,
        }
        found: dict[int, Request] = {}
        for kind, encode in by_type.items():
            group = [instance for instance in instances if instance.request_type == kind]
            for instance, request in zip(group, encode(group) if group else [], strict=True):
                found[id(instance)] = request
        return [found[id(instance)] for instance in instances]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[Any]:
        """lm-eval's hook for answering tokenised pairs: here the pairs themselves are the answer."""
        return [self._continuation(context, target) for _, context, target in requests]

    def _continuation(self, context: Sequence[int], target: Sequence[int]) -> Continuation:
        if not target:
            raise TaskError(
                "a choice or continuation is empty after tokenisation. Mend doc_to_choice or doc_to_target."
            )
        overflow = len(context) + len(target) - (self.max_length - 1)
        if overflow >= len(context):
            raise TaskError(
                f"a continuation of {len(target)} tokens does not fit the engine's {self.max_length}. "
                "Raise engine.options.max_model_len, or drop this task."
            )
        return Continuation(tuple(context[max(0, overflow) :]), tuple(target))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[Any]:  # noqa: ARG002
        """Whole texts as disjoint windows."""
        return [self._rolling(instance.args[0]) for instance in requests]

    def _rolling(self, text: str) -> RollingWindows:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length - 2,
            context_len=1,
        )
        return RollingWindows(tuple(self._continuation(*make_disjoint_window(window)) for window in windows))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[Any]:  # noqa: ARG002
        """Prompts with their decoding settings."""
        return [self._generation(*instance.args[:2]) for instance in requests]

    def _generation(self, context: str, settings: dict[str, Any]) -> Generation:
        settings = normalize_gen_kwargs(settings, DEFAULT_MAX_TOKENS)
        if unknown := sorted(set(settings) - DECODING):
            raise TaskError(f"generation_kwargs: {unknown[0]} is not supported; known: {', '.join(sorted(DECODING))}.")
        stop = handle_stop_sequences(settings["until"], eos=self.tokenizer.decode(self.eot_token_id))
        room = self.max_length - 1
        prompt, max_tokens = maybe_truncate(
            self.tok_encode(context),
            max_gen_toks=min(settings["max_gen_toks"], room),
            max_model_len=self.max_length,
            shrink_gen_toks=settings["max_gen_toks"] > room,
            verbose=False,
        )
        return Generation(
            tuple(prompt),
            max_tokens,
            tuple(text for text in stop if text),
            float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0,
            float(settings.get("top_p", 1.0)),
        )
