"""Token-exact next-token loss: a sum in nats and a count, on labelled positions only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_lightning.kernels.native.buffers import empty
from peft_lightning.kernels.native.stored import multiply, multiply_back
from peft_lightning.messages import UserError

IGNORED = -100


def labelled_positions(
    labels: Tensor,
    cu_seq_lens: Tensor | None = None,
    prefix_len: int = 0,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find the positions that predict a labelled token, and the tokens they predict.

    Position ``t`` predicts token ``t + 1`` of the same sequence. A sequence's first token is
    predicted by nothing, so a label on it does not count.

    Args:
        labels: (B, T) int64, aligned with the inputs, not shifted; -100 marks tokens left out.
        cu_seq_lens: (S + 1,) cumulative lengths of the sequences of a flat batch, where B is 1;
            None if every row is one sequence.
        prefix_len: Length of the first sequence if it stands before each of the others, whose first
            tokens its last position then predicts; else 0.
        weights: (B, T), the weight in the loss of each token, aligned with ``labels``; None for 1.

    Returns:
        Indices into the flattened (B * T) positions, (N,) int64, their targets, (N,) int64, and the
        targets' weights, (N,), or None; in the order in which the targets stand in ``labels``.

    Raises:
        UserError: If ``weights`` is not aligned with ``labels``.
    """
    if weights is not None and weights.shape != labels.shape:
        raise UserError(
            f"loss_weights has shape {tuple(weights.shape)} where labels has {tuple(labels.shape)}:"
            " an adapter's prepare_inputs that moves labels has to move loss_weights alike"
        )
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    if cu_seq_lens is not None:
        targets[0, cu_seq_lens[1:].long() - 1] = IGNORED
    targets = targets.flatten()
    positions = (targets != IGNORED).nonzero().squeeze(1)
    targets = targets[positions]
    if weights is not None:
        of_targets = F.pad(weights[:, 1:], (0, 1)).flatten()[positions]
    if prefix_len and cu_seq_lens is not None:
        starts = cu_seq_lens[1:-1].long()
        starts = starts[labels[0, starts] != IGNORED]
        order = torch.cat([starts, positions + 1]).argsort()
        positions = torch.cat([torch.full_like(starts, prefix_len - 1), positions])[order]
        targets = torch.cat([labels[0, starts], targets])[order]
        if weights is not None:
            of_targets = torch.cat([weights[0, starts], of_targets])[order]
    return positions, targets, None if weights is None else of_targets


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    rows: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int = 128,
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of ``softcap(scale * (hidden @ weight.T + bias))`` without keeping it.

    Logits exist for ``chunk`` positions at a time. The gradient with respect to ``hidden`` is
    computed during the forward pass, from the same logits; so are those of ``weight``, ``rows``
    and ``bias`` where they are trained.

    Args:
        hidden: (N, d), the states at the labelled positions.
        weight: (V, d), the output embedding.
        targets: (N,) int64.
        weights: (N,), factors on the positions' losses, finite and at least 0; None for 1.
        bias: (V,), added to the logits before scaling.
        rows: Ids, (n,), and values, (n, d), that stand for those of ``weight``; ids from V on add
            to the vocabulary.
        scale: Factor on the logits (Granite, Cohere).
        softcap: ``softcap * tanh(logits / softcap)`` (Gemma 2), None for none.
        chunk: Positions whose logits exist at once.

    Returns:
        The loss in nats, () float32 (float64 for float64 states), and the number of positions
        whose most likely token is the target, () int64, with ``weights`` the sum of their weights,
        () float64. N = 0 gives zeros, with a graph.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        hidden = hidden.to(torch.get_autocast_dtype(device))
    ids, values = (None, None) if rows is None else rows
    loss, correct = _LinearCrossEntropy.apply(
        hidden, weight, bias, values, ids, targets, weights, scale, softcap, chunk
    )
    return loss, correct


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor | None,
        ids: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        scale: float,
        softcap: float | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = hidden.new_zeros((), dtype=wide)
        correct = targets.new_zeros((), dtype=None if weights is None else torch.float64)
        weights = None if weights is None else weights.to(wide)
        # a wider one is rounded once; of a narrower one there is no whole copy
        head = weight.to(hidden.dtype) if weight.itemsize > hidden.itemsize else weight
        needs_hidden, needs_weight, needs_bias, needs_rows = ctx.needs_input_grad[:4]
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs_bias else None
        grad_rows = None
        if values is not None and needs_rows:
            grad_rows = torch.zeros_like(values, dtype=wide)
        own = None if values is None else values.to(hidden.dtype)  # (n, d)
        known = len(weight)
        total = known if ids is None else max(known, int(ids.max()) + 1)
        size = min(chunk, len(targets))
        logits_buffer = empty((size, known), hidden)  # once for all: fresh memory is slow
        wide_buffer = logits_buffer
        if hidden.dtype != wide or total > known:
            wide_buffer = empty((size, total), loss)
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            target = targets[part]
            narrow, logits = logits_buffer[: len(target)], wide_buffer[: len(target)]
            logits[:, :known].copy_(multiply(hidden[part], head, narrow))
            if own is not None and ids is not None:
                logits.index_copy_(1, ids, (hidden[part] @ own.T).to(wide))
            if bias is not None:
                logits[:, :known] += bias
            if scale != 1.0:
                logits *= scale
            if softcap is not None:
                logits.div_(softcap).tanh_()
                slope = 1 - logits.square()
                logits *= softcap
            rows = torch.arange(len(target), device=logits.device)
            of_target = logits[rows, target]
            top, likeliest = logits.max(-1)
            of_part = None if weights is None else weights[part]
            correct += _weighted(likeliest == target, of_part).sum(dtype=correct.dtype)
            grad = torch.softmax(logits, -1, out=logits)
            if hidden.dtype == torch.float32:  # over a vocabulary its sum is 1e-5 off on a CPU
                grad /= grad.sum(-1, keepdim=True)
            # the largest probability is at least 1 / V, so its logarithm is exact
            loss += _weighted(top - grad[rows, likeliest].log() - of_target, of_part).sum()
            if not any(ctx.needs_input_grad[:4]):
                continue
            grad[rows, target] -= 1
            if of_part is not None:
                grad *= of_part[:, None]
            if softcap is not None:
                grad *= slope
            if scale != 1.0:
                grad *= scale
            if grad_bias is not None:
                grad_bias += grad[:, :known].sum(0)
            if own is not None and ids is not None:
                of_rows = grad[:, ids].to(hidden.dtype)
                grad.index_fill_(1, ids, 0)  # the rows that they stand for have no part in it
                if grad_rows is not None:
                    grad_rows += (of_rows.T @ hidden[part]).to(wide)
            narrow.copy_(grad[:, :known])
            if grad_hidden is not None:
                multiply_back(narrow, head, grad_hidden[part])
                if own is not None:
                    grad_hidden[part].addmm_(of_rows, own)
            if grad_weight is not None:
                grad_weight += (narrow.T @ hidden[part]).to(wide)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias, grad_rows)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias, values)]
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = grads[0]
        hidden, weight, bias, values = (
            None if saved is None else (saved * factor).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return hidden, weight, bias, values, *[None] * 6


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    return values if weights is None else values * weights


def logits_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of logits that exist already.

    Args:
        logits: (N, V), any float dtype; the sum is taken in float32 at least.
        targets: (N,) int64.
        weights: (N,), factors on the positions' losses, finite and at least 0; None for 1.

    Returns:
        The loss in nats and the number of positions whose most likely token is the target, as
        ``linear_cross_entropy`` returns them.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    hits = logits.detach().argmax(-1) == targets
    if weights is None:
        return F.cross_entropy(logits, targets, reduction="sum"), hits.sum()
    weights = weights.to(logits.dtype)
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum(), (hits * weights).sum(dtype=torch.float64)


def head_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what lies between a model's output embedding and its logits, from its HF config.

    Args:
        config: ``model.config.to_dict()``.
    """
    options: dict[str, Any] = {}
    if config.get("final_logit_softcapping"):  # Gemma 2 and 3
        options["softcap"] = config["final_logit_softcapping"]
    if config.get("logit_scale"):  # Cohere
        options["scale"] = config["logit_scale"]
    if config.get("logits_scaling"):  # Granite divides
        options["scale"] = 1 / config["logits_scaling"]
    return options
