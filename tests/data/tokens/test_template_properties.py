"""What holds for all template families and tokenizers, whatever the texts of a row are."""

import functools
import random

import pytest

from peft_lightning.data.rows.conversations import Conversation, PlainText
from peft_lightning.data.tokens.tokenization import RowTokenizer
from template_families import FAMILIES
from toy_tokenizers import byte_tokenizer, fallback_tokenizer, gpt2_tokenizer

pytestmark = pytest.mark.slow

TOKENIZERS = {"bytes": byte_tokenizer, "fallback": fallback_tokenizer, "gpt2": gpt2_tokenizer}
ROWS = 12  # of each family and tokenizer

# white space at both ends, and beginnings of what templates print themselves
ODD = (
    *("B", " B", "B\n\n", "\n\nB", "\t\tB\t\t", "\n", " ", "  \n \n", "hi", "a", "th"),
    *("<", "<th", "<think>", "<tool", "<|", "<|im", "[", "[/INST", "assistant", "assistant\n\n"),
    *(
        "user\n",
        " ASSISTANT:",
        "</s",
        "\r\nB",
        "한국어",
        "😀",
        "é\n\n한",
        "e\u0301",
        "\u0301",
        "A\\n",
    ),
)
# what precedes an answer in the loss, what follows it, and how the template changes it
PRINTED = {
    "chatml": ("", "<|im_end|>", str),
    "llama-3": ("", "<|eot_id|>", str.strip),
    "gemma": ("", "<end_of_turn>", str.strip),
    "mistral-v1": (" ", "</s>", str),
    "mistral-v3": (" ", "</s>", str.strip),
    "mistral-v7": ("", "</s>", str),
    "qwen-2.5": ("", "<|im_end|>", str),
    "qwen-3": ("<think>\n\n</think>\n\n", "<|im_end|>", lambda text: text.lstrip("\n")),
    "qwq": ("\n</think>\n\n", "<|im_end|>", lambda text: text.lstrip("\n")),
    "phi-3": ("", "<|end|>", str),
    "phi-4": ("", "<|im_end|>", str),
    "deepseek-v3": ("", "<｜end▁of▁sentence｜>", str),  # noqa: RUF001
    "deepseek-r1": ("\n</think>\n\n", "<｜end▁of▁sentence｜>", str),  # noqa: RUF001
    "olmo-2": ("", "<|endoftext|>", str),
    "granite": ("", "<|end_of_text|>", str),
    "command-r": ("<|START_RESPONSE|>", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", str),
    "smollm-3": ("", "<|im_end|>", lambda text: text.lstrip("\n")),
    "harmony": ("<|channel|>final<|message|>", "<|return|>", str),
    "vicuna": (" ", "</s>", str.strip),
}


@functools.cache
def row_tokenizer(family, kind):
    tokenizer = FAMILIES[family].tokenizer(TOKENIZERS[kind])
    return tokenizer, RowTokenizer(tokenizer)


def odd_text(draw):
    text = "".join(draw.choices(ODD, k=draw.randint(1, 3)))
    return text if text.strip() else text + "B" + text


def conversation(draw, change=lambda text: text):
    contents = [change(odd_text(draw)) for _ in range(2 * draw.randint(1, 3))]
    roles = ["user", "assistant"] * (len(contents) // 2)
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    weights = [draw.choice([0, 1, 1]) for _ in messages]
    return Conversation(messages, weights=[*weights[:-1], 1])


def in_loss(part):
    """Return the spans of tokens in the loss."""
    flags = [False, *(weight > 0 for weight in part.loss_weights), False]
    edges = [i - 1 for i in range(1, len(flags)) if flags[i] != flags[i - 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def answers_of(parts, row, rows_tokenizer):
    """Return the ids of each answer in the loss by the index of its message."""
    prompts = {
        i: rows_tokenizer.encode_prompt(Conversation(row.messages[:i]))
        for i, message in enumerate(row.messages)
        if message["role"] == "assistant"
    }
    found = {}
    for part in parts:
        ids = part.input_ids.tolist()
        for start, end in in_loss(part):
            (index,) = [i for i, prompt in prompts.items() if prompt == ids[:start]]
            assert index not in found
            found[index] = ids[start:end]
    assert found.keys() == {i for i in prompts if row.weight(i)}
    return found


def decoded(tokenizer, ids):
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text.replace("▁", " ")  # in DeepSeek's tokens, for SentencePiece a space


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_those_of_generation_and_only_answers_are_in_the_loss(family, kind):
    tokenizer, rows_tokenizer = row_tokenizer(family, kind)
    before, after, change = PRINTED[family]
    draw = random.Random(f"{family} {kind}")
    for _ in range(ROWS):
        row = conversation(draw)
        (parts,) = rows_tokenizer.tokenize([row])
        assert isinstance(parts, list), (parts, row)
        for i, ids in answers_of(parts, row, rows_tokenizer).items():
            expected = before + change(row.messages[i]["content"]) + after
            assert decoded(tokenizer, ids) == expected.replace("▁", " "), row


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_text_add_no_special_token(family, kind):
    tokenizer, rows_tokenizer = row_tokenizer(family, kind)
    before, after, change = PRINTED[family]
    special = tokenizer.all_special_tokens
    ids_of_special = set(tokenizer.all_special_ids)
    draw = random.Random(f"{family} {kind}")
    for _ in range(ROWS):
        row = conversation(draw, lambda text: f"{text}{draw.choice(special)}{text}B")
        (parts,) = rows_tokenizer.tokenize([row])
        assert isinstance(parts, list), (parts, row)
        for i, ids in answers_of(parts, row, rows_tokenizer).items():
            expected = before + change(row.messages[i]["content"]) + after
            assert decoded(tokenizer, ids) == expected.replace("▁", " "), row
        harmless = [
            {**message, "content": functools.reduce(_without, special, message["content"])}
            for message in row.messages
        ]
        (harmless_parts,) = rows_tokenizer.tokenize([Conversation(harmless, weights=row.weights)])
        for part, other in zip(parts, harmless_parts, strict=True):
            found, expected = (
                [i for i in p.input_ids.tolist() if i in ids_of_special] for p in (part, other)
            )
            assert found == expected, row


def _without(text, token):
    return text.replace(token, "")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_plain_prompts_have_the_tokens_of_generation_though_white_space_ends_them(kind):
    tokenizer = TOKENIZERS[kind]()
    rows_tokenizer = RowTokenizer(tokenizer)
    draw = random.Random(kind)
    for _ in range(10 * ROWS):
        prompt = odd_text(draw) + draw.choice(["\n\n", "\t\t", "\n\n\n", "  ", ""])
        answer = odd_text(draw)
        row = PlainText([(prompt, False), (answer, True)])
        ((part,),) = rows_tokenizer.tokenize([row])
        ids = rows_tokenizer.encode_prompt(PlainText([(prompt, False)]))
        assert part.input_ids[: len(ids)].tolist() == ids
        assert in_loss(part) == [(len(ids), len(part.input_ids))]
        assert decoded(tokenizer, part.input_ids[len(ids) :]) == answer + "</s>"


def test_gpt2s_tokenizer_cuts_two_line_ends_otherwise_before_a_letter():
    tokenizer = gpt2_tokenizer()
    together, alone = tokenizer("Q\n\nB")["input_ids"], tokenizer("Q\n\n")["input_ids"]
    assert together[: len(alone)] != alone  # so that the properties above are not trivial
