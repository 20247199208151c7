"""Prompt tuning: trained embeddings before the text (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from peft_lightning.adapters.prompts.base import HF_DEFAULTS
from peft_lightning.adapters.prompts.embedding_prompt import EmbeddingPrompt
from peft_lightning.adapters.prompts.init_text import text_ids, tokenizer_path
from peft_lightning.messages import UserError, check_choice

_INITS = ("RANDOM", "SAMPLE_VOCAB", "TEXT")


@dataclass(frozen=True)
class PromptTuning(EmbeddingPrompt):
    """Puts trainable virtual tokens directly before the text of each sequence.

    Args:
        num_virtual_tokens: Number of virtual tokens, at least 1.
        prompt_tuning_init: Initial values: ``RANDOM``, normal with the standard deviation of the
            base's input embeddings; ``SAMPLE_VOCAB``, embeddings of random tokens; ``TEXT``,
            embeddings of ``prompt_tuning_init_text``, cut or repeated to length. Upper or lower
            case.
        prompt_tuning_init_text: The text for ``TEXT``.
        tokenizer_name_or_path: The tokenizer for ``TEXT``; the base model's own if None.
        tokenizer_kwargs: Options of that tokenizer, for ``TEXT`` only.

    Raises:
        UserError: If a value is out of its range, or an option for ``TEXT`` is missing or is
            given without it.
    """

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    learning_rate: ClassVar[float] = 1e-2
    hf_defaults: ClassVar[dict[str, Any]] = {
        **HF_DEFAULTS,
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }

    prompt_tuning_init: str = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        init = str(self.prompt_tuning_init).upper()
        check_choice("prompt_tuning_init", init, _INITS)
        object.__setattr__(self, "prompt_tuning_init", init)
        if secrets := sorted({"token", "use_auth_token"} & (self.tokenizer_kwargs or {}).keys()):
            raise UserError(
                f"tokenizer_kwargs must hold no {secrets[0]}, which the adapter's files would show "
                "to everybody: give it as HF_TOKEN"
            )
        if init == "TEXT" and not self.prompt_tuning_init_text:
            raise UserError("prompt_tuning_init TEXT needs prompt_tuning_init_text, the text")
        for name in ("prompt_tuning_init_text", "tokenizer_kwargs"):
            if init != "TEXT" and getattr(self, name):
                raise UserError(
                    f"{name} is used only with prompt_tuning_init TEXT, and it is {init}"
                )

    def hf_config(self, model: Any) -> dict[str, Any]:
        config = super().hf_config(model)
        if self.prompt_tuning_init == "TEXT":  # HF PEFT does not read such a file without it
            config["tokenizer_name_or_path"] = self._tokenizer_path(model)
        return config

    def _initial(self, model: Any, embedding: Any) -> Tensor:
        n, device = self.num_virtual_tokens, embedding.weight.device
        vocabulary = embedding.weight.shape[0]
        if self.prompt_tuning_init == "TEXT":
            ids = torch.tensor(self._text_ids(model))
        elif self.prompt_tuning_init == "SAMPLE_VOCAB":
            ids = torch.randint(vocabulary, (n,))
        else:  # the deviation is that of rows spread evenly over the vocabulary
            ids = torch.linspace(0, vocabulary - 1, min(vocabulary, 8192)).long()
        # through the module, not its weight: some models scale what they look up
        found = embedding(ids.to(device)).float()
        if self.prompt_tuning_init != "RANDOM":
            return found
        # drawn on the CPU, so that a seed gives the same prompt on every device
        return torch.randn(n, found.shape[1]) * found.std().cpu()

    def _text_ids(self, model: Any) -> list[int]:
        options = dict(self.tokenizer_kwargs or {})
        if options.pop("trust_remote_code", False):
            raise UserError("tokenizer_kwargs cannot set trust_remote_code")
        path, text = self._tokenizer_path(model), str(self.prompt_tuning_init_text)
        return text_ids(text, self.num_virtual_tokens, path, "prompt_tuning_init TEXT", **options)

    def _tokenizer_path(self, model: Any) -> str:
        return tokenizer_path(model, self.tokenizer_name_or_path, "prompt_tuning_init TEXT")
