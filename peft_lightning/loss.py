"""CausalLMLoss: the loss of the labelled tokens of a batch, or their logits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from peft_lightning.adapters import Adapter, attached_adapter
from peft_lightning.base_model.quantization import rounds_inputs
from peft_lightning.forward_check import ForwardCheck
from peft_lightning.hidden_cache.cache import HiddenStateCache
from peft_lightning.kernels.attention import FLAT_ATTENTION, forward_inputs
from peft_lightning.kernels.pad_to_multiple import compiles_products, in_whole_blocks
from peft_lightning.kernels.shared_prefix import share_prefix
from peft_lightning.linear_cross_entropy import (
    head_options,
    labelled_positions,
    linear_cross_entropy,
    logits_cross_entropy,
)
from peft_lightning.loss_checks import (
    flat_batch_error,
    has_plain_head,
    shared_prefix_error,
    takes,
)
from peft_lightning.messages import UserError
from peft_lightning.router_loss import asks_for_it, router_loss

Batch = dict[str, Any]

OF_SOURCES = ("source", "sources")  # what a batch says of the origin of its rows


class CausalLMLoss:
    """Computes the LM head at the labelled positions only, in the fastest way that is exact.

    Which ways are exact for the model is checked once, when each is first needed.

    Args:
        model: A causal LM of transformers. While no adapter is attached to it, as within
            ``disable_adapter``, the loss is that of the base.
        adapter: Prepares its inputs; None for a model that never has one.
        shares_prefix: Whether tokens that all sequences of a flat batch begin with may be computed
            once for all of them. That is done on a CPU, without dropout, where it is exact.
        router_aux_loss: Factor on the load-balancing loss of experts' routers, which is added where
            gradients are computed; None for what the model's own loss has.
    """

    def __init__(
        self,
        model: Any,
        adapter: Adapter | None = None,
        shares_prefix: bool = False,
        router_aux_loss: float | None = None,
    ) -> None:
        self.model, self.adapter = model, adapter
        self.frozen: HiddenStateCache | None = None  # hidden states below the adapter, if cached
        self._dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        self.routers = router_loss(model, router_aux_loss)
        whole = self.routers is None  # whose shares are of all tokens of all rows
        self._shares_prefix = shares_prefix and whole and not rounds_inputs(model)
        self._prefix_verified = False
        self._check = ForwardCheck(model, self._raw_logits, self._own_loss)
        self._shares: bool | None = None
        self._plain_head: bool | None = None

    def nll(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed loss in nats, the labelled tokens, and how many were likeliest.

        With ``loss_weights`` in the batch, (B, T), each is a weighted sum: of the tokens' losses,
        of 1, in float64, and of 1 for each token that was likeliest.
        """
        trains = torch.is_grad_enabled()
        parts = [self._nll(part, trains) for part in self._arranged(batch)]
        nll, tokens, correct = (torch.stack(sums).sum(0) for sums in zip(*parts, strict=True))
        return nll, tokens, correct

    def _nll(self, batch: Batch, trains: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ``nll`` does; what training adds to the loss if ``trains``."""
        inputs, positions, targets, weights = self._inputs(batch)
        routers = self.routers if trains else None
        recording = nullcontext() if routers is None else routers.recording()
        if self._has_plain_head():
            with self._skipping(batch), recording:
                hidden = self.model.get_decoder()(**inputs, use_cache=False).last_hidden_state
            head = self.model.get_output_embeddings()
            nll, correct = linear_cross_entropy(
                hidden.flatten(0, 1)[positions],
                head.weight,
                targets,
                weights=weights,
                bias=head.bias,
                rows=getattr(head, "rows", None),
                **head_options(self.model.config.to_dict()),
            )
        else:
            with self._skipping(batch), recording:
                logits = self._logits(inputs, positions)
            nll, correct = logits_cross_entropy(logits, targets, weights)
        count = torch.tensor(len(targets), device=nll.device)
        if weights is not None:
            count = weights.sum(dtype=torch.float64)
        if routers is not None:
            mask = None if "position_ids" in inputs else inputs.get("attention_mask")
            nll = nll + (count * routers.value(mask)).to(nll)  # of the mean: one per token
        return nll, count, correct

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits that predict labelled tokens, (N, V), and those tokens, (N,).

        The logits are float32, or float64 if the model computes in it.
        """
        found = []
        for part in self._arranged(batch):
            inputs, positions, targets, _ = self._inputs(part)
            with self._skipping(part):
                logits = self._logits(inputs, positions)
            found.append((logits.to(torch.promote_types(logits.dtype, torch.float32)), targets))
        logits, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        return logits, targets

    def _raw_logits(self, batch: Batch) -> Tensor:
        """Return the logits before the labelled tokens of a batch as it is, unchecked."""
        inputs, positions, *_ = self._inputs(batch)
        return self._logits(inputs, positions)

    def weights(self, batch: Batch) -> Tensor:
        """Return the weights in the loss of the tokens of ``logits``, (N,), in their order."""
        with torch.no_grad():
            _, _, targets, weights = self._inputs(batch)
        return torch.ones(len(targets), device=targets.device) if weights is None else weights

    def sequences(self, batch: Batch) -> Tensor:
        """Return of each token of ``logits`` the number of its sequence in the batch, (N,)."""
        ids = batch["input_ids"]
        if (lens := batch.get("seq_lens")) is None:
            numbers = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
        else:
            lens = torch.tensor(lens, device=ids.device)
            numbers = torch.arange(len(lens), device=ids.device).repeat_interleave(lens)[None]
        return self.weights({**batch, "loss_weights": numbers})

    def model_inputs(self, batch: Batch) -> Batch:
        """Return the keyword arguments of the model's forward for a batch without labels.

        The batch is flat only where ``takes_flat``.
        """
        (part,) = self._arranged(batch)
        return forward_inputs(self.model, dict(self._prepared(part)))

    def takes_flat(self, batch: Batch) -> bool:
        """Whether the model is given a flat batch as it is."""
        return all("seq_lens" in part for part in self._arranged(batch))

    def path(self) -> str:
        """Return how the loss is computed, for the table at a run's start."""
        plain = self._has_plain_head()
        return "labelled tokens, in chunks" if plain else "labelled tokens, the model's own logits"

    def _arranged(self, batch: Batch) -> list[Batch]:
        """Return the parts of a batch that the model is to be given, as it computes them right."""
        return self._check.arranged(batch, None if self._is_disabled() else self.adapter)

    def _skipping(self, batch: Batch) -> AbstractContextManager[None]:
        return nullcontext() if self.frozen is None else self.frozen.skipping(batch)

    def _inputs(self, batch: Batch) -> tuple[Batch, Tensor, Tensor, Tensor | None]:
        """Return the model's inputs, the positions that predict labels, their targets and weights.

        The weights are None if each is 1.
        """
        batch = {name: value for name, value in batch.items() if name not in OF_SOURCES}
        if "cu_seq_lens" in batch and self._may_share_prefix(batch):
            batch = share_prefix(batch)
        if "labels" not in batch:
            raise UserError(
                f"the batch has no labels, only {', '.join(map(str, batch))}: the loss needs the "
                "token ids, (B, T), with -100 for those that are not in it"
            )
        inputs = dict(self._prepared(batch))
        positions, targets, weights = labelled_positions(
            inputs.pop("labels"),
            inputs.get("cu_seq_lens"),
            inputs.get("prefix_len", 0),
            inputs.pop("loss_weights", None),
        )
        embedding = self.model.get_input_embeddings()
        if "cu_seq_lens" in inputs and compiles_products(embedding) and self.routers is None:
            inputs = in_whole_blocks(inputs)
        return forward_inputs(self.model, inputs), positions, targets, weights

    def _prepared(self, batch: Batch) -> Batch:
        """Let the adapter shape a batch: virtual tokens only once where that is exact."""
        if self._is_disabled():
            return batch
        if self.adapter is None:
            return batch
        if "cu_seq_lens" in batch:
            shared = self.adapter.prepare_shared(self.model, batch)
            if shared is not None and self._can_share():
                return shared
        return self.adapter.prepare_inputs(self.model, batch)

    def _logits(self, inputs: Batch, positions: Tensor) -> Tensor:
        """Return the model's own logits at ``positions`` of the flattened batch."""
        options: dict[str, Any] = {}
        if asks_for_it(self.model):  # it would be computed here, from a padded mask
            options["output_router_logits"] = False
        given = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
        rows, columns = positions // given.shape[1], positions % given.shape[1]
        if takes(self.model, "logits_to_keep"):  # those of all rows, in the columns that one needs
            kept, columns = columns.unique(return_inverse=True)
            options["logits_to_keep"] = kept
        logits: Tensor = self.model(**inputs, use_cache=False, **options).logits[rows, columns]
        return logits

    def _own_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the model's own mean loss of a padded batch, and ours, in nats per token."""
        inputs = dict(self._prepared(batch))
        own = self.model(**inputs, use_cache=False).loss
        nll, tokens, _ = self._nll(batch, trains=True)
        return own, nll / tokens

    # ---- which ways are exact, found out once each ---------------------------------------------

    def _has_plain_head(self) -> bool:
        """Whether the loss may skip the model's own head."""
        if self._plain_head is None:
            found = has_plain_head(self.model)
            if self._is_disabled():  # of the base, and the adapter may have a head
                return found
            self._plain_head = found
        return self._plain_head

    def _is_disabled(self) -> bool:
        return self.adapter is not None and attached_adapter(self.model) is None

    def _can_share(self) -> bool:
        """Whether virtual tokens may be computed once for all sequences of a batch.

        Not where layers pass on more than the keys and values that our attention shows to all.
        """
        if self._shares is None:
            assert self.adapter is not None
            if self.routers is not None:
                return False
            prepare = self.adapter.prepare_shared
            self._shares = self._has_flat_attention() and not flat_batch_error(
                self.model, self.adapter, prepare
            )
        return self._shares

    def _may_share_prefix(self, batch: Batch) -> bool:
        """Whether a common prefix of a batch may be computed once."""
        if not self._shares_prefix or batch["input_ids"].device.type != "cpu":
            return False
        if self.frozen is not None or self.model.training:
            return False
        if any(dropout.training for dropout in self._dropouts):  # those of the adapter
            return False
        if not self._prefix_verified:
            self._prefix_verified = True
            self._shares_prefix = self._has_flat_attention() and not shared_prefix_error(
                self.model, self._has_plain_head()
            )
        return self._shares_prefix

    def _has_flat_attention(self) -> bool:
        return bool(self.model.config._attn_implementation == FLAT_ATTENTION)
