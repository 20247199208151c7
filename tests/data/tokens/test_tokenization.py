import itertools
import random

import numpy as np
import pytest
from transformers import PreTrainedTokenizer

from peft_lightning.data import PromptFormat, encode_prompt
from peft_lightning.data.options import TokenOptions
from peft_lightning.data.records import DroppedRowError, LongRowError, RowCounts, RowError
from peft_lightning.data.rows.conversations import Conversation, PlainText
from peft_lightning.data.rows.formats import FORMATS
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.data.tokens.tokenizer import tokenizer_fingerprint
from toy_tokenizers import (
    CHATML,
    INST,
    MARKED,
    REWRITING,
    UNENDED,
    byte_tokenizer,
    fallback_tokenizer,
    show,
)


def chat(*contents, first="user"):
    """A conversation in which user and assistant take turns."""
    roles = itertools.cycle(["user", "assistant"] if first == "user" else ["assistant", "user"])
    return Conversation([{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)])


def masked(tokenizer, row, template=None, **options):
    """Return the text of ``row`` as tokenized, what is in the loss between ⟦ and ⟧."""
    (encoded,) = RowTokenizer(tokenizer, template, TokenOptions(**options)).tokenize([row])
    if isinstance(encoded, RowError):
        raise encoded
    return "\n".join(show(tokenizer, part) for part in encoded)


U, A = "<|im_start|>user\n", "<|im_start|>assistant\n"


def test_the_answer_and_its_end_token_are_in_the_loss_and_nothing_else():
    tokenizer = byte_tokenizer(CHATML)
    assert masked(tokenizer, chat("hi", "ho")) == f"{U}hi<|im_end|>\n{A}⟦ho<|im_end|>⟧\n"


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_of_several_turns_all_or_the_last_or_everything_is_trained_on(template):
    tokenizer, row = byte_tokenizer(template), chat("a", "b", "c", "d")
    assert masked(tokenizer, row) == (
        f"{U}a<|im_end|>\n{A}⟦b<|im_end|>⟧\n{U}c<|im_end|>\n{A}⟦d<|im_end|>⟧\n"
    )
    assert masked(tokenizer, row, train_on="last") == (
        f"{U}a<|im_end|>\n{A}b<|im_end|>\n{U}c<|im_end|>\n{A}⟦d<|im_end|>⟧\n"
    )
    assert masked(tokenizer, row, train_on="all") == (
        f"<|im_start|>⟦user\na<|im_end|>\n{A}b<|im_end|>\n{U}c<|im_end|>\n{A}d<|im_end|>\n⟧"
    )


def test_a_generation_block_may_hold_the_end_marker_too():
    template = MARKED.replace(
        "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}",
        "{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endif %}",
    ).replace("{{ '<|im_end|>\n' }}", "")
    assert template.count("im_end") == 2
    assert masked(byte_tokenizer(template), chat("a", "b")) == (
        f"{U}a<|im_end|>\n{A}⟦b<|im_end|>⟧\n"
    )


def test_the_end_token_is_in_the_loss_where_it_is_the_pad_token_too():
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert masked(tokenizer, chat("hi<|im_end|>", "ho")) == (
        f"{U}hi<|im_end|><|im_end|>\n{A}⟦ho<|im_end|>⟧\n"
    )


def test_a_template_that_prints_bos_gets_no_second_one():
    tokenizer = byte_tokenizer(INST, bos=True)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert masked(tokenizer, chat("a", "b", "c", "d")) == (
        "<s>[INST] a [/INST]⟦ b </s>⟧<s>[INST] c [/INST]⟦ d </s>⟧"
    )


def test_plain_text_gets_bos_where_the_tokenizer_has_it_and_eos_in_the_loss():
    plain = PlainText([("ab", False), ("cd", True)])
    assert masked(byte_tokenizer(), plain) == "ab⟦cd</s>⟧"
    assert masked(byte_tokenizer(bos=True), plain) == "<s>ab⟦cd</s>⟧"
    assert masked(byte_tokenizer(bos=True), PlainText([("<s>ab", False), ("cd", True)])) == (
        "<s>ab⟦cd</s>⟧"
    )
    assert masked(byte_tokenizer(bos=True), plain, train_on="all") == "<s>⟦abcd</s>⟧"
    assert masked(byte_tokenizer(), plain, train_on="all") == "a⟦bcd</s>⟧"


def test_the_first_token_is_never_in_the_loss():
    ((encoded,),) = RowTokenizer(byte_tokenizer()).tokenize([PlainText([("abc", True)])])
    assert encoded.loss_weights.tolist() == [False, True, True, True]


