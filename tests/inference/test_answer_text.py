"""Where an answer ends: stop strings, in batches and while it is printed, and what is cut."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from peft_lightning import UserError
from peft_lightning.commands.generate import generate
from peft_lightning.inference.answer_text import AnswerStreamer, decode_answer, is_cut
from peft_lightning.inference.generate import generate_tokens
from tiny_run import byte_tokenizer

FIRST = 10  # the token that stands for number 0
TOKENIZER = byte_tokenizer()  # a token is a byte: each string, and each character, straddles


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


class Reciter:
    """A model that answers a prompt of two tokens, the second of them a number, with a text."""

    def __init__(self, texts):
        self.texts, self.rows, self.step = [ids_of(text) for text in texts], [], 0
        sizes = {"vocab_size": len(TOKENIZER), "n_embd": 8, "n_layer": 1, "n_head": 1}
        self.model = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=64)).eval()
        self.model.generation_config.eos_token_id = None
        self.model.forward = self.forward

    def forward(self, input_ids=None, past_key_values=None, **kwargs):
        self.step += 1
        if input_ids.shape[1] > 1:
            self.rows, self.step = [int(i) - FIRST for i in input_ids[:, -1]], 0
        logits = torch.full((*input_ids.shape, len(TOKENIZER)), -9.0)
        for row, number in enumerate(self.rows):
            rest = [*self.texts[number][self.step :], *ids_of("~")]
            logits[row, -1, rest[0]] = 9.0
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


TEXTS = ["one\nQ: two", "née 東京 END of it", "no stop here", "END", "a EN b ENDING"]


@pytest.mark.parametrize("together", [1, 5])
def test_an_answer_ends_at_the_first_of_several_stop_strings(together):
    stop, most = ("END", "\nQ:"), 24
    model = Reciter(TEXTS).model
    rows = [[FIRST, FIRST + i] for i in range(len(TEXTS))]
    ids = generate_tokens(
        model, None, TOKENIZER, rows, most, stop=stop, batch_size=together, end_ids=()
    )
    texts = [decode_answer(TOKENIZER, answer, stop) for answer in ids]
    assert texts == ["one", "née 東京", f"no stop here{'~' * (most - 12)}", "", "a EN b"]
    assert [len(answer) for answer in ids[:2]] == [len(b"one\nQ:"), len("née 東京 END".encode())]
    assert [is_cut(TOKENIZER, answer, most, stop) for answer in ids] == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_printed_never_has_a_part_of_a_stop_string_or_of_a_character(text):
    stop, pieces, written = ("END", "\nQ:"), [], ids_of(text)
    streamer = AnswerStreamer(TOKENIZER, (), stop, pieces.append)
    streamer.put(torch.tensor([[10]]))
    want = decode_answer(TOKENIZER, written, stop)
    for token in written:
        streamer.put(torch.tensor([token]))
        assert want.startswith("".join(pieces))
    streamer.end()
    assert "".join(pieces) == want
    assert len(pieces) > 1 or len(want) < 2  # by the token, not at the end


def test_what_only_began_as_a_stop_string_is_printed_at_the_end():
    pieces = []
    streamer = AnswerStreamer(TOKENIZER, (), ("END",), pieces.append)
    streamer.put(torch.tensor([[10]]))
    for token in ids_of("the EN"):
        streamer.put(torch.tensor([token]))
    assert "".join(pieces) == "the"
    streamer.end()
    assert "".join(pieces) == "the EN"


def test_a_stop_string_that_is_a_special_token_ends_an_answer():
    reciter = Reciter(["ab<|im_end|>cd"])
    options = {"stop": ("<|im_end|>",), "end_ids": ()}
    [ids] = generate_tokens(reciter.model, None, TOKENIZER, [[FIRST, FIRST]], 9, **options)
    assert TOKENIZER.decode(ids) == "ab"


def test_an_empty_stop_string_is_refused(base):
    with pytest.raises(UserError, match="a stop string is empty"):
        generate("hello", base_model=str(base), stop=[""])


def test_prompts_of_a_file_that_are_too_long_are_refused_left_out_or_cut(base, tmp_path, capsys):
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    prompts = ["short", "x" * 400, "also short"]
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    options = {"file": str(file), "base_model": str(base), "max_new_tokens": 4}
    with pytest.raises(UserError, match=r"prompt 2 has 4\d\d tokens.* --truncation drop leaves"):
        generate(**options, output=str(out))
    assert not list(tmp_path.glob("out*"))  # found before the others were answered
    generate(**options, output=str(out), truncation="drop")
    assert "1 of 3 prompts are too long and get no answer: prompt 2 has" in capsys.readouterr().err
    dropped = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    assert dropped[1] is None
    assert None not in (dropped[0], dropped[2])
    generate(**options, output=str(out), truncation="truncate", overwrite=True)
    said = capsys.readouterr().err
    assert "of 1 of 3 prompts the beginning is cut off: prompt 2 has" in said
    assert "3 of 3 answers were cut at max_new_tokens 4" in said
    whole = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    assert [whole[0], whole[2]] == [dropped[0], dropped[2]]
    assert isinstance(whole[1], str)
