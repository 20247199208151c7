"""The token ids that end an answer: those of the model, the tokenizer and the chat template."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

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
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}
    return {i for i in ids if i is not None} | _end_of_turn_ids(tokenizer)


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
