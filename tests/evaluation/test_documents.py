"""What a task's documents hold, and which of them belong together."""

from __future__ import annotations

import pytest

from heterosis.evaluation.documents import own_texts, shared_passages, shared_values, strings

LONG = "a passage of more than eighty characters, about which several questions are asked, number "


def test_strings_come_in_order_with_the_keys_that_lead_to_them() -> None:
    document = {"q": "why", "answers": {"text": ["one", "two"], "start": [3]}, "rest": [{"text": "three"}], "n": None}
    found = [("/q", "why"), ("/answers/text", "one"), ("/answers/text", "two"), ("/rest/text", "three")]
    assert list(strings(document)) == found
    assert list(strings("alone")) == [("", "alone")]


def test_strings_are_found_however_deep_they_lie() -> None:
    document: object = "deep"
    for _ in range(5000):
        document = [document]
    assert [text for _, text in strings(document)] == ["deep"]


def test_labels_and_instructions_are_no_documents_own() -> None:
    documents = [{"do": "Answer.", "text": f"text {n}", "label": "yes" if n % 2 else "no"} for n in range(40)]
    assert own_texts(documents) == [[f"text {n}"] for n in range(40)]


def test_a_text_of_a_few_documents_is_theirs_and_so_is_all_that_a_document_has() -> None:
    documents = [{"text": f"text {n // 10}"} for n in range(40)]
    assert own_texts(documents) == [[f"text {n // 10}"] for n in range(40)]
    assert own_texts([{"text": "same"}] * 40) == [["same"]] * 40


def test_documents_with_a_long_text_in_common_share_a_name() -> None:
    texts = [[f"question {n}", LONG + str(n // 2)] for n in range(6)]
    names = shared_passages(texts)
    assert [len(own) for own in names] == [1] * 6
    assert len(set(names)) == 3
    assert names[0] == names[1] != names[2]
    assert shared_passages([[LONG + "0"], ["short"], [LONG.replace(" ", "\n") + "0 "]]) == [names[0], (), names[0]]


def test_values_of_a_field_give_names_and_none_gives_none() -> None:
    documents = [{"id": 1}, {"id": [2]}, {"id": 1}, {"id": None}, {}, "text", {"id": "1"}]
    names = shared_values("task", documents, "id")
    assert names[0] == names[2]
    assert [len(own) for own in names] == [1, 1, 1, 0, 0, 0, 1]
    assert len(set(names)) == 4
    assert shared_values("other", documents, "id")[0] != names[0]


def test_a_field_that_is_not_there_is_an_error_that_knows_the_others() -> None:
    with pytest.raises(KeyError) as caught:
        shared_values("task", [{"b": 1}, {"a": 2}], "id")
    assert caught.value.args == ("a", "b")
