import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heterosis.checkpoints import Checkpoint
from heterosis.errors import CheckpointError, InputError, RecipeError, TaskError
from heterosis.evidence import Evidence, cache_folder, collect, read_texts
from heterosis.evidence.cache import keep
from heterosis.merge.informed import fisher_mean, regmean

TEXTS = ["w3 w4 w5 w6 w7", "w8 w9 w8 w9", "w20 w21 w22 w23 w24 w25 w26"]
Collect = Callable[..., Evidence]


@pytest.fixture
def parent(tiny_family: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of one tiny parent, for tests to damage."""
    return Path(shutil.copytree(tiny_family() / "a", tmp_path / "parent"))


@pytest.fixture
def measure(tmp_path: Path) -> Collect:
    """`collect` with the tests' settings."""

    def call(folder: Path, kind: str, texts: list[str] | Path = TEXTS, **rest: Any) -> Evidence:
        settings = {"samples": 8, "max_length": 16, "cache": tmp_path / "cache"} | rest
        return collect(folder, settings.pop("digest", "weights"), texts, kind, **settings)  # type: ignore[arg-type]

    return call


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ids(text: str) -> Tensor:
    return torch.tensor([[int(word[1:]) for word in text.split()]])


class TestFisher:
    @pytest.mark.parametrize("tied", [False, True])
    def test_it_is_the_mean_squared_gradient_of_each_example(
        self, tiny_family: Callable[..., Path], measure: Collect, tied: bool
    ) -> None:
        folder = tiny_family(tied=tied) / "a"
        evidence, model = measure(folder, "fisher", labels="data"), load(folder)
        expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for text in TEXTS:
            tokens = ids(text)
            model.zero_grad()
            # transformers' loss is the mean over the T - 1 predictions.
            loss = model(tokens, labels=tokens).loss * (tokens.shape[1] - 1)
            loss.backward()
            for name, parameter in model.named_parameters():
                expected[name] += parameter.grad.square() / len(TEXTS)
        assert set(evidence) == set(expected) == set(Checkpoint(folder).specs)
        for name, tensor in evidence.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-9)
            assert tensor.dtype == torch.float32

    def test_drawn_labels_give_the_expectation_over_the_model_s_own_distribution(
        self, tiny_family: Callable[..., Path], measure: Collect
    ) -> None:
        folder, text, name = tiny_family() / "a", "w3 w4 w5", "model.norm.weight"
        model = load(folder)
        tokens, expected = ids(text), torch.zeros(32)
        for position in range(2):
            logprobs = torch.log_softmax(model(tokens).logits[0, position], dim=-1)
            for logprob in logprobs:
                (gradient,) = torch.autograd.grad(logprob, model.model.norm.weight, retain_graph=True)
                expected += logprob.detach().exp() * gradient.square()
        drawn = measure(folder, "fisher", [text] * 800, samples=800)[name]
        torch.testing.assert_close(drawn.sum(), expected.sum(), rtol=0.1, atol=0)
        assert float((drawn - expected).norm() / expected.norm()) < 0.2

    def test_draws_depend_on_the_seed_alone(self, parent: Path, measure: Collect, tmp_path: Path) -> None:
        once, again = (measure(parent, "fisher", cache=tmp_path / name) for name in ("one", "two"))
        assert once.digest == again.digest
        assert measure(parent, "fisher", seed=1).digest != once.digest

    def test_the_norm_is_that_of_the_whole_model(self, parent: Path, measure: Collect) -> None:
        evidence = measure(parent, "fisher")
        whole = torch.cat([tensor.flatten() for tensor in evidence.values()])
        assert evidence.norm == pytest.approx(float(whole.double().norm()))


