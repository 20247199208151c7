"""Tokenizers: loading, fingerprints, and the special tokens around a text."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_lightning.data.tokens.template_sources import set_template
from peft_lightning.files import sha256_of_json
from peft_lightning.messages import UserError


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that is not the base model's, from a hub id or a folder.

    Raises:
        UserError: If it cannot be loaded.
    """
    from peft_lightning.base_model import load_tokenizer as load  # only here: it needs torch

    try:
        return load(name)
    except UserError as error:
        if "trust_remote_code" in str(error):
            error = UserError(f"{name} brings code of its own, which is not run")
        raise UserError(f"data.tokenizer: {error}") from error


def tokenizer_for(
    module: Any, tokenizer: str | PreTrainedTokenizerBase | None, chat_template: str | None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the data: a given one, or that of the base model.

    Args:
        module: The LightningModule, or None. Its ``load_tokenizer`` provides the base model's
            tokenizer; its ``extend_tokenizer`` adds the adapter's new tokens to a given one.
        tokenizer: A hub id, a folder or a tokenizer; None for the base model's.
        chat_template: As for ``load_templates``; also set on a tokenizer that is loaded, so that
            the module generates with it.

    Raises:
        UserError: If there is no tokenizer, or it cannot be loaded.
    """
    if tokenizer is not None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = load_tokenizer(tokenizer)
            set_template(tokenizer, chat_template)
        if hasattr(module, "extend_tokenizer"):
            module.extend_tokenizer(tokenizer)
        return tokenizer
    if not hasattr(module, "load_tokenizer"):
        raise UserError(
            "no tokenizer: give data.tokenizer a hub id or a folder (without, it is that of"
            " the base model of the module that is trained)"
        )
    base_tokenizer: Any = module.load_tokenizer()
    set_template(base_tokenizer, chat_template)
    return base_tokenizer


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return a token id for padding; masks hide it, so EOS or 0 may replace a missing one."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(i for i in ids if i is not None)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that determines the token ids of a text."""
    facts: dict[str, Any] = {"special": dict(tokenizer.special_tokens_map)}
    if tokenizer.is_fast:  # without what precedes: padding and truncation of the last call
        backend = tokenizer.backend_tokenizer.to_str()
        facts["backend"] = backend[backend.index('"added_tokens"') :]
    else:
        facts["class"] = type(tokenizer).__name__
        facts["vocabulary"] = sorted(tokenizer.get_vocab().items())
    return sha256_of_json(facts)


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special token ids that the tokenizer puts before a text: BOS, or none."""
    bare = continuation_ids(tokenizer, "a", first=True)
    full = list(tokenizer("a")["input_ids"])
    at = (k for k in range(len(full)) if full[k : k + len(bare)] == bare)
    return full[: next(at, 0)]


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, first: bool) -> list[int]:
    """Tokenize ``text`` without special tokens, as the start of a text or as its continuation."""

    def encode(piece: str) -> list[int]:
        return list(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])

    if first:
        return encode(text)
    line = encode("\n")  # SentencePiece adds a space before the first character: let it be "\n"
    ids = encode("\n" + text)
    return ids[len(line) :] if line and ids[: len(line)] == line else encode(text)


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the EOS token; raise UserError if there is none."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no EOS token, and no other token ends an answer: the trained model"
            " would never stop; set tokenizer.eos_token"
        )
    return int(tokenizer.eos_token_id)
