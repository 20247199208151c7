import numpy as np
import torch

from peft_lightning.data.collate import flat_collate, padded_collate, prompt_collate


def rows(*contents):
    return [{"input_ids": np.array(ids), "labels": np.array(labels)} for ids, labels in contents]


TWO = rows(([5, 6, 7], [-100, 6, 7]), ([8, 9], [-100, 9]))


def test_flat_rows_lie_end_to_end():
    batch = flat_collate(TWO)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["cu_seq_lens"].tolist() == [0, 3, 5]
    assert batch["seq_lens"] == [3, 2]
    assert {k: v.dtype for k, v in batch.items() if k != "seq_lens"} == {
        "input_ids": torch.int64,
        "labels": torch.int64,
        "position_ids": torch.int64,
        "cu_seq_lens": torch.int32,
    }
    assert all(type(n) is int for n in batch["seq_lens"])


def test_padded_rows_are_filled_on_the_right():
    batch = padded_collate(TWO, pad_id=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_an_empty_batch_is_one_token_that_is_not_in_the_loss():
    flat, padded = flat_collate([]), padded_collate([], pad_id=1)
    for batch in (flat, padded):
        assert batch["input_ids"].shape == (1, 1)
        assert batch["labels"].tolist() == [[-100]]
    assert flat["seq_lens"] == [1]
    assert padded["attention_mask"].tolist() == [[1]]


def test_prompts_are_filled_on_the_left():
    batch = prompt_collate([(4, [5, 6, 7], "a"), (9, [8], "a")], pad_id=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [1, 1, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["index"] == [4, 9]
    assert batch["adapter"] == "a"
