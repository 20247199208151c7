"""``tokenizer_config.json`` in the form of transformers 5 and of 4.x alike: see ``portable``."""

from __future__ import annotations

from typing import Any

_BACKENDS = {"TokenizersBackend", "PreTrainedTokenizerFast"}
# classes that in 4.x add BOS and EOS as these two keys say, whatever tokenizer.json has
_ENDS = ("add_bos_token", "add_eos_token")
_WITH_ENDS = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"}
_WITH_ENDS |= {"GPTNeoXTokenizer"}

Config = dict[str, Any]


def portable_tokenizer_config(config: Config, steps: Config | None = None) -> Config:
    """Return the content of ``tokenizer_config.json`` under the names that 4.x knows.

    Args:
        config: The content.
        steps: That of the tokenizer.json beside it: whether it adds BOS and EOS, some classes of
            4.x read from the config alone, to which version 5 no longer writes it.
    """
    found = dict(config)
    kind = str(found.get("tokenizer_class")).removesuffix("Fast")
    if kind in _WITH_ENDS and steps and not found.keys() & set(_ENDS):
        ends = [_token(found.get(name)) for name in ("bos_token", "eos_token")]
        found |= _added_ends(steps.get("post_processor"), *ends) or {}
    if found.get("tokenizer_class") in _BACKENDS:
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
        found.pop("backend", None)
    if isinstance(found.get("extra_special_tokens"), list):  # 4.x takes a dict under this name
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    return found


def _token(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _added_ends(step: Config | None, bos: Any, eos: Any) -> Config | None:
    """Return whether a post-processor adds BOS and EOS; None if it adds other tokens."""
    steps = [step] if step is not None else []
    if step is not None and step.get("type") == "Sequence":
        steps = step["processors"]
    added: list[list[Any]] = [[], []]
    for part in steps:
        if part.get("type") == "TemplateProcessing":
            at = 0
            for piece in part["single"]:
                at += "Sequence" in piece
                if "SpecialToken" in piece:
                    added[at].append(piece["SpecialToken"]["id"])
        elif part.get("type") != "ByteLevel":
            return None
    if added[0] not in ([], [bos]) or added[1] not in ([], [eos]):
        return None
    return {name: bool(tokens) for name, tokens in zip(_ENDS, added, strict=True)}
