"""The bytes of each token of a vocabulary, against the bytes of texts that are tokenized."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import toy_tokenizers
from peft_lightning.data.tokens.token_bytes import token_bytes
from tiny_run import byte_tokenizer

TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="▁"), max_size=20
)


def piece_tokenizer():
    """As SentencePiece's with byte fallback, which keeps all spaces of a text."""
    tokenizer = toy_tokenizers.fallback_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


MADE = {
    "bytes": byte_tokenizer(),
    "merged bytes": toy_tokenizers.gpt2_tokenizer(),
    "pieces": piece_tokenizer(),
    "pieces with a first space": toy_tokenizers.fallback_tokenizer(),
}


def bytes_of(name, text):
    table, ids = token_bytes(MADE[name]), MADE[name](text, add_special_tokens=False)["input_ids"]
    return sum(int(table.lengths[i]) for i in ids)


@pytest.mark.parametrize("name", ["bytes", "merged bytes", "pieces"])
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_the_bytes_of_the_tokens_of_a_text_are_those_of_the_text(name, text):
    assert bytes_of(name, text) == len(text.encode())


def test_a_space_that_the_tokenizer_adds_is_a_byte_more_and_said():
    table = token_bytes(MADE["pieces with a first space"])
    assert table.adds_space
    assert bytes_of("pieces with a first space", "hi 한😀") == len(" hi 한😀".encode())
    first, *_ = MADE["pieces with a first space"]("hi", add_special_tokens=False)["input_ids"]
    assert table.begins_with_space[first]
    assert not any(token_bytes(MADE[name]).adds_space for name in MADE if "first" not in name)


def test_special_tokens_have_no_bytes_and_other_added_ones_those_of_their_text():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<생각>"])
    table = token_bytes(tokenizer)
    lengths = {token: int(table.lengths[i]) for token, i in tokenizer.get_vocab().items()}
    assert lengths["<|im_end|>"] == lengths["<pad>"] == lengths["<unk>"] == 0
    assert lengths["<생각>"] == len("<생각>".encode()) == 8
    assert table.lengths[-1] == 0
    assert len(table.lengths) == len(tokenizer) + 1


def test_a_tokenizer_that_loses_a_part_of_a_text_has_no_table():
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.Fuse()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert token_bytes(words) is None
