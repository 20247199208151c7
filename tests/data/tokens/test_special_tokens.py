"""Special tokens are found in texts, however many a tokenizer has."""

import itertools
import re

from peft_lightning.data.tokens.special_tokens import SpecialTokens, one_of
from toy_tokenizers import byte_tokenizer


def test_the_expression_of_tokens_matches_the_longest_of_them_and_nothing_else():
    texts = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("<a|", repeat=n)]
    for tokens in itertools.combinations(["<", "<a", "<a|", "|a", "a", "a|<", "||", "<||"], 4):
        expression = re.compile(one_of(tokens))
        for text in texts:
            longest = max((t for t in tokens if text.startswith(t)), key=len, default=None)
            found = expression.match(text)
            assert (found and found.group()) == longest
    assert not re.search(one_of([]), "a")


def test_special_tokens_at_the_end_are_found_from_the_first_to_the_last():
    tokens = SpecialTokens(byte_tokenizer())
    assert tokens.at_the_end("a<s><|im_end|>\n</s> \n") == [
        (4, "<s>"),
        (14, "<|im_end|>"),
        (19, "</s>"),
    ]
    assert tokens.at_the_end("a<|im_end|>b") == []
    assert tokens.at_the_end("") == []
    assert tokens.is_only_special("<s> <|im_end|>\n")
    assert not tokens.is_only_special("<s>a")
