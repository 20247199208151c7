"""The token ids that end an answer: those of the model, the tokenizer and the chat template."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_lightning.data import ChatTemplate, load_templates
from peft_lightning.data.special_tokens import SpecialTokens
from peft_lightning.data.tokenizer import continuation_ids

ANSWER = "This is the answer"  # no special token contains it


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
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}
    return {i for i in ids if i is not None} | _end_of_turn_ids(tokenizer)


def _end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the first and the last special token that the chat template prints after an answer.

    They are the same token in most templates. The first need not be registered as special, only
    as an added token.
    """
    templates = load_templates(tokenizer, None)
    if not templates:
        return set()
    chat = ChatTemplate(tokenizer, templates)
    turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": ANSWER}]
    text = chat.render(turns)
    closing = text.rpartition(ANSWER)[2].strip()
    tokens = continuation_ids(tokenizer, closing, first=True)
    found = set()
    if tokens and tokens[0] in tokenizer.added_tokens_decoder:
        found.add(tokens[0])
    if closing.endswith(SpecialTokens(tokenizer).special):
        found.add(tokens[-1])
    return found
