"""Builds the demo family: one tiny Llama and three fine-tunes of it, each good at one skill.

It gives a merge search something real to find within minutes on a laptop. Every model has 1M parameters and
reads characters. The three skills have checkable answers:

    sort kqzpa=akpqz      the letters in alphabetical order
    add 47+85=132         the sum of two 2-digit numbers
    rare abdcabcab=d      the least frequent of the letters a, b, c and d

The base first learns all three, then reads text in which most answers are slips (a copy instead of the sorted
letters, the second number instead of the sum, the most frequent letter instead of the rarest). So it holds
the skills but does not show them reliably, like a model pre-trained on unchecked text. A fine-tune sees only
right answers of one skill: a small step in weight space, which a merge can combine with the others. The
fine-tunes differ in steps and learning rate, so their task vectors differ in norm, as those of unrelated
authors do, and a uniform average is far from the best merge.

`python train.py --out DIR` writes the four models, tasks/ and SCORES.md, the same each time on one machine.
"""

import argparse
import json
import random
import string
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
ALPHABET = [*SPECIAL.values(), *"\n ", *string.ascii_letters, *string.digits, *"+-*/=<>()[]{}.,:;!?'\"_"]
PAD, BOS, EOS = 0, 1, 2
IGNORE = -100
BATCH = 64
HELD_OUT = 1300
CHOICES = "abcd"

TASK = """\
task: demo_{skill}
dataset_path: json
dataset_kwargs:
  data_files:
    test: demo_{skill}.jsonl
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
GENERATE = """\
output_type: generate_until
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 12
  do_sample: false
  temperature: 0.0
"""
MULTIPLE_CHOICE = """\
output_type: multiple_choice
doc_to_choice: ["a", "b", "c", "d"]
"""


class Item(NamedTuple):
    prompt: str
    answer: str
    slip: str


def letters(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(5, 8)))


def copy(rng: random.Random) -> Item:
    text = letters(rng)
    return Item(f"copy {text}=", text, text)


def flip(rng: random.Random) -> Item:
    text = letters(rng)
    return Item(f"flip {text}=", text[::-1], text)


def sort(rng: random.Random) -> Item:
    text = letters(rng)[:5]
    return Item(f"sort {text}=", "".join(sorted(text)), text)


def add(rng: random.Random) -> Item:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return Item(f"add {a}+{b}=", str(a + b), str(b))


def rare(rng: random.Random) -> Item:
    while True:
        text = "".join(rng.choices(CHOICES, k=rng.randint(7, 9)))
        by_count = sorted(CHOICES, key=text.count)
        if 0 < text.count(by_count[0]) < text.count(by_count[1]):  # a unique rarest letter, and present
            return Item(f"rare {text}=", by_count[0], by_count[-1])


# `copy` and `flip` are no tasks: they are general patterns which teach the base to look back at its input.
MAKERS = {maker.__name__: maker for maker in (sort, add, rare, copy, flip)}
SKILLS = ["sort", "add", "rare"]


Held = Mapping[str, Mapping[str, Item]]  # skill -> prompt -> item


class Phase(NamedTuple):
    """One stretch of training; the learning rate falls linearly from `lr` to `lr_end`."""

    steps: int
    lr: float
    lr_end: float
    mix: Mapping[str, float]
    slips: float = 0.0


# Addition needs the most examples, so it goes first; sorting is quicker once attention works.
BASE = [
    Phase(600, 2e-3, 2e-3, {"add": 4, "flip": 0.3, "rare": 0.8, "copy": 0.3}),
    Phase(300, 2e-3, 5e-4, {"sort": 3, "add": 1, "rare": 0.4}),
    Phase(250, 1.5e-3, 1e-4, {"sort": 4, "add": 1, "rare": 0.2}),
    Phase(100, 5e-4, 1e-4, {"add": 1, "sort": 1, "rare": 1, "copy": 0.3}, slips=0.65),
]
FINE_TUNES = {
    "sort": Phase(250, 4e-4, 4e-5, {"sort": 1}),
    "add": Phase(60, 2e-4, 2e-5, {"add": 1}),
    "rare": Phase(40, 3e-4, 3e-5, {"rare": 1}),
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    ids = {c: i for i, c in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()  # without it, decoding would put a space between characters
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128, clean_up_tokenization_spaces=False, **SPECIAL
    )


def new_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)  # Hugging Face's initialisation takes no generator
    config = LlamaConfig(
        vocab_size=len(ALPHABET),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # vLLM's CPU kernels want a multiple of 16
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def hold_out(seed: int) -> dict[str, dict[str, Item]]:
    """The test items of each skill by prompt: distinct, and refused by `sample`."""
    rng = random.Random(seed)
    held: dict[str, dict[str, Item]] = {}
    for skill in SKILLS:
        held[skill] = {}
        while len(held[skill]) < HELD_OUT:
            item = MAKERS[skill](rng)
            held[skill][item.prompt] = item
    return held


def sample(rng: random.Random, phase: Phase, held: Held) -> list[tuple[str, str]]:
    rows = []
    for skill in rng.choices(list(phase.mix), list(phase.mix.values()), k=BATCH):
        item = MAKERS[skill](rng)
        while item.prompt in held.get(skill, ()):
            item = MAKERS[skill](rng)
        rows.append((item.prompt, item.slip if rng.random() < phase.slips else item.answer))
    return rows


def encode(rows: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and next-token labels; only the answer and the newline after it are labelled."""
    ids = {c: i for i, c in enumerate(ALPHABET)}
    width = max(len(prompt) + len(answer) for prompt, answer in rows) + 2
    tokens, labels = torch.full((len(rows), width), PAD), torch.full((len(rows), width), IGNORE)
    for row, (prompt, answer) in enumerate(rows):
        line = torch.tensor([BOS] + [ids[c] for c in prompt + answer + "\n"])
        tokens[row, : len(line)] = line
        labels[row, len(prompt) + 1 : len(line)] = line[len(prompt) + 1 :]
    return tokens[:, :-1], labels[:, 1:]


