"""Virtual tokens in the input embeddings: what prompt tuning and p-tuning have in common."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_lightning.adapters.prompts.base import PromptLearning
from peft_lightning.adapters.prompts.encoders import virtual_tokens
from peft_lightning.adapters.prompts.positions import PromptPositions
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class EmbeddingPrompt(PromptLearning):
    """Puts trainable virtual tokens directly before the text of each sequence.

    The virtual tokens have positions 0 to n - 1 and the text those after them. In a padded row the
    order is padding, virtual tokens, text, so that padding does not change the output.
    """

    def prepare_inputs(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Replace ``input_ids`` by ``inputs_embeds`` with the virtual tokens in place.

        Takes flat batches, and batches padded on either side. Labels, their weights, positions,
        mask and lengths are extended to match; the labels of virtual tokens are -100.
        """
        inputs = dict(batch)
        ids = inputs.pop("input_ids")
        embeds = model.get_input_embeddings()(ids)  # (B, T, dim)
        n = self.num_virtual_tokens
        if "cu_seq_lens" in batch:
            prompt_positions = PromptPositions.before_sequences(
                batch["cu_seq_lens"], ids.shape[1], n
            )
            ends = torch.arange(len(batch["cu_seq_lens"]), device=ids.device) * n
            inputs["cu_seq_lens"] = batch["cu_seq_lens"] + ends.to(batch["cu_seq_lens"])
            inputs["seq_lens"] = [length + n for length in batch["seq_lens"]]
        else:
            mask = batch.get("attention_mask")
            prompt_positions = PromptPositions.before_text(
                torch.ones_like(ids) if mask is None else mask, n
            )
        inputs["inputs_embeds"] = prompt_positions.insert_embeddings(embeds, virtual_tokens(model))
        for name, virtual in (("labels", -100), ("loss_weights", 0), ("attention_mask", 1)):
            if batch.get(name) is not None:
                inputs[name] = prompt_positions.insert_values(batch[name], virtual)
        if batch.get("position_ids") is not None:
            positions = torch.arange(n, device=ids.device)
            inputs["position_ids"] = prompt_positions.insert_values(
                batch["position_ids"] + n, positions
            )
        return inputs

    def prepare_shared(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(batch)
        ids = inputs.pop("input_ids")
        embeds = model.get_input_embeddings()(ids)  # (1, T, dim)
        n = self.num_virtual_tokens
        prompt = virtual_tokens(model).to(embeds.dtype)[None]
        inputs["inputs_embeds"] = torch.cat([prompt, embeds], dim=1)
        places = torch.arange(n, device=ids.device)[None]
        inputs["position_ids"] = torch.cat([places, batch["position_ids"] + n], dim=1)
        for name, virtual in (("labels", -100), ("loss_weights", 0)):
            if batch.get(name) is not None:
                inputs[name] = F.pad(batch[name], (n, 0), value=virtual)
        inputs["cu_seq_lens"] = F.pad(batch["cu_seq_lens"] + n, (1, 0))
        inputs["seq_lens"] = [n, *batch["seq_lens"]]
        inputs["prefix_len"] = n
        return inputs

    @abstractmethod
    def _initial(self, model: Any, embedding: Any) -> Tensor:
        """Return the initial virtual tokens, (n, dim)."""

    def _insert(self, model: Any, initialise: bool) -> None:
        embedding = model.get_input_embeddings()
        with torch.no_grad():
            if initialise:
                _require_known_to_hf(model, embedding)
            prompt = self._initial(model, embedding) if initialise else None
            if prompt is None:
                zero = torch.zeros(1, dtype=torch.long, device=embedding.weight.device)
                prompt = torch.zeros(self.num_virtual_tokens, embedding(zero).shape[-1])
        self._register(model, prompt)


def _require_known_to_hf(model: Any, embedding: nn.Module) -> None:
    """Raise UserError if HF PEFT would embed the text by another layer than the model does.

    It takes a layer named so, or the first whose weight has as many rows as the vocabulary.
    """
    config = getattr(model, "config", None)
    if config is None:
        return
    with suppress(AttributeError):
        if model.get_submodule("embeddings.word_embeddings") is embedding:
            return
    parts = [part for part in model.children() if isinstance(part, PreTrainedModel)]
    rows = getattr(config.get_text_config(), "vocab_size", None)
    backbone = parts[0] if parts else model
    found = next((p for p in backbone.parameters() if p.shape[:1] == (rows,)), None)
    if found is not embedding.weight:
        raise UserError(
            f"virtual tokens in {type(model).__name__} could be read by no other program: HF PEFT "
            f"does not find its embedding by the {rows} rows of the config's vocab_size, train a "
            "LoRA"
        )
