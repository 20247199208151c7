"""A tokenizer of SentencePiece's BPE as llama.cpp stores it: a score for each token, no merges."""

from __future__ import annotations

import re
from typing import Any

import gguf

from peft_lightning.messages import UserError

SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LAST = -1e9  # the score of a token that nothing is merged to


def is_sentencepiece(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json holds a BPE of characters that falls back to bytes."""
    return content["model"]["type"] == "BPE" and bool(content["model"].get("byte_fallback"))


def require_scores(content: dict[str, Any]) -> None:
    """Raise UserError if a tokenizer.json is none that scores and a space in front describe."""
    adds_space(content, False)
    scores_of(content)


def scores_of(content: dict[str, Any]) -> dict[str, float]:
    """Return a score for each token by which llama.cpp merges as the merges of tokenizer.json do.

    llama.cpp merges the two neighbours whose union has the highest score, whichever they are. That
    is the same if every pair that makes a token is among the merges, as in those that are made of
    a SentencePiece model: the first of its merges is the token's rank.

    Raises:
        UserError: If a pair is not.
    """
    vocabulary = content["model"]["vocab"]
    merges = [m.split(" ") if isinstance(m, str) else m for m in content["model"]["merges"]]
    listed, scores = {tuple(pair) for pair in merges}, dict.fromkeys(vocabulary, _LAST)
    for rank, (left, right) in reversed(list(enumerate(merges))):
        scores[left + right] = -float(rank)
    beside = {token["content"] for token in content["added_tokens"]}
    for token in vocabulary:
        if len(token) == 1 or token in beside or _BYTE.fullmatch(token):
            continue
        pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
        made = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        if lost := [pair for pair in made if pair not in listed]:
            raise UserError(
                f"the tokenizer has {token!r} and does not merge {' and '.join(map(repr, lost[0]))}"
                " to it: llama.cpp would, as it knows scores of tokens and no merges"
            )
    return scores


def adds_space(content: dict[str, Any], has_template: bool) -> bool:
    """Whether a space is put in front of a text.

    llama.cpp puts it behind every special token too. A tokenizer that puts it at the very beginning
    alone has none in a chat, which begins with a special token: with a chat template that decides.

    Args:
        content: Of tokenizer.json.
        has_template: Whether there is a chat template.

    Raises:
        UserError: If spaces become something else than SentencePiece's.
    """
    normalizer, cut = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    kinds = [step["type"] for step in steps]
    replaces = kinds[-1:] == ["Replace"] and steps[-1]["content"] == SPACE
    if replaces and kinds in (["Replace"], ["Prepend", "Replace"]):
        splits = cut.get("type") == "Split" and cut["pattern"] == {"String": " "}
        if not cut or splits:  # at spaces, of which the normalizer has left none
            return "Prepend" in kinds
    if not steps and cut.get("type") == "Metaspace" and not cut.get("split", True):
        scheme = cut.get("prepend_scheme", "always")
        return scheme == "always" or (scheme == "first" and not has_template)
    raise UserError(
        f"the tokenizer changes its text by {kinds or 'nothing'} and "
        f"{cut.get('type', 'no cutting')}, which is not known here: convert the merged folder with "
        "llama.cpp's convert_hf_to_gguf.py, or export --type adapter"
    )


def add_scores(writer: gguf.GGUFWriter, tokenizer: Any, content: dict[str, Any], size: int) -> None:
    """Add the tokens with their scores and types.

    Args:
        writer: Of the file.
        tokenizer: Of transformers.
        content: Of its tokenizer.json.
        size: Rows of the embedding; ids that no token has get a filler.
    """
    scores, vocabulary = scores_of(content), tokenizer.get_vocab()
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    values = [_LAST] * size
    for token, i in vocabulary.items():
        is_byte = _BYTE.fullmatch(token) is not None
        tokens[i], values[i] = token, scores.get(token, _LAST)
        types[i] = gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL
    for i, added in tokenizer.added_tokens_decoder.items():
        types[i] = gguf.TokenType.CONTROL
        if not added.special:  # found in the text before spaces are replaced
            tokens[i], types[i] = added.content.replace(SPACE, " "), gguf.TokenType.USER_DEFINED
    if (unknown := vocabulary.get(content["model"].get("unk_token"))) is not None:
        types[unknown] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(values)
    writer.add_token_types(types)
    writer.add_add_space_prefix(adds_space(content, tokenizer.chat_template is not None))
