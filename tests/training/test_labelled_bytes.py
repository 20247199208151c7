"""Bits per byte: the loss over the UTF-8 bytes of the text that is in it."""

import json
import math

import lightning as L
import numpy as np
import pytest
import torch

import toy_tokenizers
from peft_lightning import CausalLMModule, LoRA, SFTDataModule
from peft_lightning.data.collate import flat_collate, padded_collate
from peft_lightning.training.evaluation import Evaluation
from peft_lightning.training.labelled_bytes import LabelledBytes
from tiny_run import byte_tokenizer

COMPLETIONS = ["서울", "naïve 😀", "plain", "한국어 문장입니다"]


class Halved(CausalLMModule):
    """Counts other tokens than those that are labelled."""

    def nll(self, batch):
        nll, tokens = super().nll(batch)
        return nll, tokens / 2


def validated(base, folder, module_class=CausalLMModule, **data):
    rows = [{"prompt": "세 ", "completion": text} for text in COMPLETIONS]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    module = module_class(str(base), LoRA(r=2))
    datamodule = SFTDataModule(
        val=str(folder / "rows.jsonl"), batch_size=3, cache_dir=str(folder), **data
    )
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (found,) = trainer.validate(module, datamodule, verbose=False)
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_bits_per_byte_is_the_loss_over_the_bytes_of_the_labelled_text(base, tmp_path, layout):
    found = validated(base, tmp_path, layout=layout)
    size = sum(len(text.encode()) for text in COMPLETIONS)
    tokens = size + len(COMPLETIONS)  # a token is a byte, and an end token ends each answer
    expected = found["val/loss"] * tokens / math.log(2) / size
    assert found["val/bits_per_byte"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_loss_over_other_tokens_has_no_bits_per_byte(base, tmp_path):
    found = validated(base, tmp_path, Halved)
    assert "val/loss" in found
    assert "val/bits_per_byte" not in found


def batch_of(collate, rows, weights=None):
    arrays = [{"input_ids": np.array(ids), "labels": np.array([-100, *ids[1:]])} for ids in rows]
    if weights is not None:
        for row in arrays:
            row["loss_weights"] = np.array([0, *[weights] * (len(row["labels"]) - 1)], np.float32)
    return collate(arrays)


COLLATES = [flat_collate, lambda rows: padded_collate(rows, 0)]


@pytest.mark.parametrize("collate", COLLATES, ids=["flat", "padded"])
def test_a_space_that_the_tokenizer_adds_is_no_byte_of_the_text(collate):
    tokenizer = toy_tokenizers.fallback_tokenizer()
    texts = ["hi", "hi hi", "한 b", "❤"]  # of which each first token stands for a space too
    rows = [[tokenizer.bos_token_id, *tokenizer(t)["input_ids"]] for t in texts]
    tokens, size = LabelledBytes(tokenizer).count(batch_of(collate, rows))
    assert size == sum(len(text.encode()) for text in texts)
    assert tokens == sum(len(row) - 1 for row in rows)


@pytest.mark.parametrize("collate", COLLATES, ids=["flat", "padded"])
def test_bytes_are_weighted_as_the_loss_is(collate):
    tokenizer = byte_tokenizer()
    batch = batch_of(collate, [tokenizer("a한")["input_ids"], tokenizer("ab")["input_ids"]], 0.25)
    tokens, size = LabelledBytes(tokenizer).count(batch)
    assert (tokens, size) == (0.25 * 4, 0.25 * 4)  # the first token of a row is not predicted


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {"x": torch.zeros(2)},
        {"labels": torch.zeros(1, 3, dtype=torch.long), "inputs_embeds": torch.zeros(1, 3, 2)},
        {"labels": torch.zeros(3), "input_ids": torch.zeros(3)},
    ],
    ids=["a list", "no labels", "no ids", "floats"],
)
def test_a_batch_of_another_form_and_a_missing_tokenizer_have_no_bytes(batch):
    assert LabelledBytes(byte_tokenizer()).count(batch) is None
    ids = torch.ones(1, 3, dtype=torch.long)
    assert LabelledBytes(None).count({"input_ids": ids, "labels": ids}) is None


def test_ids_beyond_the_tokenizer_have_no_bytes():
    tokenizer = byte_tokenizer()
    batch = batch_of(flat_collate, [[5, 6, len(tokenizer) + 40]])
    tokens, size = LabelledBytes(tokenizer).count(batch)
    assert (tokens, size) == (2, 1)


def test_text_without_bytes_logs_no_bits_per_byte():
    evaluation, logged = Evaluation(), {}
    evaluation.start(tokenizer := byte_tokenizer())
    end = tokenizer.eos_token_id
    evaluation.update(
        torch.tensor(3.0), torch.tensor(1), None, batch_of(flat_collate, [[end, end]])
    )

    class Module:
        @staticmethod
        def log(name, value, **options):
            logged[name] = value.item()

    evaluation.log(Module, "val")
    assert logged["val/loss"] == 3
    assert "val/bits_per_byte" not in logged
