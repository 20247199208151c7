"""The token ids that end an answer: those of the model, the tokenizer and the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_lightning.base_model.generation_config import mended
from peft_lightning.data import ChatTemplate, load_templates
from peft_lightning.data.tokens.answer_ends import ANSWER, QUESTION, AnswerEnds
from peft_lightning.data.tokens.special_tokens import SpecialTokens
from peft_lightning.data.tokens.tokenizer import continuation_ids


def stop_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that end an answer of ``model``.

    These are the EOS ids of the model's generation config, the EOS id of the tokenizer, and the
    tokens with which the tokenizer's chat template closes an assistant turn.

    Args:
        model: A causal LM of transformers.
        tokenizer: Its tokenizer, with the chat template that the prompts are rendered with.

    Raises:
        UserError: If the chat template refuses a user message and an answer.
    """
    return set(_in_order(getattr(model.generation_config, "eos_token_id", None), tokenizer))


def with_end_tokens(
    values: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Any], list[str]]:
    """Return a generation config that names every token that ends an answer, and is valid.

    Other programs stop at those that it names. The first of its own stays the first, as
    transformers pads with that one where there is no other.

    Args:
        values: The content of the model's generation_config.json.
        tokenizer: As of ``stop_token_ids``.

    Returns:
        The content, and what was left out of it as invalid, each with the reason.

    Raises:
        UserError: As of ``stop_token_ids``.
    """
    kept, left_out = mended(values, strict=True)
    kept.pop("_from_model_config", None)
    ids = _in_order(kept.get("eos_token_id"), tokenizer)
    return {**kept, **({"eos_token_id": ids[0] if len(ids) == 1 else ids} if ids else {})}, left_out


def _in_order(configured: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an answer, each once: configured ones, EOS, those of the template."""
    ids = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
    found = dict.fromkeys([i for i in ids if i is not None])
    return list(found | dict.fromkeys(sorted(_end_of_turn_ids(tokenizer))))


def _end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that the chat template prints at the end of an answer or a tool call.

    What directly follows an answer need not be registered as special, only as an added token.
    """
    templates = load_templates(tokenizer, None)
    if not templates:
        return set()
    chat = ChatTemplate(tokenizer, templates)
    ends = AnswerEnds.of_template(chat, SpecialTokens(tokenizer))
    added = tokenizer.added_tokens_decoder
    found = {tokenizer.get_vocab()[token] for token in ends.tokens}
    text = chat.render([QUESTION, ANSWER])
    closing = text.rpartition(ANSWER["content"])[2].strip()
    tokens = continuation_ids(tokenizer, closing, first=True)
    return found.union(tokens[:1]) if tokens and tokens[0] in added else found
