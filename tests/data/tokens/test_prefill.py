"""Prompts that end with the start of an answer, which the completion continues."""

import pytest

from peft_lightning.data.options import RowOptions
from peft_lightning.data.rows.format_detection import detect_format
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.tokens.tokenization import RowTokenizer
from toy_tokenizers import CHATML, INST, byte_tokenizer

START = {"role": "assistant", "content": "So:\n"}


@pytest.mark.parametrize("template", [CHATML, INST])
@pytest.mark.parametrize("completion", [" 3.", "\n\n3.", "x"])
def test_training_and_generation_continue_the_same_tokens(template, completion):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    record = {"prompt": [*turns, turns[0], START], "completion": completion}
    tokenizer = byte_tokenizer(template)
    row_tokenizer = RowTokenizer(tokenizer)
    parser = RowParser(detect_format(record, "x"), RowOptions())
    [[row]] = row_tokenizer.tokenize([parser.row(record)])
    prompt = row_tokenizer.encode_prompt(parser.prompt(record))
    trained = row.loss_weights.nonzero()[0]
    assert row.input_ids[: trained[0]].tolist() == prompt
    assert tokenizer.decode(prompt).endswith("So:\n")
    assert tokenizer.decode(row.input_ids[trained]).startswith(completion)
