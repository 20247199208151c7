"""What we ask of a tokenizer: to load it, to know it again, and the ids around a text."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that is not the base model's own, from a hub id or a folder.

    Raises:
        ValueError: If there is none.
    """
    try:
        place = Path(name).expanduser()
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which is not run"
        raise ValueError(f"data.tokenizer {name} cannot be loaded: {reason}") from error


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that decides which ids a text becomes."""
    facts: dict[str, Any] = {"special": dict(tokenizer.special_tokens_map)}
    if tokenizer.is_fast:  # before its added tokens stand padding and truncation of the last call
        backend = tokenizer.backend_tokenizer.to_str()
        facts["backend"] = backend[backend.index('"added_tokens"') :]
    else:
        facts["class"] = type(tokenizer).__name__
        facts["vocabulary"] = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer puts before a text by itself: often BOS, often nothing."""
    bare = continuation_ids(tokenizer, "a", first=True)
    full = list(tokenizer("a")["input_ids"])
    at = (k for k in range(len(full)) if full[k : k + len(bare)] == bare)
    return full[: next(at, 0)]


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, first: bool) -> list[int]:
    """Tokenise ``text`` without special tokens, as the start of a text or as its continuation."""

    def encode(piece: str) -> list[int]:
        return list(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])

    if first:
        return encode(text)
    line = encode("\n")  # SentencePiece puts a space before what stands first: let that be a line
    ids = encode("\n" + text)
    return ids[len(line) :] if line and ids[: len(line)] == line else encode(text)


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the EOS token's id; raise ValueError if there is none."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no EOS token, and nothing else ends an answer: a model trained so"
            " would never stop; set tokenizer.eos_token"
        )
    return int(tokenizer.eos_token_id)
