"""What a model says of the labelled tokens of a batch: their loss, or their logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_lightning.adapters import Adapter
from peft_lightning.adapters.lora.modules_to_save import ModulesToSaveWrapper
from peft_lightning.adapters.lora.trainable_tokens import TrainableTokensLayer
from peft_lightning.base_model.quantization import rounds_inputs
from peft_lightning.hidden_cache.cache import HiddenStateCache
from peft_lightning.kernels.attention import FLAT_ATTENTION, flat_inputs, isolation_error
from peft_lightning.kernels.native import stored
from peft_lightning.kernels.pad_to_multiple import compiles_products, in_whole_blocks
from peft_lightning.kernels.shared_prefix import prefix_error, share_prefix
from peft_lightning.linear_cross_entropy import (
    head_options,
    labelled_positions,
    linear_cross_entropy,
    logits_cross_entropy,
)

Batch = dict[str, Any]


class CausalLMLoss:
    """Meets the LM head at the labelled positions only, by the shortest way that is exact.

    Args:
        model: A causal LM of transformers with ``adapter`` attached.
        adapter: Prepares its inputs.
        shares_prefix: Whether tokens that all sequences of a flat batch begin with may be computed
            once for all of them. That is done on a CPU, without dropout, where it is exact.
    """

    def __init__(self, model: Any, adapter: Adapter, shares_prefix: bool = False) -> None:
        self.model, self.adapter = model, adapter
        self._shares_prefix = shares_prefix and not rounds_inputs(model)
        self._prefix_verified = False
        self._dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        self.frozen: HiddenStateCache | None = None  # what lets the rows of a run skip lower layers
        self._flat_verified = False
        self._shares: bool | None = None
        self._plain_head: bool | None = None

    def nll(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed loss in nats, the labelled tokens, and how many were likeliest."""
        inputs, positions, targets = self._inputs(batch)
        if self._has_plain_head():
            with self._skipping(batch):
                hidden = self.model.get_decoder()(**inputs, use_cache=False).last_hidden_state
            head = self.model.get_output_embeddings()
            nll, correct = linear_cross_entropy(
                hidden.flatten(0, 1)[positions],
                head.weight,
                targets,
                bias=head.bias,
                rows=getattr(head, "rows", None),
                **head_options(self.model.config.to_dict()),
            )
        else:
            with self._skipping(batch):
                logits = self._logits(inputs, positions)
            nll, correct = logits_cross_entropy(logits, targets)
        return nll, torch.tensor(len(targets), device=nll.device), correct

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits that predict labelled tokens, (N, V), and those tokens, (N,)."""
        inputs, positions, targets = self._inputs(batch)
        with self._skipping(batch):
            return self._logits(inputs, positions), targets

    def model_inputs(self, batch: Batch) -> Batch:
        """Return what the model's forward takes for a batch without labels."""
        return self._model_inputs(dict(self._prepared(batch)))

    def _skipping(self, batch: Batch) -> AbstractContextManager[None]:
        return nullcontext() if self.frozen is None else self.frozen.skipping(batch)

    def _inputs(self, batch: Batch) -> tuple[Batch, Tensor, Tensor]:
        """Return the model's inputs, the places whose outputs are labelled, and their targets."""
        if "cu_seq_lens" in batch and self._may_share_prefix(batch):
            batch = share_prefix(batch)
        inputs = dict(self._prepared(batch))
        positions, targets = labelled_positions(
            inputs.pop("labels"), inputs.get("cu_seq_lens"), inputs.get("prefix_len", 0)
        )
        embedding = self.model.get_input_embeddings()
        if "cu_seq_lens" in inputs and compiles_products(embedding):
            inputs = in_whole_blocks(inputs)
        return self._model_inputs(inputs), positions, targets

    def _may_share_prefix(self, batch: Batch) -> bool:
        """Whether a common prefix may be computed once: where that is exact; found out once."""
        if not self._shares_prefix or batch["input_ids"].device.type != "cpu":
            return False
        if self.frozen is not None or self.model.training:
            return False
        if any(dropout.training for dropout in self._dropouts):  # those of the adapter
            return False
        if not self._prefix_verified:
            self._prefix_verified = True
            ours = self.model.config._attn_implementation == FLAT_ATTENTION
            self._shares_prefix = ours and not self._prefix_error()
        return self._shares_prefix

    def _prefix_error(self) -> str | None:
        def forward(batch: Batch) -> Tensor:
            inputs = self._model_inputs(batch)
            if self._has_plain_head():
                hidden: Tensor = self.model.get_decoder()(**inputs, use_cache=False)[0]
                return hidden
            return self.model(**inputs, use_cache=False).logits

        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        try:
            with _eval_mode(self.model):
                return prefix_error(forward, vocabulary, self.model.device)
        except Exception as error:  # whatever a model makes of inputs it does not know
            return f"its forward fails on them: {error}"

    def _prepared(self, batch: Batch) -> Batch:
        """Let the adapter shape a batch: virtual tokens only once where that is exact."""
        if "cu_seq_lens" in batch:
            if not self._flat_verified:
                self._verify_flat()
            shared = self.adapter.prepare_shared(self.model, batch)
            if shared is not None and self._can_share():
                return shared
        return self.adapter.prepare_inputs(self.model, batch)

    def _model_inputs(self, inputs: Batch) -> Batch:
        """Turn a batch into what the model's forward takes."""
        if "cu_seq_lens" in inputs:
            inputs = {**inputs, **flat_inputs(inputs)}
            del inputs["cu_seq_lens"]
            if self.model.config._attn_implementation != FLAT_ATTENTION:
                for name in ("seq_lens", "attention_mask"):  # transformers' own packed masks
                    del inputs[name]
        return inputs

    def _logits(self, inputs: Batch, positions: Tensor) -> Tensor:
        """Return the model's own logits at ``positions`` of the flattened batch."""
        flat = "position_ids" in inputs
        keep = positions if flat else 0  # 0: all, as the rows of a padded batch keep different ones
        logits = self.model(**inputs, use_cache=False, logits_to_keep=keep).logits.flatten(0, 1)
        return logits if flat else logits[positions]

    def path(self) -> str:
        """Return how the loss is computed, for the table at a run's start."""
        plain = self._has_plain_head()
        return "labelled tokens, in chunks" if plain else "labelled tokens, the model's own logits"

    def _has_plain_head(self) -> bool:
        """Whether the loss may skip the model's own head; found out once."""
        if self._plain_head is None:
            with _eval_mode(self.model):
                self._plain_head = self._check_plain_head()
        return self._plain_head

    def _check_plain_head(self) -> bool:
        """Whether the logits are just the output embedding's, soft-capped and scaled at most."""
        head = self.model.get_output_embeddings()
        decoder = getattr(self.model, "get_decoder", lambda: None)()
        layer = (
            head.base_layer
            if isinstance(head, ModulesToSaveWrapper | TrainableTokensLayer)
            else head
        )
        if type(layer) is not nn.Linear or decoder is None or decoder is self.model:
            return False
        ids = torch.arange(4, device=layer.weight.device)[None] % layer.out_features
        options = head_options(self.model.config.to_dict())
        with torch.no_grad():
            hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
            logits = self.model(input_ids=ids, use_cache=False).logits
            ours = F.pad(stored.linear(hidden, head.weight), (0, getattr(head, "extra", 0)))
            if (rows := getattr(head, "rows", None)) is not None:
                ours[..., rows[0]] = F.linear(hidden, rows[1].to(hidden.dtype))
            if head.bias is not None:
                ours[..., : len(head.bias)] += head.bias
            ours *= options.get("scale", 1.0)
            if cap := options.get("softcap"):
                ours = cap * torch.tanh(ours / cap)
        tolerance = 4 * max(torch.finfo(t.dtype).eps for t in (ours, logits))
        return (ours - logits).abs().max().item() <= tolerance * logits.abs().max().item()

    def _verify_flat(self) -> None:
        """Refuse a model whose flat batches mix their sequences."""
        self._flat_verified = True
        try:
            problem = self._isolation_error(self.adapter.prepare_inputs)
        except Exception as error:  # whatever a model makes of inputs it does not know
            problem = f"its forward fails on them: {error}"
        if problem:
            raise ValueError(
                f"{type(self.model).__name__} cannot train on flat batches: {problem}. "
                "Set data.layout: padded"
            )

    def _can_share(self) -> bool:
        """Whether virtual tokens may stand once for all sequences of a batch; found out once.

        Not where layers hand on more than the keys and values that our attention shows to all.
        """
        if self._shares is None:
            ours = self.model.config._attn_implementation == FLAT_ATTENTION
            self._shares = ours and not self._isolation_error(self.adapter.prepare_shared)
        return self._shares

    def _isolation_error(self, prepare: Callable[[Any, Batch], Any]) -> str | None:
        """Compare flat batches shaped by ``prepare`` with a sequence alone; see ``attention``."""

        def forward(batch: Batch) -> Tensor:
            alone = len(batch["seq_lens"]) == 1
            inputs = (self.adapter.prepare_inputs if alone else prepare)(self.model, batch)
            return self.model(**self._model_inputs(inputs), use_cache=False).logits

        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        with _eval_mode(self.model):
            return isolation_error(
                forward, vocabulary, self.model.device, coarse=rounds_inputs(self.model)
            )


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch all dropout off for a check, which then draws no random number, and back on."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
