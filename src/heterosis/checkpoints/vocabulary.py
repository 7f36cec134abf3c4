"""Aligning vocabularies: models whose tokenizers differ, brought to one order of tokens before their rows are merged.

The choices are mergekit's (`tokenizer_source`, `tokenizer`), so that a published configuration gives the published
rows. Two things differ on purpose: tokens that a union adds come in the order of their ids (mergekit takes them in
the order of a hash map, which changes from run to run), and a tokenizer never keeps a token for which the output has
no row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from heterosis.checkpoints.reader import INPUT_EMBEDDINGS, OUTPUT_HEADS
from heterosis.checkpoints.tensors import TensorSource
from heterosis.errors import CheckpointError

# A folder with a tokenizer holds at least one of these.
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model", "tekken.json")
ZERO, AVERAGE = -1, -2  # in place of a donor's position


class TokenSource(NamedTuple):
    """Where one token's row comes from in members that lack the token, or in all of them with `force`.

    `model`: the row that `member` has for this very token. `model_token`: its row for another token, given as `token`
    or as `token_id`. `zero`: zeros.
    """

    kind: Literal["model", "zero", "model_token"]
    member: str | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


class Pin(NamedTuple):
    """A TokenSource, looked up: the output's `row` is the member's `donor_row`, or zeros without a member."""

    token: str
    row: int
    member: str | None
    donor_row: int
    force: bool


@dataclass(frozen=True, eq=False)
class VocabularyPlan:
    """The output's tokens, and for each member the row that each of them has there."""

    base: str
    vocab: dict[str, int]
    """Token -> row of the output, in the order of rows."""

    size: int
    """Rows of the output, padding included: the `vocab_size` of its configuration."""

    rows: dict[str, Tensor]
    """Member -> int64 [size]: its row for each row of the output, -1 where it has none."""

    pins: tuple[Pin, ...]
    prefer_base: bool
    """Whether a token that some members lack has the base's row there, if the base has it; else their average."""

    tokenizer: Any
    """The output's tokenizer, of transformers."""

    @property
    def special_ids(self) -> dict[str, int]:
        """`bos_token_id`, `eos_token_id` and `pad_token_id` of the output, where it has such tokens."""
        ids = {role: getattr(self.tokenizer, role) for role in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return {role: token_id for role, token_id in ids.items() if token_id is not None}

    def align(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Members' tensors [rows_k, *rest], brought to the output's order of tokens: each [size, *rest].

        A member keeps its own row of every token that it has. Where it lacks one: the row of the only member that has
        it; the base's row if the base takes part and has it; the average over those that have it; zeros if none has.
        Rows without a token (padding) hold the mean of the rows with one (Hewitt 2021, "Initializing new word
        embeddings for pretrained language models"). Averages are taken in float32, in the order of `tensors`; the
        result has the promoted dtype. A member whose rows are in place already is returned without a copy.
        """
        if not tensors:
            return {}
        _check_fit(tensors, self.rows)
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
        named, forced = torch.zeros(2, self.size, dtype=torch.bool)
        named[list(self.vocab.values())] = True
        forced[[pin.row for pin in self.pins if pin.force]] = True
        ids, values = self._missing_rows(tensors, named, forced)
        aligned = {}
        for name, tensor in tensors.items():
            rows = self.rows[name]
            replaced = (rows[ids] < 0) | forced[ids]
            if tensor.shape[0] == self.size and torch.equal(rows, torch.arange(self.size)) and not forced.any():
                aligned[name] = tensor.to(dtype)
                continue
            out = tensor.index_select(0, rows.clamp(min=0).to(tensor.device)).to(dtype)
            out[ids[replaced]] = values[replaced].to(dtype)
            aligned[name] = _pad(out, named)
        return aligned

    def _missing_rows(self, tensors: Mapping[str, Tensor], named: Tensor, forced: Tensor) -> tuple[Tensor, Tensor]:
        """Rows for the tokens that some member lacks or that are forced: their ids [n], float32 values [n, *rest].

        float64 if an input is. Each such token has one donor among the members, or the average, or zeros.
        """
        names = list(tensors)
        rows = torch.stack([self.rows[name] for name in names])  # [k, size]
        has = rows >= 0
        donor = torch.full((self.size,), AVERAGE)
        if self.prefer_base and self.base in names:
            donor[has[names.index(self.base)]] = names.index(self.base)
        donor = torch.where(has.sum(dim=0) == 1, has.to(torch.int8).argmax(dim=0), donor)
        donor[~has.any(dim=0)] = ZERO
        donor_row = rows.gather(0, donor.clamp(min=0)[None])[0]
        needed = forced | (named & ~has.all(dim=0))
        for pin in self.pins:
            if needed[pin.row] and pin.member is not None and pin.member not in names:
                raise CheckpointError(f"tokens: {pin.token!r} comes from {pin.member}, which lacks a tensor. Drop it.")
            donor[pin.row] = names.index(pin.member) if pin.member in names else ZERO
            donor_row[pin.row] = pin.donor_row
        ids = needed.nonzero()[:, 0]
        donor, donor_row, rows = donor[ids], donor_row[ids], rows[:, ids]
        model = tensors[names[0]]
        wide = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()), torch.float32)
        values = torch.zeros((len(ids), *model.shape[1:]), dtype=wide, device=model.device)
        for k, tensor in enumerate(tensors.values()):
            copied, averaged = donor == k, (donor == AVERAGE) & (rows[k] >= 0)
            values[copied] = tensor[donor_row[copied]].to(wide)
            values[averaged] += tensor[rows[k][averaged]].to(wide)
        count = torch.where(donor == AVERAGE, (rows >= 0).sum(dim=0), 1).to(model.device)
        return ids, values / count.reshape(-1, *(1 for _ in model.shape[1:]))

    def write_tokenizer(self, folder: Path) -> None:
        """Write the output's tokenizer files into a folder."""
        self.tokenizer.save_pretrained(folder)


def plan_vocabulary(
    base_name: str,
    members: Mapping[str, TensorSource],
    source: str,
    *,
    pad_to_multiple_of: int | None = None,
    tokens: Mapping[str, TokenSource] | None = None,
    prefer_base: bool = True,
) -> VocabularyPlan:
    """Plan the output's vocabulary: the base's ("base"), every token of every member ("union"), or a member's own.

    A union is the base's vocabulary and behind it the others' ordinary tokens, member by member, then their added
    ones. `tokens` says where rows of single tokens come from; a token that the vocabulary lacks is added behind it.
    Reads tokenizer files only. CheckpointError if a tokenizer cannot be loaded or does not fit its model, or if a
    source does not exist.

    `prefer_base=False` is what mergekit does when its configuration names no base model: the average in place of the
    base's row.
    """
    tokens = tokens or {}
    _check_request(base_name, members, source, pad_to_multiple_of, tokens)
    tokenizers = _load_tokenizers(base_name, members)
    vocabs = {name: tokenizers[name].get_vocab() for name in members}  # before the output's tokenizer grows
    owner = base_name if source in ("base", "union") else source
    output = _strip(tokenizers[owner], _vocab_size(members[owner]), owner, keep_roles=source == "union")
    if source == "union":
        _extend(output, base_name, members, tokenizers)
    have = output.get_vocab()
    output.add_tokens([token for token in tokens if token not in have])
    vocab = _checked_vocabulary(output)
    step = pad_to_multiple_of or 1
    size = -(-(max(vocab.values()) + 1) // step) * step
    rows = {name: _rows(vocabs[name], _vocab_size(member), vocab, size) for name, member in members.items()}
    pins = tuple(_pin(token, vocab[token], wanted, members, vocabs) for token, wanted in tokens.items())
    return VocabularyPlan(base_name, vocab, size, rows, pins, prefer_base, output)


def vocabulary(folder: Path) -> dict[str, int] | None:
    """Token -> id as tokenizer.json has it; None where there is no such file."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        vocab = content["model"]["vocab"]
        pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
        added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
        return {**dict(pairs), **added}
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a tokenizer file ({error!r}). Download or save it again.") from error


def _check_fit(tensors: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
    width = next(iter(tensors.values())).shape[1:]
    for name, tensor in tensors.items():
        last = int(rows[name].max())
        if tensor.shape[0] <= last or tensor.shape[1:] != width:
            raise CheckpointError(
                f"{name}: a vocabulary tensor is {list(tensor.shape)}; its tokenizer needs {last + 1} rows, the other "
                f"models rows of {list(width)}. Drop this model, or give it its own tokenizer."
            )


def _pad(out: Tensor, named: Tensor) -> Tensor:
    """Fill rows without a token with the mean of those with one, in place. out [size, *rest], named bool [size]."""
    count = int(named.sum())
    if count < len(named):
        # Padding is nearly always at the end, and a view needs no copy of the whole table.
        real = out[:count] if bool(named[:count].all()) else out[named]
        mean = real.mean(dim=0, dtype=torch.promote_types(out.dtype, torch.float32))
        out[~named] = mean.to(out.dtype)
    return out


def _check_request(
    base_name: str, members: Mapping[str, TensorSource], source: str, pad: int | None, tokens: Mapping[str, TokenSource]
) -> None:
    known = ", ".join(members)
    if base_name not in members:
        raise CheckpointError(f"base {base_name}: not among the models ({known}). Name one of them.")
    if source not in ("base", "union", *members):
        raise CheckpointError(f"tokenizer source {source!r}: give base, union or one of the models ({known}).")
    if pad is not None and pad < 1:
        raise CheckpointError(f"pad_to_multiple_of: {pad} is not positive. Give a number such as 64, or drop it.")
    if "" in tokens:
        raise CheckpointError("tokens: the empty text is no token. Drop it.")
    for token, wanted in tokens.items():
        if wanted.kind != "zero" and wanted.member not in members:
            raise CheckpointError(f"tokens: {token!r} comes from {wanted.member!r}; give one of the models ({known}).")
        if wanted.kind == "model_token" and (wanted.token is None) == (wanted.token_id is None):
            raise CheckpointError(f"tokens: {token!r} needs either token or token_id of {wanted.member}. Give one.")


def _load_tokenizers(base_name: str, members: Mapping[str, TensorSource]) -> dict[str, Any]:
    """Every member's tokenizer; the base's for a member that brings none and has as many rows."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys((base_name, *members)):
        member, size = members[name], _vocab_size(members[name])
        if any(next(member.folder.glob(pattern), None) for pattern in TOKENIZER_FILES):
            found[name] = _load(member.folder, name)
        elif name != base_name and size == _vocab_size(members[base_name]):
            found[name] = found[base_name]
        else:
            raise CheckpointError(f"{name}: no tokenizer in its folder, and no base's of {size} tokens. Put one there.")
    return found


def _load(folder: Path, name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise a dozen types; the advice is the same for each
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{name}: its tokenizer cannot be loaded ({reason}). Save it again.") from error


def _vocab_size(member: TensorSource) -> int:
    """Rows that stand for tokens, as the configuration says; tokens at or beyond are the tokenizer's own padding."""
    nested = member.config.get("text_config")
    said = member.config.get("vocab_size", nested.get("vocab_size") if isinstance(nested, dict) else None)
    stored = _stored_rows(member)
    if isinstance(said, int) and said > stored:
        raise CheckpointError(
            f"{member.name}: config.json has vocab_size {said}, its embedding has {stored} rows. Save the model again."
        )
    return said if isinstance(said, int) else stored


def _stored_rows(member: TensorSource) -> int:
    """Rows of its input embedding and its output head, the smaller number if they differ."""
    specs = member.specs.items()
    counts = [spec.shape[0] for name, spec in specs if name.endswith(INPUT_EMBEDDINGS) or name in OUTPUT_HEADS]
    if not counts:
        raise CheckpointError(f"{member.name}: no embedding is known by name, so none can be aligned. Drop this model.")
    return min(counts)


def _strip(tokenizer: Any, size: int, name: str, *, keep_roles: bool) -> Any:
    """The tokenizer without the tokens at or beyond `size`, for which its model has no row.

    `keep_roles` leaves the roles (padding, say) of those tokens, which brings the tokens back behind the others.
    """
    unused = {token for token, token_id in tokenizer.get_vocab().items() if token_id >= size}
    if not unused:
        return tokenizer
    content = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else None
    if content is None or not _drop_tokens(content, unused):
        raise CheckpointError(
            f"{name}: its tokenizer has tokens from id {size} on, for which the model has no row, and only a BPE "
            "tokenizer can lose tokens. Save it without them, or choose another tokenizer source."
        )

    with TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        Path(scratch, "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        settings = Path(scratch, "tokenizer_config.json")
        if not keep_roles:
            roles = json.loads(settings.read_text(encoding="utf-8"))
            settings.write_text(json.dumps(_without_roles(roles, unused)), encoding="utf-8")
        return _load(Path(scratch), name)


def _without_roles(roles: Mapping[str, Any], unused: set[str]) -> dict[str, Any]:
    """What tokenizer_config.json holds, without roles for those tokens: loading would add the tokens again."""

    def lost(value: Any) -> bool:
        return (value.get("content") if isinstance(value, dict) else value) in unused

    kept = {key: value for key, value in roles.items() if not (key.endswith("_token") and lost(value))}
    if extra := kept.get("extra_special_tokens"):
        kept["extra_special_tokens"] = [token for token in extra if not lost(token)]
    return kept


def _drop_tokens(content: dict[str, Any], unused: set[str]) -> bool:
    """Take tokens out of what tokenizer.json holds, in place. False if they belong to a model that is not BPE."""
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] not in unused]
    model = content["model"]
    vocab = model["vocab"]
    if unused.isdisjoint(vocab if isinstance(vocab, dict) else (entry[0] for entry in vocab)):
        return True
    if model["type"] != "BPE":
        return False
    prefix = model.get("continuing_subword_prefix") or ""

    def kept(merge: str | list[str]) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return unused.isdisjoint((left, right, left + right.removeprefix(prefix)))

    model["vocab"] = {token: token_id for token, token_id in vocab.items() if token not in unused}
    model["merges"] = [merge for merge in model["merges"] if kept(merge)]
    return True


def _extend(output: Any, base_name: str, members: Mapping[str, TensorSource], tokenizers: Mapping[str, Any]) -> None:
    """Add to the base's tokenizer what the others have: ordinary tokens first, then added ones.

    A token that tokenizers add with different settings has those of the first.
    """
    have = set(output.get_vocab())
    ordinary: dict[str, None] = {}  # a set that keeps its order
    added: dict[str, Any] = {}
    for name in (base_name, *members):
        size, own = _vocab_size(members[name]), tokenizers[name].added_tokens_decoder
        special = {info.content for info in own.values()}
        for token, token_id in sorted(tokenizers[name].get_vocab().items(), key=lambda entry: entry[1]):
            if token_id < size and token not in special and token not in have:
                ordinary.setdefault(token)
        for token_id, info in sorted(own.items()):
            if token_id < size:
                added.setdefault(info.content, info)
    output.add_tokens([token for token in ordinary if token not in added])
    output.add_tokens(list(added.values()))


def _checked_vocabulary(output: Any) -> dict[str, int]:
    """Token -> id in the order of ids, once it is certain that the files to be written say the same."""
    vocab = dict(sorted(output.get_vocab().items(), key=lambda entry: entry[1]))
    with TemporaryDirectory() as scratch:
        output.save_pretrained(scratch)
        written = _load(Path(scratch), "the merged vocabulary").get_vocab()
    odd = {token for token, _ in written.items() ^ vocab.items()}
    if odd or not 0 < len(vocab) == len(set(vocab.values())):
        fault = f"gives {min(odd)!r} another id" if odd else "is empty or has one id for two tokens"
        raise CheckpointError(f"tokenizer: the output's, saved and loaded, {fault}. Choose another tokenizer source.")
    return vocab


def _pin(
    token: str, row: int, wanted: TokenSource, members: Mapping[str, TensorSource], vocabs: Mapping[str, dict[str, int]]
) -> Pin:
    """Look up where a token's row comes from."""
    if wanted.kind == "zero" or wanted.member is None:
        return Pin(token, row, None, 0, wanted.force)
    name, own = wanted.member, wanted.kind == "model"
    asked = token if own else wanted.token
    donor = vocabs[name].get(asked) if asked is not None else wanted.token_id
    room = _vocab_size(members[name]) if own else _stored_rows(members[name])
    if donor is None or not 0 <= donor < room:
        what = f"token {asked!r}" if donor is None else f"row {donor} among its {room}"
        raise CheckpointError(f"tokens: {token!r} is to come from {name}, which has no {what}. Name another source.")
    return Pin(token, row, name, donor, wanted.force)


def _rows(own: Mapping[str, int], limit: int, vocab: Mapping[str, int], size: int) -> Tensor:
    """A member's row for each of the output's, int64 [size]; -1 where it has none, or only one beyond `limit`."""
    found = {row: own[token] for token, row in vocab.items() if own.get(token, limit) < limit}
    rows = torch.full((size,), -1)
    rows[list(found)] = torch.tensor(list(found.values()), dtype=torch.int64)
    return rows