class TestGram:
    def test_it_is_the_mean_product_of_a_layer_s_inputs(self, parent: Path, measure: Collect) -> None:
        evidence, model = measure(parent, "gram"), load(parent)
        seen: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                rows = seen.setdefault(f"{name}.weight", [])
                module.register_forward_hook(lambda _, given, __, rows=rows: rows.append(given[0][0].detach()))
        for text in TEXTS:
            model(ids(text))
        assert set(evidence) == set(seen)
        assert len(seen) == 3 * 7 + 1  # the head is a layer of its own here
        for name, rows in seen.items():
            inputs = torch.cat(rows)
            assert len(inputs) == sum(len(text.split()) for text in TEXTS)
            torch.testing.assert_close(evidence[name], inputs.T @ inputs / len(inputs))
            assert torch.equal(evidence[name], evidence[name].T)

    def test_a_tied_head_has_none(self, tiny_family: Callable[..., Path], measure: Collect) -> None:
        names = set(measure(tiny_family(tied=True) / "a", "gram"))
        assert len(names) == 3 * 7
        assert not [name for name in names if "embed" in name or "head" in name]

    def test_layers_that_store_inputs_first_are_named(self, tmp_path: Path, parent: Path, measure: Collect) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=16, bos_token_id=0, eos_token_id=1
        )
        with torch.random.fork_rng():
            model = GPT2LMHeadModel(config)
        model.save_pretrained(tmp_path / "gpt2")
        for file in parent.glob("tokenizer*"):
            shutil.copy(file, tmp_path / "gpt2")
        evidence = measure(tmp_path / "gpt2", "gram")
        weights = [
            f"transformer.h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ]
        assert evidence.input_first == set(evidence) == set(weights)
        assert evidence["transformer.h.0.mlp.c_proj.weight"].shape == (128, 128)
        assert measure(parent, "gram").input_first == set()


class TestCache:
    @pytest.mark.parametrize("kind", ["fisher", "gram"])
    def test_what_is_kept_needs_no_model(self, parent: Path, measure: Collect, kind: str) -> None:
        first = measure(parent, kind)
        (parent / "model.safetensors").unlink()
        again = measure(parent, kind)
        assert again.digest == first.digest
        assert all(torch.equal(again[name], first[name]) for name in first)
        assert (again.kind, again.norm, again.input_first) == (kind, first.norm, first.input_first)

    def test_whatever_changes_the_numbers_changes_the_name(
        self, parent: Path, measure: Collect, tmp_path: Path
    ) -> None:
        def kept() -> int:
            return len(list((tmp_path / "cache").iterdir()))

        measure(parent, "fisher")
        changes: list[dict[str, Any]] = [
            {"digest": "others"},
            {"texts": TEXTS[::-1]},
            {"samples": 2},
            {"max_length": 3},
            {"labels": "data"},
            {"seed": 1},
        ]
        for number, change in enumerate(changes, start=2):
            measure(parent, "fisher", **change)
            assert kept() == number, change
        measure(parent, "gram")
        tokenizer = parent / "tokenizer_config.json"
        tokenizer.write_text(tokenizer.read_text().replace("</s>", "w3"))
        measure(parent, "gram")
        assert kept() == len(changes) + 3

    def test_what_changes_nothing_keeps_the_name(self, parent: Path, measure: Collect, tmp_path: Path) -> None:
        measure(parent, "gram")
        measure(parent, "gram", samples=3)  # all three texts, as before
        measure(parent, "gram", seed=1, labels="data")  # Gram matrices draw nothing
        file = tmp_path / "texts.txt"
        file.write_text("\n".join(TEXTS))
        measure(parent, "gram", file)
        assert len(list((tmp_path / "cache").iterdir())) == 1

    def test_a_damaged_file_is_measured_again(self, parent: Path, measure: Collect, tmp_path: Path) -> None:
        sound = measure(parent, "gram").digest
        (path,) = (tmp_path / "cache").iterdir()
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[-1] ^= 1
        for damaged in (b"", b"x" * 100, content[:-7], bytes(flipped), content.replace(b"evidence", b"evidenxe")):
            path.write_bytes(damaged)
            assert measure(parent, "gram").digest == sound
            assert path.read_bytes() == content

    def test_nothing_else_is_left_in_the_folder(self, parent: Path, measure: Collect, tmp_path: Path) -> None:
        measure(parent, "gram")
        assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]

    def test_a_folder_that_takes_nothing_is_one_line(self, parent: Path, measure: Collect, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be kept there"):
            measure(parent, "gram", cache=tmp_path / "file" / "cache")

    def test_it_lies_in_the_user_s_cache_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_folder() == tmp_path / "heterosis" / "evidence"
        for ignored in ("", "relative"):
            monkeypatch.setenv("XDG_CACHE_HOME", ignored)
            assert cache_folder() == Path.home() / ".cache" / "heterosis" / "evidence"

    def test_a_tensor_without_evidence_is_none(self, parent: Path, measure: Collect) -> None:
        evidence = measure(parent, "gram")
        assert evidence.get("model.norm.weight") is None
        assert "model.norm.weight" not in evidence


class TestRefusals:
    @pytest.fixture(autouse=True)
    def no_model_is_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))

    @pytest.mark.parametrize("texts", [[], [" "], ["w3 w4", ""], ["w3"]])
    def test_texts_that_say_nothing(self, parent: Path, measure: Collect, texts: list[str]) -> None:
        with pytest.raises(TaskError, match=r"empty|single token"):
            measure(parent, "fisher", texts)

    @pytest.mark.parametrize("setting", [{"samples": 0}, {"max_length": 1}])
    def test_settings_that_leave_nothing(self, parent: Path, measure: Collect, setting: dict[str, int]) -> None:
        with pytest.raises(RecipeError, match="at least 1 and 2"):
            measure(parent, "fisher", **setting)

    def test_a_file_that_is_not_there(self, parent: Path, measure: Collect) -> None:
        with pytest.raises(TaskError, match="no such file"):
            measure(parent, "gram", parent / "missing.txt")

    def test_pickles(self, parent: Path, measure: Collect) -> None:
        (parent / "model.safetensors").rename(parent / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="pickle"):
            measure(parent, "gram")

    def test_a_folder_without_a_tokenizer(self, parent: Path, measure: Collect) -> None:
        for path in parent.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(CheckpointError, match="tokenizer cannot be used"):
            measure(parent, "gram")


