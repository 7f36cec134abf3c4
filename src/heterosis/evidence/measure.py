"""Evidence of one model on one set of texts: from the cache, or measured through transformers and then kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heterosis.checkpoints import Checkpoint
from heterosis.errors import CheckpointError, RecipeError, TaskError
from heterosis.evidence.cache import Evidence, Kind, cache_folder, find, keep
from heterosis.evidence.fisher import Labels, diagonal_fisher
from heterosis.evidence.gram import gram_matrices
from heterosis.evidence.texts import read_texts

FORMAT = 1
# What beside the weights decides how a text becomes numbers.
SETTINGS_FILES = ("config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
MORE_SETTINGS_FILES = ("*.model", "tekken.json")


def collect(
    folder: Path,
    weights_digest: str,
    texts: Sequence[str] | Path,
    kind: Kind,
    *,
    samples: int,
    max_length: int,
    labels: Labels = "model",
    seed: int = 0,
    field: str = "text",
    cache: Path | None = None,
    device: str = "cpu",
) -> Evidence:
    """Fisher information or Gram matrices of the model in `folder`, whose weights have the digest `weights_digest`.

    texts: examples, or a file of them (see `read_texts`; `field` is for .jsonl); the first `samples` are used, each cut
    to `max_length` tokens or the model's context. labels and seed: see `diagonal_fisher`; Gram matrices read neither.
    cache: the folder to keep it in, `cache_folder()` by default. The model is only loaded if nothing is kept for these
    weights, tokenizer, texts and settings.
    TaskError for texts, RecipeError for settings, CheckpointError for a model that cannot be used.
    """
    if samples < 1 or max_length < 2:
        raise RecipeError(f"data: samples is {samples}, max_length {max_length}; they must be at least 1 and 2.")
    chosen = read_texts(texts, samples, field) if isinstance(texts, Path) else list(texts[:samples])
    if not chosen or not all(text.strip() for text in chosen):
        raise TaskError("data: a text is empty, or there is none. Give at least one example, and no blank ones.")
    drawn = {"labels": labels, "seed": seed if labels == "model" else None} if kind == "fisher" else {}
    content = {
        "format": FORMAT,
        "weights": weights_digest,
        "settings": _settings_digest(folder),
        "texts": chosen,
        "kind": kind,
        "max_length": max_length,
        **drawn,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path = (cache or cache_folder()) / f"{key}.safetensors"
    kept = find(path)
    if kept is not None:
        return kept
    # An engine that measures on its way to a merge does so in inference mode, where nothing has gradients.
    with torch.inference_mode(False), torch.enable_grad():
        tensors, first = _measure(folder, chosen, kind, max_length, labels, seed, device)
    return keep(path, kind, tensors, first)


def _measure(
    folder: Path, texts: Sequence[str], kind: Kind, max_length: int, labels: Labels, seed: int, device: str
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """What is measured of each tensor, and the linear layers whose weight is stored as [in, out]."""
    with closing(Checkpoint(folder)) as checkpoint:
        examples = [tokens.to(device) for tokens in _tokens(checkpoint, texts, max_length)]
        model = _load(folder).to(device)
        named = _stored_names(model, checkpoint)
    layers = _linear_layers(model, named)
    if kind == "fisher":
        tensors = diagonal_fisher(model, examples, named, labels, seed)
    else:
        tensors = gram_matrices(model, examples, layers)
    _check_finite(folder, tensors)
    return tensors, frozenset(name for name, layer in layers.items() if not isinstance(layer, torch.nn.Linear))


def _settings_digest(folder: Path) -> str:
    """Digest of the configuration and tokenizer files: the same weights read a text otherwise with another one."""
    found = {path for pattern in (*SETTINGS_FILES, *MORE_SETTINGS_FILES) for path in folder.glob(pattern)}
    total = hashlib.sha256()
    for path in sorted(found):
        if path.is_file():
            total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _tokens(checkpoint: Checkpoint, texts: Sequence[str], max_length: int) -> list[Tensor]:
    """Token ids of each text, cut to what is wanted and to what the model takes."""
    from transformers import AutoTokenizer

    folder, config = checkpoint.folder, checkpoint.config
    longest = config.get("max_position_embeddings") or config.get("n_positions") or config.get("max_seq_len")
    limit = min(max_length, int(longest)) if longest else max_length
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        rows = [tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in texts]
    except Exception as error:  # transformers raises whatever the files lead it to
        raise CheckpointError(f"{folder.name}: its tokenizer cannot be used ({_reason(error)}).") from error
    for text, row in zip(texts, rows, strict=True):
        if len(row) < 2:
            raise TaskError(f"data: {text[:40]!r} is a single token, which predicts nothing. Give longer texts.")
    return [torch.tensor(row) for row in rows]


def _load(folder: Path) -> Any:
    """The model in float32, for evaluation, without drawing from the global generator."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
            )
    except Exception as error:  # transformers raises whatever the configuration leads it to
        raise CheckpointError(
            f"{folder.name}: transformers cannot load it as a causal language model ({_reason(error)})."
        ) from error
    return model.eval()


def _stored_names(model: Any, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Name in the checkpoint -> the model's parameter. A tied head goes by the name of the embedding.

    Checkpoints of older tools leave out, or add, the prefix of the model's body.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    prefix = f"{model.base_model_prefix}."
    named: dict[str, Tensor] = {}
    for name, spec in checkpoint.specs.items():
        variants = (name, f"{prefix}{name}", name.removeprefix(prefix))
        parameter = next((parameters[variant] for variant in variants if variant in parameters), None)
        if parameter is not None and tuple(parameter.shape) == spec.shape:
            named[name] = parameter
    found = {id(parameter) for parameter in named.values()}
    lost = next((name for name, parameter in parameters.items() if id(parameter) not in found), None)
    if lost is not None:
        raise CheckpointError(
            f"{checkpoint.name}: transformers has {lost}, which the checkpoint does not hold in that name and shape. "
            "Evidence needs an architecture that it loads tensor by tensor."
        )
    return named


def _linear_layers(model: Any, named: Mapping[str, Tensor]) -> dict[str, Any]:
    """Name of the weight in the checkpoint -> the linear layer. A head tied to the embedding is none: as an embedding
    its rows are looked up, not multiplied."""
    from transformers.pytorch_utils import Conv1D

    names = {id(parameter): name for name, parameter in named.items()}
    owners: dict[int, list[Any]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    return {
        names[id(module.weight)]: module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and len(owners[id(module.weight)]) == 1
    }


def _check_finite(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{folder.name}: what was measured of {name} is not finite; the model overflows on these texts."
            )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
