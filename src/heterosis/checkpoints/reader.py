"""Reading a checkpoint: a Hugging Face folder whose weights are one or many files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from heterosis.checkpoints.adapter_config import ADAPTER_CONFIG
from heterosis.checkpoints.tensors import TensorSpec, content_digest, total_bytes
from heterosis.checkpoints.weights import Weights, model_files, read_json
from heterosis.errors import CheckpointError

OUTPUT_HEADS = frozenset({"lm_head.weight", "embed_out.weight", "output.weight"})
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


def has_vocabulary(name: str) -> bool:
    """Whether a tensor's rows are tokens."""
    return name.endswith(INPUT_EMBEDDINGS) or name in OUTPUT_HEADS


class Checkpoint:
    """One model folder, opened for reading. Tensors stay on disk until asked for.

    When the configuration ties the output head to the input embedding, a stored `lm_head.weight` is an alias and is
    left out, so tied checkpoints compare equal whether or not a tool wrote the alias. So are buffers that old
    checkpoints store although the model computes them (rotary `inv_freq`, causal masks `attn.bias`, `masked_bias`).
    """

    def __init__(
        self, folder: Path, name: str | None = None, *, mapped: bool = True, allow_pickle: bool = False
    ) -> None:
        """`mapped=False` maps no safetensors file: each tensor is read into memory of its own.

        `allow_pickle` reads `pytorch_model.bin` where there is no safetensors, by torch's restricted loader.
        """
        self.folder = folder
        self.name = name or folder.name
        if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").exists():
            raise CheckpointError(f"{self.name}: {folder} holds an adapter, but a full model is needed here.")
        self.config = read_json(folder / "config.json", self.name)
        self._weights = Weights(folder, model_files(folder, self.name, allow_pickle), self.name, mapped)
        self.specs: dict[str, TensorSpec] = self._weights.specs
        try:
            self._leave_out_alias()
        except CheckpointError:
            self.close()
            raise

    def _leave_out_alias(self) -> None:
        alias = "lm_head.weight"
        if not self.tied or alias not in self.specs:
            return
        embedding = next((n for n in self.specs if n.endswith(INPUT_EMBEDDINGS)), None)
        if embedding is None:
            return  # then it is no alias, but the only copy
        same_spec = self.specs[alias] == self.specs[embedding]
        if not same_spec or not torch.equal(self.tensor(alias), self.tensor(embedding)):
            raise CheckpointError(
                f"{self.name}: config.json ties {alias} to {embedding}, but the two differ. "
                "Set tie_word_embeddings: false in its config.json, or save the model again."
            )
        self._weights.leave_out(alias)

    @property
    def mapped(self) -> bool:
        """Whether tensors are views of mapped files."""
        return self._weights.mapped

    @property
    def tied(self) -> bool:
        """Whether the output head is the input embedding.

        Older configurations (GPT-2, Gemma) do not say, and store no head when it is.
        """
        said = self.config.get("tie_word_embeddings")
        return OUTPUT_HEADS.isdisjoint(self.specs) if said is None else bool(said)

    @property
    def bytes(self) -> int:
        """Size of all weights."""
        return total_bytes(self.specs)

    def tensor(self, name: str) -> Tensor:
        """A tensor as stored, on the CPU. Where it is mapped, do not write to it."""
        return self._weights.tensor(name)

    @cached_property
    def digest(self) -> str:
        """Content digest. Reads every byte once, and refuses weights that are not finite on the way."""
        return content_digest(self.specs, self._weights.digests())

    def close(self) -> None:
        """Close the files."""
        self._weights.close()
