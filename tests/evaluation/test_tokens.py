"""Requests as token ids: lm-eval's rules, with the truncation of its vLLM model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import FamilyFolder
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance

from heterosis.errors import CheckpointError, TaskError
from heterosis.evaluation.engine import Continuation, Generation
from heterosis.evaluation.tokens import DEFAULT_MAX_TOKENS, RollingWindows, Tokenizer

BOS, EOS = 0, 1
LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer(tiny_family: FamilyFolder) -> Tokenizer:
    return Tokenizer(tiny_family() / "base", LENGTH)


def asked(tokenizer: Tokenizer, kind: Any, *arguments: Any) -> Any:
    """The request for one lm-eval instance."""
    (request,) = tokenizer.requests([Instance(kind, {}, arguments, 0)])
    return request


def text(first: int, count: int) -> str:
    return " ".join(f"w{3 + (first + i) % 61}" for i in range(count))


def test_context_and_continuation_are_split_where_the_text_is(tokenizer: Tokenizer) -> None:
    assert asked(tokenizer, "loglikelihood", "w3 w4", " w5 w6") == Continuation((3, 4), (5, 6))


def test_a_space_at_the_end_of_the_context_goes_to_the_continuation(tokenizer: Tokenizer) -> None:
    assert asked(tokenizer, "loglikelihood", "w3 w4 ", "w5") == Continuation((3, 4), (5,))


def test_an_empty_context_is_the_beginning_of_sequence(tokenizer: Tokenizer) -> None:
    assert asked(tokenizer, "loglikelihood", "", "w5 w6") == Continuation((BOS,), (5, 6))


def test_a_long_context_loses_its_beginning(tokenizer: Tokenizer) -> None:
    request = asked(tokenizer, "loglikelihood", text(0, 40), " w5 w6")
    assert request.target == (5, 6)
    assert (
        request.context == tuple(tokenizer.tok_encode(text(0, 40)))[-(LENGTH - 3) :]
    )  # one token is left for vLLM to generate


@pytest.mark.parametrize("count", [LENGTH - 1, LENGTH + 5])
def test_a_continuation_that_leaves_no_context_is_refused(tokenizer: Tokenizer, count: int) -> None:
    with pytest.raises(TaskError, match=rf"{count} tokens does not fit the engine's {LENGTH}\. Raise"):
        asked(tokenizer, "loglikelihood", "w3", " " + text(0, count))


def test_an_empty_continuation_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TaskError, match="empty after tokenisation"):
        asked(tokenizer, "loglikelihood", "w3", " ")


@given(count=st.integers(1, 60))
def test_windows_cover_a_text_once_and_fit_the_engine(tokenizer: Tokenizer, count: int) -> None:
    request = asked(tokenizer, "loglikelihood_rolling", text(0, count))
    assert isinstance(request, RollingWindows)
    tokens = tuple(tokenizer.tok_encode(text(0, count)))
    assert sum((window.target for window in request.windows), ()) == tokens
    assert all(len(window.context) + len(window.target) < LENGTH for window in request.windows)
    assert request.windows[0].context == (BOS,)
    seen = 0
    for before, window in pairwise(request.windows):
        seen += len(before.target)
        assert window.context == tokens[seen - len(window.context) : seen]


def test_a_generation_stops_where_the_task_says_and_at_the_end_of_text(tokenizer: Tokenizer) -> None:
    settings = {"until": ["w7", "w8 w9"], "max_gen_toks": 5}
    assert asked(tokenizer, "generate_until", "w3 w4", settings) == Generation((3, 4), 5, ("w7", "w8 w9", "</s>"))


def test_a_long_prompt_loses_its_beginning(tokenizer: Tokenizer) -> None:
    request = asked(tokenizer, "generate_until", text(0, 40), {"until": [], "max_gen_toks": 5})
    assert len(request.prompt) + request.max_tokens == LENGTH
    assert request.prompt == tuple(tokenizer.tok_encode(text(0, 40)))[-len(request.prompt) :]


@pytest.mark.parametrize("settings", [{"until": []}, {"until": [], "max_gen_toks": DEFAULT_MAX_TOKENS}])
def test_more_tokens_than_the_engine_holds_shrink_to_what_is_left(
    tokenizer: Tokenizer, settings: dict[str, Any]
) -> None:
    request = asked(tokenizer, "generate_until", "w3 w4 w5", settings)
    assert request.prompt == (3, 4, 5)
    assert len(request.prompt) + request.max_tokens == LENGTH


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, 0.0),
        ({"temperature": 0.0}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True, "temperature": 0.7}, 0.7),
    ],
)
def test_decoding_is_greedy_unless_the_task_samples(
    tokenizer: Tokenizer, settings: dict[str, Any], temperature: float
) -> None:
    request = asked(tokenizer, "generate_until", "w3", {"until": [], "max_gen_toks": 2, **settings})
    assert request.temperature == temperature


def test_a_decoding_setting_that_the_engines_do_not_know_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TaskError, match="generation_kwargs: repetition_penalty is not supported"):
        asked(tokenizer, "generate_until", "w3", {"until": [], "repetition_penalty": 1.1})


@pytest.mark.parametrize("broken", ["missing", "no end of text"])
def test_a_folder_without_a_usable_tokenizer_is_refused_in_one_line(
    tiny_family: FamilyFolder, tmp_path: Path, broken: str
) -> None:
    from transformers import AutoTokenizer

    if broken == "no end of text":
        tokenizer = AutoTokenizer.from_pretrained(tiny_family() / "base")
        tokenizer.eos_token = None
        tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer that|no end-of-sequence token") as caught:
        Tokenizer(tmp_path, LENGTH)
    assert "\n" not in str(caught.value)


def test_requests_keep_the_order_of_the_instances(tokenizer: Tokenizer) -> None:
    instances = [
        Instance("generate_until", {}, ("w3", {"until": [], "max_gen_toks": 2}), 0),
        Instance("loglikelihood", {}, ("w4", " w5"), 0),
        Instance("loglikelihood_rolling", {}, ("w6",), 0),
        Instance("loglikelihood", {}, ("w7", " w8"), 0),
    ]
    first, second, third, fourth = tokenizer.requests(instances)
    assert isinstance(first, Generation)
    assert (second, fourth) == (Continuation((4,), (5,)), Continuation((7,), (8,)))
    assert third == RollingWindows((Continuation((BOS,), (6,)),))


def test_a_text_that_begins_with_the_special_token_gets_no_second_one(
    tiny_family: FamilyFolder, tmp_path: Path
) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tiny_family() / "base")
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    plain.save_pretrained(tmp_path)
    adding = Tokenizer(tmp_path, LENGTH)
    assert adding.tok_encode("w3") == [BOS, 3]
    assert adding.tok_encode("<s> w3") == [BOS, 3]


def test_special_tokens_are_the_models(tokenizer: Tokenizer) -> None:
    assert (tokenizer.prefix_token_id, tokenizer.eot_token_id) == (BOS, EOS)
