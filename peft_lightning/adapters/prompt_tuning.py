"""Prompt tuning: trained embeddings before the text (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_lightning.adapters.base import PEFT_VERSION, Adapter, adapter_dtype
from peft_lightning.adapters.insertion import Insertion
from peft_lightning.adapters.names import nearest

_INITS = ("RANDOM", "SAMPLE_VOCAB", "TEXT")


@dataclass(frozen=True)
class PromptTuning(Adapter):
    """Puts trainable virtual tokens directly before the text of each sequence.

    They take positions 0 to n - 1 and the text those after; with left padding the order is
    padding, virtual tokens, text, so that padding changes nothing.

    Args:
        num_virtual_tokens: How many, at least 1.
        prompt_tuning_init: Where they start: ``RANDOM``, normal with the deviation of the base's
            input embeddings; ``SAMPLE_VOCAB``, embeddings of random tokens; ``TEXT``, those of
            ``prompt_tuning_init_text``, cut or repeated to length. Upper or lower case.
        prompt_tuning_init_text: The text for ``TEXT``.
        tokenizer_name_or_path: Its tokenizer; the base model's own if None.
        tokenizer_kwargs: Options of that tokenizer, for ``TEXT`` only.

    Raises:
        ValueError: If a value is out of its range, or ``TEXT`` and its text do not go together.
    """

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    learning_rate: ClassVar[float] = 1e-2
    hf_defaults: ClassVar[dict[str, Any]] = {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": None,
        "num_layers": None,
        "num_transformer_submodules": None,
        "num_virtual_tokens": None,
        "peft_type": "PROMPT_TUNING",
        "peft_version": PEFT_VERSION,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": "CAUSAL_LM",
        "token_dim": None,
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }
    # facts of the base, which the tensor's shape is checked against anyway
    hf_ignored: ClassVar[frozenset[str]] = Adapter.hf_ignored | {
        "num_attention_heads",
        "num_layers",
        "token_dim",
    }

    num_virtual_tokens: int = 16
    prompt_tuning_init: str = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        n = self.num_virtual_tokens
        self._require(
            type(n) is int and n >= 1, "num_virtual_tokens", "a whole number of at least 1"
        )
        init = str(self.prompt_tuning_init).upper()
        if init not in _INITS:
            raise ValueError(
                f"prompt_tuning_init must be {', '.join(_INITS[:-1])} or {_INITS[-1]}, got "
                f"{self.prompt_tuning_init!r}" + nearest([init], _INITS)
            )
        object.__setattr__(self, "prompt_tuning_init", init)
        if init == "TEXT" and not self.prompt_tuning_init_text:
            raise ValueError("prompt_tuning_init TEXT needs prompt_tuning_init_text, the text")
        for name in ("prompt_tuning_init_text", "tokenizer_kwargs"):
            if init != "TEXT" and getattr(self, name):
                raise ValueError(
                    f"{name} is used only with prompt_tuning_init TEXT, and it is {init}"
                )

    def prepare_inputs(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Replace ``input_ids`` by ``inputs_embeds`` with the virtual tokens in place.

        Takes flat batches, and padded ones of either side; everything that runs along the
        tokens (labels, positions, mask, lengths) is widened to match. Labels of virtual tokens
        are -100.
        """
        inputs = dict(batch)
        ids = inputs.pop("input_ids")
        embeds = model.get_input_embeddings()(ids)  # (B, T, dim)
        n = self.num_virtual_tokens
        if "cu_seq_lens" in batch:
            insertion = Insertion.before_sequences(batch["cu_seq_lens"], ids.shape[1], n)
            ends = torch.arange(len(batch["cu_seq_lens"]), device=ids.device) * n
            inputs["cu_seq_lens"] = batch["cu_seq_lens"] + ends.to(batch["cu_seq_lens"])
            inputs["seq_lens"] = [length + n for length in batch["seq_lens"]]
        else:
            mask = batch.get("attention_mask")
            insertion = Insertion.before_text(torch.ones_like(ids) if mask is None else mask, n)
        inputs["inputs_embeds"] = insertion.rows(embeds, model.prompt_embeddings)
        for name, virtual in (("labels", -100), ("attention_mask", 1)):
            if batch.get(name) is not None:
                inputs[name] = insertion.values(batch[name], virtual)
        if batch.get("position_ids") is not None:
            positions = torch.arange(n, device=ids.device)
            inputs["position_ids"] = insertion.values(batch["position_ids"] + n, positions)
        return inputs

    def tensors(self, model: Any) -> dict[str, Tensor]:
        return {"prompt_embeddings": model.prompt_embeddings}

    def hf_config(self, model: Any) -> dict[str, Any]:
        base = model.config.get_text_config()
        path = self.tokenizer_name_or_path
        if self.prompt_tuning_init == "TEXT":
            path = self._tokenizer_path(model)  # HF PEFT does not read such a file without it
        options = {
            **self.options(),
            "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
            "num_attention_heads": getattr(base, "num_attention_heads", None),
            "num_layers": getattr(base, "num_hidden_layers", None),
            "num_transformer_submodules": 1,
            "token_dim": model.prompt_embeddings.shape[1],
            "tokenizer_name_or_path": path,
        }
        return {**self.hf_defaults, **options}

    @classmethod
    def from_hf_config(cls, config: Any) -> PromptTuning:
        plain = {**config}
        if plain.get("num_transformer_submodules") in (None, 1):
            plain.pop("num_transformer_submodules", None)
        return super().from_hf_config(plain)

    def _insert(self, model: Any, initialise: bool) -> None:
        embedding = model.get_input_embeddings()
        with torch.no_grad():
            prompt = self._initial(model, embedding) if initialise else None
            if prompt is None:
                zero = torch.zeros(1, dtype=torch.long, device=embedding.weight.device)
                prompt = torch.zeros(self.num_virtual_tokens, embedding(zero).shape[-1])
        weight = embedding.weight
        model.requires_grad_(False)
        prompt = prompt.to(weight.device, adapter_dtype(weight.dtype), copy=True)
        model.register_parameter("prompt_embeddings", nn.Parameter(prompt))

    def _remove(self, model: nn.Module) -> None:
        del model.prompt_embeddings

    def _initial(self, model: Any, embedding: Any) -> Tensor:
        """Return the initial virtual tokens, (n, dim)."""
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
        from transformers import AutoTokenizer  # only here: the rest needs torch alone

        options = dict(self.tokenizer_kwargs or {})
        if options.pop("trust_remote_code", False):
            raise ValueError("tokenizer_kwargs cannot set trust_remote_code")
        tokenizer = AutoTokenizer.from_pretrained(self._tokenizer_path(model), **options)
        ids = tokenizer(self.prompt_tuning_init_text)["input_ids"]
        if not ids:
            raise ValueError(
                f"prompt_tuning_init_text {self.prompt_tuning_init_text!r} has no tokens"
            )
        repeats = -(-self.num_virtual_tokens // len(ids))
        return (ids * repeats)[: self.num_virtual_tokens]

    def _tokenizer_path(self, model: Any) -> str:
        path = self.tokenizer_name_or_path or getattr(model.config, "name_or_path", None)
        if not path:
            raise ValueError(
                "prompt_tuning_init TEXT needs tokenizer_name_or_path: the base model was not "
                "loaded from a place that has a tokenizer"
            )
        return path
