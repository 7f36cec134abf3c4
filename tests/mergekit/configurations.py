"""mergekit configurations over the exact family, of every form that its users write."""

from __future__ import annotations

from typing import Any

LISTED = dict[str, Any]


def models(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    """Entries of `models`; a tuple among the parameters gives each model its own."""
    return [
        {"model": name, "parameters": {key: v[i] if isinstance(v, tuple) else v for key, v in parameters.items()}}
        for i, name in enumerate(names)
    ]


def part(*sources: tuple[str, int, int, dict[str, Any]], **rest: Any) -> dict[str, Any]:
    """One slice: (model, first layer, last, parameters) of each source."""
    return {
        "sources": [
            {"model": name, "layer_range": [first, last], **({"parameters": own} if own else {})}
            for name, first, last, own in sources
        ],
        **rest,
    }


def task_vectors(method: str, names: str = "abc", top: LISTED | None = None, **parameters: Any) -> LISTED:
    """A method with a base."""
    found = {"merge_method": method, "base_model": "base", "models": models(*names, **parameters)}
    return found | ({"parameters": top} if top else {})


FILTERED = [{"filter": "self_attn", "value": [0.25, 0.75]}, {"filter": "mlp", "value": 0.5}, {"value": 1.0}]
CONFIGURATIONS: dict[str, LISTED] = {
    "linear": {"merge_method": "linear", "models": models("a", "b", "c", weight=(0.5, 0.3, 1.2))},
    "linear unnormalized": {
        "merge_method": "linear",
        "models": models("a", "b", weight=(0.5, 0.6)),
        "parameters": {"normalize": False},
    },
    "linear with the base": {
        "merge_method": "linear",
        "base_model": "base",
        "models": models("base", "b", weight=([0.5, 0.1], 0.6)),
    },
    "task arithmetic": task_vectors("task_arithmetic", weight=(0.5, -0.3, 1.2), top={"lambda": 0.7}),
    "gradients and filters": task_vectors(
        "task_arithmetic", "ab", weight=([0.1, 0.9, 0.3], FILTERED), top={"normalize": True}
    ),
    "ties": task_vectors("ties", weight=(0.5, 0.3, 1.2), density=(0.3, 0.5, 0.9)),
    "ties unnormalized": task_vectors(
        "ties",
        weight=(0.5, 0.3, 1.2),
        density=(0.3, 0.5, 0.9),
        top={"normalize": False, "int8_mask": True, "lambda": 1.1},
    ),
    "ties in half precision": task_vectors("ties", "ab", weight=(0.5, 0.3), density=0.5) | {"dtype": "float16"},
    "breadcrumbs": task_vectors("breadcrumbs", "ab", weight=(0.5, 0.7), density=(0.3, [0.5, 0.9]), gamma=(0.01, 0.05)),
    "breadcrumbs with ties": task_vectors("breadcrumbs_ties", "ab", weight=(0.5, 0.7), density=(0.3, 0.95)),
    "nearswap": task_vectors("nearswap", "a", top={"t": [0.01, 0.1]}),
    "a number as text": task_vectors("nearswap", "a", top={"t": "1e-2"}),
    "sce": task_vectors("sce", top={"select_topk": 0.3}),
    "ram": task_vectors("ram", "ab", top={"epsilon": 0.125}),
    "two dtypes": task_vectors("task_arithmetic", "ab", weight=(0.5, 0.3))
    | {"dtype": "float32", "out_dtype": "float16"},
    "bfloat16": task_vectors("task_arithmetic", weight=(0.5, 0.3, 0.3)) | {"dtype": "bfloat16"},
    "modules": {"merge_method": "linear", "modules": {"default": {"models": models("a", "b", weight=(0.5, 0.3))}}},
    "stack": {"merge_method": "passthrough", "slices": [part(("a", 0, 3, {})), part(("b", 1, 4, {}))]},
    "stack of one model, scaled": {
        "merge_method": "passthrough",
        "slices": [
            part(("a", 0, 3, {})),
            part(("a", 1, 4, {"scale": [{"filter": "o_proj", "value": 0.0}, {"value": 1.0}]})),
        ],
    },
    "slices of task vectors": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "slices": [
            part(("base", 0, 2, {}), ("a", 0, 2, {"weight": [0.2, 0.7]})),
            part(("base", 2, 4, {}), ("a", 2, 4, {"weight": 0.5}), ("b", 2, 4, {"weight": 0.4})),
        ],
    },
    "slices of averages": {
        "merge_method": "linear",
        "slices": [
            part(("a", 0, 2, {"weight": 0.5}), ("b", 1, 3, {"weight": 0.25})),
            part(("c", 2, 4, {"weight": 1.0})),
        ],
    },
}
# Methods whose sums a processor may order in its own way agree to rounding only.
ROUNDED: dict[str, LISTED] = {
    "slerp": {
        "merge_method": "slerp",
        "base_model": "base",
        "models": [{"model": "base"}, {"model": "a"}],
        "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 0.3, 1]}, {"value": 0.5}]},
    },
    "nuslerp": {"merge_method": "nuslerp", "models": models("a", "b", weight=(0.5, 0.7))},
    "nuslerp of task vectors": task_vectors("nuslerp", "ab", weight=(0.5, [0.7, 0.1]), top={"nuslerp_flatten": False}),
    "nuslerp by rows": {
        "merge_method": "nuslerp",
        "models": models("a", "b", weight=(0.5, 0.7)),
        "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    },
    "multislerp": {"merge_method": "multislerp", "models": models("a", "b", "c", weight=(0.5, 0.7, 0.2))},
    "multislerp around the base": task_vectors("multislerp", weight=(0.5, 0.7, 0.2), top={"normalize_weights": False}),
    "karcher": {"merge_method": "karcher", "models": [{"model": name} for name in "abc"]},
    "model stock": task_vectors("model_stock"),
    "model stock by rows": task_vectors("model_stock", "ab", top={"filter_wise": True}),
    "arcee fusion": task_vectors("arcee_fusion", "a"),
}