def test_without_a_template_a_prompt_and_its_completion_stand_side_by_side():
    row = FORMATS["prompt_completion"]({"prompt": "Q: x\nA:", "completion": " y"})
    assert masked(byte_tokenizer(), row) == "Q: x\nA:⟦ y</s>⟧"
    assert masked(byte_tokenizer(CHATML), row, template="none") == "Q: x\nA:⟦ y</s>⟧"


def test_messages_without_a_template_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"no chat template .* give chat_template the path"):
        RowTokenizer(byte_tokenizer()).tokenize([chat("a", "b")])


def test_a_template_may_come_from_a_file(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML)
    assert masked(byte_tokenizer(), chat("a", "b"), template=str(path)) == (
        f"{U}a<|im_end|>\n{A}⟦b<|im_end|>⟧\n"
    )
    with pytest.raises(ValueError, match=r"chat_template 'chat\.jinga': no such file"):
        RowTokenizer(byte_tokenizer(), "chat.jinga")


def test_a_template_that_rewrites_history_gives_a_text_for_each_answer_as_it_is_generated():
    tokenizer = byte_tokenizer(REWRITING)
    row = chat("a", "<think>x</think>b", "c", "<think>y</think>d")
    assert masked(tokenizer, row) == (
        f"{U}a<|im_end|>\n{A}⟦<think>x</think>b<|im_end|>⟧\n\n"
        f"{U}a<|im_end|>\n{A}b<|im_end|>\n{U}c<|im_end|>\n{A}⟦<think>y</think>d<|im_end|>⟧\n"
    )
    assert masked(tokenizer, row, train_on="last") == (
        f"{U}a<|im_end|>\n{A}b<|im_end|>\n{U}c<|im_end|>\n{A}⟦<think>y</think>d<|im_end|>⟧\n"
    )
    assert masked(tokenizer, row, train_on="all") == (  # each text once, and each answer
        f"{U}a<|im_end|>\n{A}⟦<think>x</think>b<|im_end|>⟧\n\n<|im_start|>⟦user\na<|im_end|>\n"
        f"{A}b<|im_end|>\n{U}c<|im_end|>\n{A}<think>y</think>d<|im_end|>\n⟧"
    )
    assert masked(tokenizer, chat("a", "b", "c", "<think>y</think>d")) == (
        f"{U}a<|im_end|>\n{A}⟦b<|im_end|>⟧\n{U}c<|im_end|>\n{A}⟦<think>y</think>d<|im_end|>⟧\n"
    )


def test_an_answer_that_nothing_ends_gets_an_eos_token_in_the_loss():
    tokenizer = byte_tokenizer(UNENDED)
    assert masked(tokenizer, chat("a", "b")) == "user: a\nassistant:⟦ b</s>⟧"
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no EOS token.*would never stop; set tokenizer\.eos"):
        masked(tokenizer, chat("a", "b"))


def test_a_thought_that_the_prompt_opens_is_closed_by_an_answer_without_one():
    template = CHATML.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>assistant\n<think>' }}")
    tokenizer = byte_tokenizer(template)
    assert masked(tokenizer, chat("a", "<tool>b")) == (
        f"{U}a<|im_end|>\n{A}<think>⟦</think>\n\n<tool>b<|im_end|>⟧\n"
    )
    assert masked(tokenizer, chat("a", "<think>b")) == (
        f"{U}a<|im_end|>\n{A}<think>⟦b<|im_end|>⟧\n"
    )


def test_a_conversation_may_start_with_the_assistant():
    tokenizer = byte_tokenizer(CHATML)
    row = chat("a", "b", "c", first="assistant")
    assert masked(tokenizer, row) == (f"{A}⟦a<|im_end|>⟧\n{U}b<|im_end|>\n{A}⟦c<|im_end|>⟧\n")


def test_untrained_turns_are_not_in_the_loss():
    row = chat("a", "b", "c", "d")
    for template in (CHATML, MARKED):
        first_only = Conversation(row.messages, weights=[0, 1, 0, 0])
        last_only = Conversation(row.messages, weights=[0, 0, 0, 1])
        tokenizer = byte_tokenizer(template)
        assert masked(tokenizer, first_only) == (f"{U}a<|im_end|>\n{A}⟦b<|im_end|>⟧\n")
        assert masked(tokenizer, last_only) == (
            f"{U}a<|im_end|>\n{A}b<|im_end|>\n{U}c<|im_end|>\n{A}⟦d<|im_end|>⟧\n"
        )
        with pytest.raises(RowError, match="no token in the loss"):
            masked(tokenizer, first_only, train_on="last")


