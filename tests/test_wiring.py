"""Which tensor of which member goes into each tensor of a merge."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from heterosis.checkpoints import TensorSpec
from heterosis.errors import RecipeError
from heterosis.wiring import wire


class Member:
    """Names and shapes of a model of so many layers."""

    def __init__(self, layers: int, width: int = 4) -> None:
        names = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.w" for i in range(layers)), "model.norm.weight"]
        self.specs = {name: TensorSpec((width,), torch.float32) for name in names}


def wired(stack: Any, **members: Any) -> dict[str, dict[str, str]]:
    return {name: dict(inputs) for name, inputs in wire(stack, members).inputs.items()}


def test_without_a_stack_every_tensor_meets_its_namesakes() -> None:
    found = wired(None, base=Member(2), a=Member(2))
    assert list(found) == list(Member(2).specs)
    assert all(inputs == {"base": name, "a": name} for name, inputs in found.items())


def test_a_stack_picks_layers_and_may_repeat_or_leave_them_out() -> None:
    found = wired({"a": (0, 1, None, None), "b": (None, None, 1, 1)}, base=Member(2), a=Member(2), b=Member(2))
    assert found == {
        "model.embed_tokens.weight": {"a": "model.embed_tokens.weight"},
        "model.layers.0.mlp.w": {"a": "model.layers.0.mlp.w"},
        "model.layers.1.mlp.w": {"a": "model.layers.1.mlp.w"},
        "model.layers.2.mlp.w": {"b": "model.layers.1.mlp.w"},
        "model.layers.3.mlp.w": {"b": "model.layers.1.mlp.w"},
        "model.norm.weight": {"b": "model.norm.weight"},
    }


def test_names_come_in_the_order_of_a_forward_pass() -> None:
    stack = {"a": tuple(range(12))}
    names = list(wire(stack, {"a": Member(12)}).inputs)
    assert names == list(Member(12).specs)


def test_members_of_different_depth_may_be_stacked() -> None:
    found = wired({"a": (0, None), "b": (None, 5)}, a=Member(1), b=Member(6))
    assert found["model.layers.1.mlp.w"] == {"b": "model.layers.5.mlp.w"}


@pytest.mark.parametrize("layer", [2, 9])
def test_a_layer_that_does_not_exist_is_named(layer: int) -> None:
    with pytest.raises(RecipeError, match=rf"stack\.a: layer {layer} does not exist; the model has 2 layers"):
        wired({"a": (0, layer)}, a=Member(2))


def test_shapes_are_those_of_whoever_takes_part() -> None:
    found = wire({"a": (0,), "b": (None,)}, {"a": Member(1, width=3), "b": Member(1, width=5)})
    assert set(found.shapes.values()) == {(3,)}