def test_code_of_a_model_is_not_run(parent: Path, measure: Collect) -> None:
    config = json.loads((parent / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (parent / "config.json").write_text(json.dumps(config))
    (parent / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError):
        measure(parent, "gram")


def test_an_overflowing_model_is_refused(parent: Path, measure: Collect) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(parent / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1e38
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1e38
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not finite"):
        measure(parent, "gram")


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_global_generators_are_left_alone(parent: Path, measure: Collect, kind: str) -> None:
    def state() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    measure(parent, kind)
    assert state() == before


def test_texts_are_cut_to_the_length_given_and_to_the_model_s_context(parent: Path, measure: Collect) -> None:
    long = " ".join(f"w{3 + i % 50}" for i in range(200))
    assert measure(parent, "gram", [long], max_length=5).digest == measure(parent, "gram", ["w3 w4 w5 w6 w7"]).digest
    context = " ".join(long.split()[:64])
    assert (
        measure(parent, "gram", [long], max_length=500).digest
        == measure(parent, "gram", [context], max_length=64).digest
    )


def test_sharded_and_half_precision_checkpoints_are_measured_in_float32(
    tiny_family: Callable[..., Path], measure: Collect
) -> None:
    single, sharded = (
        measure(tiny_family("bfloat16", sharded=sharded) / "a", "fisher", digest=str(sharded)) for sharded in (0, 1)
    )
    assert single.digest == sharded.digest
    assert {tensor.dtype for tensor in single.values()} == {torch.float32}


def test_writers_that_race_leave_one_whole_file(tmp_path: Path) -> None:
    tensors = {f"t{k}": torch.full((200, 200), float(k)) for k in range(20)}
    path = tmp_path / "cache" / "name.safetensors"
    with ThreadPoolExecutor(4) as pool:
        digests = {
            evidence.digest for evidence in pool.map(lambda _: keep(path, "gram", tensors, frozenset()), range(12))
        }
    assert digests == {Evidence(path).digest}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_merges_of_real_fine_tunes_predict_their_texts_better_than_the_average_does(
    real_families: Path, measure: Collect, kind: str
) -> None:
    folder, names = real_families / "stories260k", ("shakespeare", "gsm8k", "mbpp")
    files = {name: real_families.parent / "tasks" / f"{name}_text.jsonl" for name in names}
    parents = [Checkpoint(folder / name) for name in names]
    evidence = [measure(folder / name, kind, file, max_length=128) for name, file in files.items()]
    norms = [measured.norm for measured in evidence]
    average, informed = {}, {}
    for name in parents[0].specs:
        points = [parent.tensor(name).float() for parent in parents]
        average[name] = informed[name] = torch.stack(points).mean(dim=0)
        if name in evidence[0]:
            measured = [each[name] for each in evidence]
            informed[name] = (
                fisher_mean(points, measured, [1.0, 1.0, 1.0], normalize=True, norms=norms)
                if kind == "fisher"
                else regmean(points, measured, 0.9)
            )
    unread = [read_texts(file, 24)[8:] for file in files.values()]
    model = load(folder / "mbpp")
    assert bits(model, informed, folder, unread) < bits(model, average, folder, unread) - 0.05


@torch.inference_mode()
def bits(model: Any, weights: dict[str, Tensor], folder: Path, texts: Sequence[Sequence[str]]) -> float:
    """Mean bits per token over groups of texts."""
    from transformers import AutoTokenizer

    tokenizer, state = AutoTokenizer.from_pretrained(folder / "base"), model.state_dict()
    for name, tensor in weights.items():
        state[name].copy_(tensor)
    rows = [[tokenizer(t, truncation=True, max_length=128, return_tensors="pt")["input_ids"] for t in g] for g in texts]
    return (
        sum(float(model(row, labels=row).loss) / len(group) for group in rows for row in group)
        / len(rows)
        / math.log(2)
    )


def test_it_measures_the_same_inside_inference_mode(tiny_family: Any, tmp_path: Path) -> None:
    """Engines merge there, and the first candidate of a study measures."""
    folder, texts = tiny_family() / "a", ["w3 w4 w5 w6 w7"]
    plain = collect(folder, "0", texts, "fisher", samples=1, max_length=8, cache=tmp_path / "plain")
    with torch.inference_mode():
        inside = collect(folder, "0", texts, "fisher", samples=1, max_length=8, cache=tmp_path / "inside")
    assert inside.digest == plain.digest