def test_tools_and_tool_calls_reach_the_template():
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
        "{{ '<|im_start|>' + m.role + '\n' }}{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = FORMATS["messages"](
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "content": "1"},
                {"role": "assistant", "content": "b"},
            ],
            "tools": [{"name": "f"}],
        }
    )
    assert masked(byte_tokenizer(template), row) == (
        f'[{{"type": "function", "function": {{"name": "f"}}}}]{U}a<|im_end|>\n'
        f'{A}⟦{{"name": "f", "arguments": {{"x": 1}}}}<|im_end|>⟧\n'
        f"<|im_start|>tool\n1<|im_end|>\n{A}⟦b<|im_end|>⟧\n"
    )


def test_a_template_that_refuses_the_messages_is_a_reason():
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowError, match=r"the chat template refuses .*: roles must alternate"):
        masked(byte_tokenizer(template), chat("a", "b"))


def test_a_token_over_the_boundary_is_cut_there():
    tokenizer = byte_tokenizer(CHATML)
    newlines = tokenizer.convert_tokens_to_ids("ĊĊ")
    assert newlines in tokenizer(f"{A}\nho")["input_ids"]  # the template's line end and the row's
    row = chat("hi", "\n\n\nho")
    assert masked(tokenizer, row) == f"{U}hi<|im_end|>\n{A}⟦\n\n\nho<|im_end|>⟧\n"
    ((encoded,),) = RowTokenizer(tokenizer).tokenize([row])
    prompt = encode_prompt(tokenizer, row.messages[:1])
    assert encoded.input_ids[: len(prompt)].tolist() == prompt
    answer = encoded.input_ids[len(prompt) :].tolist()
    assert answer[:2] == tokenizer("\n\n\n")["input_ids"]


def test_characters_of_several_bytes_are_labelled_whole():
    tokenizer = byte_tokenizer(CHATML)
    ((encoded,),) = RowTokenizer(tokenizer).tokenize([chat("é한", "한😀é")])
    assert show(tokenizer, encoded) == f"{U}é한<|im_end|>\n{A}⟦한😀é<|im_end|>⟧\n"
    assert encoded.loss_weights.sum() == 3 + 4 + 2 + 1  # their UTF-8 bytes, and the end token


def test_characters_that_fall_back_to_bytes_are_labelled_whole():
    tokenizer = fallback_tokenizer(INST)
    ((encoded,),) = RowTokenizer(tokenizer).tokenize([chat("한", "한hi")])
    labelled = tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.loss_weights > 0])
    bytes_of_han = ["<0xED>", "<0x95>", "<0x9C>"]
    assert labelled == ["▁", *bytes_of_han, "h", "i", "▁", "</s>"]


class SlowTokenizer(PreTrainedTokenizer):
    """One token per character, without offsets."""

    def __init__(self, **kwargs):
        self.characters = [chr(i) for i in range(128)]
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return 128

    def get_vocab(self):
        return {c: i for i, c in enumerate(self.characters)} | self.added_tokens_encoder

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)


def test_a_tokenizer_without_offsets_gets_the_same_mask():
    tokenizer = SlowTokenizer(eos_token="</s>", additional_special_tokens=["<|im_start|>"])
    assert not tokenizer.is_fast
    template = CHATML.replace("<|im_end|>", "</s>")
    row = chat("a", "b", "c", "d")
    expected = masked(byte_tokenizer(template), row)
    assert expected.count("⟦") == 2
    assert masked(tokenizer, row, template=template).replace(" ", "") == expected


@pytest.mark.parametrize("template", [CHATML, MARKED, INST, UNENDED, "none"])
@pytest.mark.parametrize("make", [byte_tokenizer, fallback_tokenizer])
def test_a_rows_tokens_before_the_answer_are_those_to_generate_from(template, make):
    tokenizer, draw = make(), random.Random(0)
    for _ in range(20):
        prompt, answer = ("".join(draw.choices("ab 한\n", k=6)) for _ in range(2))
        if not answer.strip():
            continue
        row = FORMATS["prompt_completion"]({"prompt": prompt, "completion": answer})
        ((encoded,),) = RowTokenizer(tokenizer, template).tokenize([row])
        ids = encode_prompt(tokenizer, prompt, PromptFormat(chat_template=template))
        assert encoded.input_ids[: len(ids)].tolist() == ids
        assert encoded.loss_weights[: len(ids)].sum() == 0
        assert encoded.loss_weights[len(ids)]


