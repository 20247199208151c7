"""What a run says of its rows at its start."""

import re

import pytest

from peft_lightning.data import datamodule as module
from peft_lightning.data.datamodule import SFTDataModule
from toy_tokenizers import CHATML, byte_tokenizer

ROWS = [{"prompt": "q" * (i + 1), "completion": "a" * (i + 1)} for i in range(30)]


@pytest.fixture
def said(tmp_path, monkeypatch):
    """Return a function that sets up the data of a fit, and returns the lines that it says."""

    def say(**options):
        lines = []
        monkeypatch.setattr(module, "rank_zero_info", lines.append)
        data = SFTDataModule(**options, cache_dir=str(tmp_path / "cache"))
        data.tokenizer = byte_tokenizer(CHATML)
        data.setup("fit")
        first = next(i for i, line in enumerate(lines) if line.startswith("train: "))
        last = next(i for i, line in enumerate(lines) if line.startswith("first row"))
        assert last - first < 5
        return lines[first : last + 1]

    return say


def test_rows_tokens_and_their_share_in_the_loss_are_told(said, jsonl):
    lines = said(train=jsonl("x.jsonl", ROWS), val=jsonl("y.jsonl", ROWS[:3]))
    letters = sum(i + 1 for i in range(30))
    # each byte is a token, and so is each of the four markers
    around = 4 + len("user\n") + len("\n") + len("assistant\n") + len("\n")
    tokens, in_loss = 2 * letters + 30 * around, letters + 30
    assert lines[0] == (
        f"train: 30 rows, {tokens:,} tokens, {in_loss:,} of them in the loss"
        f" ({in_loss / tokens:.1%})"
    )
    assert lines[1].startswith("val: 3 rows, ")
    assert lines[2] == (
        f"lengths: {2 + around} to {60 + around} tokens, median {30 + around}, 95 % at most"
        f" {58 + around}; max_length 1,024, no row is longer"
    )
    assert lines[3] == "nothing odd in the rows; python -m peft_lightning audit looks closer"
    assert lines[4] == (
        "first row, its tokens in the loss between ⟦ and ⟧:"
        " <|im_start|>user↵q<|im_end|>↵<|im_start|>assistant↵⟦a<|im_end|>⟧↵"
    )


def test_findings_are_told_with_their_rows_also_when_tokens_come_from_the_cache(said, jsonl):
    rows = [row | ({"score": 1} if i % 3 == 0 else {"id": 1}) for i, row in enumerate(ROWS)]
    path = jsonl("x.jsonl", rows)
    lines = said(train=path, val_fraction=0)
    assert "in the rows: unused column id (20 rows), unused column score (10 rows); " in lines[2]
    assert said(train=path, val_fraction=0) == lines


@pytest.mark.parametrize(("truncation", "verb"), [("drop", "leaves out"), ("truncate", "cuts")])
def test_what_max_length_does_and_what_would_keep_all_is_told(said, jsonl, truncation, verb):
    lines = said(train=jsonl("x.jsonl", ROWS), val_fraction=0, max_length=71, truncation=truncation)
    # 2 * (i + 1) + 21 tokens: the rows from i = 25 on have 73 and more, the last one 81
    assert re.search(rf"max_length 71 {verb} 5 rows, 81 would keep all whole$", lines[1])


def test_a_long_first_row_is_shortened_to_a_line(said, jsonl):
    rows = [{"prompt": "q\n" * 150, "completion": "a\n" * 150}, *ROWS]
    line = said(train=jsonl("x.jsonl", rows), val_fraction=0)[-1]
    assert len(line) < 400
    assert "\n" not in line
    assert " … " in line
    assert line.endswith("<|im_end|>⟧↵")
