"""Input that nobody should have written: values, mutations of valid files, and texts that broke parsers before."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from heterosis.errors import HeterosisError, InputError

# Examples of each kind: the whole folder takes half a minute.
EXAMPLES = 60

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**4000, 0.5, -0.0, 1e-320, 1e308, float("inf"),
    float("-inf"), float("nan"), "", " ", "a", "..", "/", "../../etc/passwd", "/dev/zero", "a/b@c", "nan", "1e999",
    "\x00", "\x1b[31m", "line\nbreak", "\ud7ff\U0001f98b", "x" * 5000, "{{ 7 * 7 }}", "${HOME}", "*", "(", "[a-",
    "(a+)+$", [], {}, [None], {"a": None}, {"": ""}, [[]], [{}], [1, "a", None], {"low": 2, "high": 1}, [float("nan")],
    {"weight": float("inf")}, list(range(200)), {str(i): i for i in range(50)},
]  # fmt: skip

deep: Any = 1
for _ in range(150):
    deep = [deep]
VALUES.append(deep)

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n" for before, after in itertools.pairwise("abcdefghij")
)

# Whole files, as bytes.
FILES: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \n\t\n",
    "NUL": b"a: \x00",
    "NULs alone": b"\x00" * 64,
    "invalid UTF-8": b"name: \xff\xfe\xfa",
    "half of a character": "name: é".encode()[:-1],
    "byte order mark": b"\xef\xbb\xbfname: a\n",
    "UTF-16": "name: a\n".encode("utf-16"),
    "a surrogate": b'"\\ud800"',
    "deep lists": b"[" * 20_000,
    "deep and closed": b"[" * 2000 + b"]" * 2000,
    "deep maps": b"{a: " * 2000 + b"1" + b"}" * 2000,
    "deep blocks": b"".join(b" " * i + b"a:\n" for i in range(1500)),
    "aliases that unfold": BOMB.encode(),
    "an alias of itself": b"a: &a [*a]",
    "an alias of nothing": b"a: *b",
    "merge keys that unfold": b"a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b, *a]}\n",
    "a merge key of text": b"<<: text",
    "a key twice": b"name: a\nname: b\n",
    "a list as a key": b"? [a]\n: 1\n",
    "a map as a key": b"? {a: 1}\n: 1\n",
    "numbers as keys": b"1: a\n2.5: b\ntrue: c\n.nan: d\n",
    "null as a key": b"~: a\n",
    "a date": b"name: 2020-99-99\n",
    "a long number": b"seed: " + b"9" * 10_000,
    "a long hexadecimal number": b"seed: 0x" + b"f" * 10_000,
    "a long binary number": b"seed: 0b" + b"1" * 50_000,
    "sixties": b"seed: " + b":".join([b"1"] * 2000),
    "not a number": b"seed: .nan\n",
    "infinite": b"seed: .inf\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a tag of Python's": b"a: !!python/object/apply:os.system ['true']\n",
    "an unknown tag": b"a: !secret b\n",
    "a function": b"task: !function evil.run\n",
    "a set": b"!!set {a, b}\n",
    "pairs": b"!!omap [a: 1, b: 2]\n",
    "base64": b"a: !!binary zz\n",
    "an int of letters": b"a: !!int abc\n",
    "an empty int": b"a: !!int ''\n",
    "a bool of letters": b"a: !!bool maybe\n",
    "a directive": b"%YAML 9.9\n---\na: 1\n",
    "tabs": b"a:\n\t- b\n",
    "no end of a string": b'a: "b',
    "a string": b"just text",
    "a number": b"42",
    "null": b"null",
    "a list": b"- a\n- b\n",
    "JSON with NaN": b'{"a": NaN, "b": Infinity}',
    "JSON with a long number": b'{"a": ' + b"1" * 10_000 + b"}",
    "JSON with a key twice": b'{"weight_map": {"a": "model.safetensors", "a": "x"}}',
    "JSON cut short": b'{"weight_map": {"a": ',
    "control characters": b'{"\\u001b[31m\\n": "\\u0000"}',
}

_TOKENS = [
    "- ", ": ", "{", "}", "[", "]", "&a ", "*a", "!!int ", "!!set ", "!x ", "\n", "\n  ", "  ", '"', "'", "|\n", ">\n",
    "? ", "%", "@", "`", "\t", "<<: ", "a", "b", "name", "1", "0x", "~", "#", ",", "\\", "\x00", "\x85", "---", "...",
]  # fmt: skip
texts = st.one_of(
    st.lists(st.sampled_from(_TOKENS), max_size=25).map("".join),
    st.text(max_size=60),
)
files = st.one_of(texts.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=80))


def mutations(valid: Any) -> st.SearchStrategy[Any]:
    """Copies of a valid content with one to three places replaced, removed, renamed or repeated."""
    return st.builds(
        _mutated, st.just(valid), st.lists(st.tuples(st.integers(0, 10_000), _ACTIONS, _VALUES), min_size=1, max_size=3)
    )


_ACTIONS = st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"])
_VALUES = st.one_of(st.sampled_from(VALUES), st.integers(), st.floats(), st.text(max_size=8))


def _mutated(valid: Any, changes: list[tuple[int, str, Any]]) -> Any:
    content = copy.deepcopy(valid)
    for at, action, drawn in changes:
        value = copy.deepcopy(drawn)  # it may be changed by the next change, and drawn again
        places = list(_places(content))
        if not places:
            return content
        owner, key = places[at % len(places)]
        if action == "replace":
            owner[key] = value
        elif action == "remove":
            del owner[key]
        elif isinstance(owner, dict):
            owner[value if isinstance(value, str | int | float | bool | None) else str(value)[:50]] = (
                owner.pop(key) if action == "rename" else value
            )
        else:
            owner.append(value)
    return content


def _places(content: Any) -> Any:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from _places(value)


def as_yaml(content: Any) -> bytes:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode("utf-8", "surrogatepass")


def settle(call: Callable[[], object], kind: type[HeterosisError] = InputError) -> str | None:
    """The refusal in one line, or None. Anything else that is raised fails the test."""
    try:
        call()
    except kind as error:
        text = str(error)
        assert text
        assert text.isprintable()
        assert len(text) <= 2100
        return text
    return None


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