def test_messages_to_generate_from_need_a_template():
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        encode_prompt(byte_tokenizer(), [{"role": "user", "content": "a"}])


def test_a_longer_row_is_cut_without_a_fake_end_marker():
    row = PlainText([("ab", False), ("cdef", True)])
    row_tokenizer = RowTokenizer(
        byte_tokenizer(), None, TokenOptions(max_length=7, truncation="truncate")
    )
    ((whole,),) = row_tokenizer.tokenize([row])
    assert not whole.truncated
    assert len(whole.input_ids) == 7
    ((cut,),) = RowTokenizer(
        byte_tokenizer(), None, TokenOptions(max_length=5, truncation="truncate")
    ).tokenize([row])
    assert cut.truncated
    assert show(byte_tokenizer(), cut) == "ab⟦cde⟧"


def test_a_row_whose_labels_are_all_cut_off_is_dropped_with_that_reason():
    row = PlainText([("abcd", False), ("e", True)])
    (dropped,) = RowTokenizer(
        byte_tokenizer(), None, TokenOptions(max_length=4, truncation="truncate")
    ).tokenize([row])
    assert isinstance(dropped, DroppedRowError)
    assert str(dropped) == "no token in the loss within max_length 4: 6 tokens"


def test_a_longer_row_is_dropped_or_an_error_where_that_is_asked_for():
    row = PlainText([("abc", True)])
    (dropped,) = RowTokenizer(
        byte_tokenizer(), None, TokenOptions(max_length=3, truncation="drop")
    ).tokenize([row])
    assert isinstance(dropped, DroppedRowError)
    assert dropped.reason == "longer than max_length 3"
    (error,) = RowTokenizer(
        byte_tokenizer(), None, TokenOptions(max_length=3, truncation="error")
    ).tokenize([row])
    assert isinstance(error, LongRowError)


def test_rows_and_reasons_come_back_in_order():
    rows = [PlainText([("ab", True)]), PlainText([("ab", False)]), PlainText([("cd", True)])]
    (first,), second, (third,) = RowTokenizer(byte_tokenizer()).tokenize(rows)
    assert show(byte_tokenizer(), first) == "a⟦b</s>⟧"
    assert second.reason == "no token in the loss"
    assert show(byte_tokenizer(), third) == "c⟦d</s>⟧"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_on": "asistant"}, "got 'asistant'; did you mean assistant"),
        ({"truncation": "cut"}, "truncation must be drop, truncate or error, got 'cut'"),
        ({"max_length": 1}, "max_length must be at least 2, got 1"),
    ],
)
def test_an_option_out_of_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        TokenOptions(**options)


def test_counts_add_up_and_say_so():
    counts = RowCounts(read=10, kept=7, truncated=2)
    counts.reasons.update({"empty completion": 2, "invalid JSON": 1})
    assert str(counts) == (
        "10 read = 7 kept (2 of them truncated) + empty completion: 2 + invalid JSON: 1"
    )
    counts.read += 1
    with pytest.raises(AssertionError):
        str(counts)


def test_a_fingerprint_is_the_tokenizers_and_not_the_last_calls():
    tokenizer = byte_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "ab"], padding=True, truncation=True, max_length=1)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.add_tokens(["new"])
    assert tokenizer_fingerprint(tokenizer) != before


def test_the_dtypes_are_those_the_cache_keeps():
    ((encoded,),) = RowTokenizer(byte_tokenizer()).tokenize([PlainText([("ab", True)])])
    assert encoded.input_ids.dtype == np.int32
    assert encoded.loss_weights.dtype == np.float32


@pytest.mark.parametrize("letters", [4_999, 5_000, 20_000])
def test_the_length_of_a_text_that_is_tokenized_in_pieces_is_that_of_all_of_it(letters):
    row = PlainText([("p", False), ("a" * letters, True)])
    options = TokenOptions(max_length=16)
    row_tokenizer = RowTokenizer(byte_tokenizer(), None, options)
    assert row_tokenizer._certainly_long * 2 < letters  # so it is cut before it is tokenized
    (dropped,) = row_tokenizer.tokenize([row])
    assert dropped.length == len(byte_tokenizer()("p" + "a" * letters)["input_ids"]) + 1  # EOS
    options = TokenOptions(max_length=16, truncation="truncate")
    ((cut,),) = RowTokenizer(byte_tokenizer(), None, options).tokenize([row])
    assert cut.input_ids.tolist() == byte_tokenizer()("p" + "a" * 15)["input_ids"]
