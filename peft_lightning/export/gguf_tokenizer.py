"""A tokenizer as llama.cpp stores it in a GGUF file: a BPE of bytes, or of SentencePiece."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf

from peft_lightning.export.gguf_sentencepiece import add_scores, is_sentencepiece, require_scores
from peft_lightning.messages import UserError

# How the text is cut before merging, by the regular expression of tokenizer.json -> llama.cpp's
# name. Its own converter tells them by hashes of tokenised text, for the same purpose.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FALCON = ["Punctuation", "ByteLevel", "Digits", "Split"]
SPLITS = {_LLAMA3: "llama-bpe", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}


def add_vocabulary(
    writer: gguf.GGUFWriter,
    tokenizer: Any,
    size: int,
    pre: str | None,
    ends: Sequence[int] = (),
    template: str | None = None,
) -> None:
    """Add the tokens, merges, special ids and chat template.

    Args:
        writer: Of the file.
        tokenizer: Of transformers.
        size: Rows of the embedding; ids that no token has get a filler.
        pre: llama.cpp's name of how the text is cut; found from the tokenizer if None.
        ends: Ids that end an answer. Beside EOS the file names two; llama.cpp knows others by
            their texts.
        template: The chat template; None for none.

    Raises:
        UserError: If it is no BPE of bytes or of SentencePiece, or cuts its text in a way that
            llama.cpp may not have.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if (largest := max(tokenizer.get_vocab().values())) >= size:
        raise UserError(f"the tokenizer has ids up to {largest}, the model {size}")
    if is_sentencepiece(content) and pre is None:
        add_scores(writer, tokenizer, content, size)
    else:
        _add_merges(writer, tokenizer, content, size, pre or find_pre(content))
    for name in ("bos", "eos", "pad", "unk"):
        if (i := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(i)
    beside = [i for i in ends if i != tokenizer.eos_token_id]
    if beside:
        writer.add_eot_token_id(beside[-1])  # those of the chat template come last
    if beside[1:]:
        writer.add_eom_token_id(beside[0])
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == tokenizer.eos_token_id)
    if template is not None:
        writer.add_chat_template(template)


def _add_merges(
    writer: gguf.GGUFWriter, tokenizer: Any, content: dict[str, Any], size: int, pre: str
) -> None:
    """Add the tokens and merges of a byte-level BPE."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, i in tokenizer.get_vocab().items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for i, added in tokenizer.added_tokens_decoder.items():
        types[i] = gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    merges = content["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])


def require_known(tokenizer: Any, pre: str | None) -> None:
    """Raise UserError if a tokenizer is none that ``add_vocabulary`` takes."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if is_sentencepiece(content) and pre is None:
        require_scores(content)
    elif pre is None:
        find_pre(content)


def find_pre(content: dict[str, Any]) -> str:
    """Return llama.cpp's name of how a tokenizer cuts its text.

    Args:
        content: Of its tokenizer.json.

    Raises:
        UserError: If it is no byte-level BPE, or none that is known here.
    """
    model, steps = content["model"], _steps(content["pre_tokenizer"])
    kinds = [step["type"] for step in steps]
    if model["type"] != "BPE" or "ByteLevel" not in kinds or model.get("byte_fallback"):
        raise UserError(
            f"the tokenizer is a {model['type']} after {kinds or 'no cutting'}, and only a BPE of "
            "bytes or of SentencePiece can be written here: merge the adapter, and convert the "
            "merged folder with llama.cpp's convert_hf_to_gguf.py, or export --type adapter"
        )
    normal = content.get("normalizer") or {"type": "NFC"}
    plain = not any(step.get("add_prefix_space") for step in steps) and normal["type"] == "NFC"
    pre = None
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        pre = "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        pre = "smollm" if steps[1].get("use_regex", True) else None
    elif kinds == ["Split", "ByteLevel"] and steps[0]["behavior"] == "Isolated":
        pre = SPLITS.get(steps[0]["pattern"].get("Regex", ""))
        if pre == "llama-bpe" and not model.get("ignore_merges", False):
            pre = "dbrx"  # as OLMo 2 and Phi 4: cut alike, but whole words are merged too
    elif kinds == _FALCON and steps[3]["pattern"].get("Regex") == "[0-9][0-9][0-9]":
        pre = "falcon" if not steps[2]["individual_digits"] else None
    if pre is None or not plain or model.get("ignore_merges", False) != (pre == "llama-bpe"):
        raise UserError(
            "the tokenizer cuts its text in a way that is not known here: give llama.cpp's name of "
            "it with --tokenizer_pre, such as llama-bpe, qwen2, gpt-2 or smollm"
        )
    return pre


def copy_vocabulary(writer: gguf.GGUFWriter, file: Path, template: Any = None) -> None:
    """Add all that another GGUF file says of its tokenizer, with another chat template if given."""
    own = {gguf.Keys.Tokenizer.CHAT_TEMPLATE} if isinstance(template, str) else set()
    for key, field in gguf.GGUFReader(file).fields.items():
        if key.startswith("tokenizer.") and key not in own:
            writer.add_key_value(key, field.contents(), *field.types)
    if isinstance(template, str):
        writer.add_chat_template(template)


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return [step for part in pre_tokenizer["pretokenizers"] for step in _steps(part)]
    return [pre_tokenizer]