def fit(model: LlamaForCausalLM, phase: Phase, held: Held, seed: int) -> None:
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    warmup = min(50, phase.steps // 5)
    model.train()
    for step in range(phase.steps):
        lr = phase.lr + (phase.lr_end - phase.lr) * step / phase.steps
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup)
        tokens, labels = encode(sample(rng, phase, held))
        logits = model(tokens).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    print(f"{phase}: loss {loss.item():.3f}", flush=True)


@torch.inference_mode()
def evaluate(model: LlamaForCausalLM, held: Held) -> dict[str, float]:
    """Accuracy per skill, as lm-eval measures it but without generation.

    A greedy answer is right exactly when every label is the argmax given the labels before it, so one forward
    pass decides. `rare` compares the four choices only.
    """
    model.eval()
    scores = {}
    for skill in SKILLS:
        tokens, labels = encode([(item.prompt, item.answer) for item in held[skill].values()])
        logits = model(tokens).logits
        if skill == "rare":
            choices = torch.tensor([ALPHABET.index(c) for c in CHOICES])
            rows, first = torch.arange(len(tokens)), (labels != IGNORE).int().argmax(1)
            right = choices[logits[rows, first][:, choices].argmax(1)] == labels[rows, first]
        else:
            right = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(1)
        scores[skill] = round(right.float().mean().item(), 4)
    return scores


def write_tasks(folder: Path, held: Held) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for skill, items in held.items():
        lines = [json.dumps({"prompt": item.prompt, "answer": item.answer}) for item in items.values()]
        (folder / f"demo_{skill}.jsonl").write_text("\n".join(lines) + "\n")
        metric, kind = ("acc", MULTIPLE_CHOICE) if skill == "rare" else ("exact_match", GENERATE)
        (folder / f"demo_{skill}.yaml").write_text(TASK.format(skill=skill, metric=metric) + kind)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes bfloat16, and leaves the model rounded to it, so that scores are those of the files."""
    for weight in model.parameters():  # not model.to(), which would round the rotary frequencies too
        weight.data = weight.data.bfloat16().float()
    deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the demo family.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write it to")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)  # a fixed order of sums, so the same weights each time

    start = time.monotonic()
    tokenizer, held = build_tokenizer(), hold_out(seed=0)
    write_tasks(out / "tasks", held)

    base = new_model(seed=0)
    for number, phase in enumerate(BASE, start=1):
        fit(base, phase, held, seed=number)
    save(base, tokenizer, out / "base")
    scores = {"base": evaluate(base, held)}

    for number, (skill, phase) in enumerate(FINE_TUNES.items(), start=10):
        model = deepcopy(base)
        fit(model, phase, held, seed=number)
        save(model, tokenizer, out / skill)
        scores[skill] = evaluate(model, held)

    lines = ["| model | " + " | ".join(f"demo_{skill}" for skill in SKILLS) + " | mean |", "|---" * 5 + "|"]
    for name, row in scores.items():
        cells = [*row.values(), sum(row.values()) / len(row)]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    (out / "SCORES.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), f"\n{(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
