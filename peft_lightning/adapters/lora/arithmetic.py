"""LoRA adapters combined, and reduced in rank, as sums of their updates ``scaling * B A``.

Every scale is taken into the factors first, so that ranks, rsLoRA and the patterns of ranks and
alphas come out right; the result is plain LoRA whose own scale is 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from peft_lightning.adapters.base import Adapter
from peft_lightning.adapters.lora.init import is_decomposition
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.lora.state_dict_keys import LORA_A, LORA_B, factor_keys
from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.messages import UserError, check_choice, shortened

METHODS = (
    *("cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"),
    *("hf_linear", "hf_ties", "hf_dare_ties"),
)

Factors = tuple[Tensor, Tensor]  # (out, r) and (r, in), float64: their product is the update
Updates = dict[str, Factors]  # by layer


def updates_of(adapter: Adapter, tensors: Mapping[str, Tensor]) -> Updates:
    """Return the update of each layer as two factors, the root of the scale within each.

    Raises:
        UserError: If it is no LoRA, or holds more than the updates of linear layers.
    """
    if not isinstance(adapter, LoRA):
        raise UserError(f"only LoRA adapters can be combined, and this is {adapter.peft_type}")
    require_plain_updates(adapter)
    names = [n.removeprefix(PREFIX).removesuffix(LORA_A) for n in tensors if n.endswith(LORA_A)]
    keys = {name: factor_keys(name) for name in names}
    known = {key for pair in keys.values() for key in pair}
    if other := sorted(set(tensors) ^ known):
        raise UserError(f"only updates of linear layers can be combined, not {shortened(other)}")
    check_factor_shapes(tensors)
    roots = {name: adapter.scaling(name) ** 0.5 for name in names}
    return {
        name: (tensors[b].double() * roots[name], tensors[a].double() * roots[name])
        for name, (a, b) in keys.items()
    }


def require_plain_updates(adapter: LoRA) -> None:
    """Raise UserError if the adapter is more than a sum of updates; say what to do instead."""
    if adapter.use_dora:
        raise UserError(
            "use_dora: what DoRA adds depends on the base, and DoRAs do not add up; merge the "
            "adapter into the base by itself"
        )
    if adapter.lora_bias or adapter.bias != "none":
        raise UserError(
            f"bias {adapter.bias!r}, lora_bias {adapter.lora_bias}: trained biases are no update "
            "of a weight, and would be lost; merge the adapter into the base by itself"
        )
    if is_decomposition(adapter.init_lora_weights):
        raise UserError(
            f"init_lora_weights {adapter.init_lora_weights!r}: HF PEFT subtracts from the base "
            "what is not in the file; make it plain LoRA: load_adapter onto its base, save_adapter"
        )


def check_factor_shapes(tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError if factors of an update are no matrices that can be multiplied."""
    for name, a in tensors.items():
        b = tensors.get(name.removesuffix(LORA_A) + LORA_B) if name.endswith(LORA_A) else None
        if b is not None and not (
            a.ndim == b.ndim == 2 and b.shape[1] == a.shape[0] and a.numel() and b.numel()
        ):
            shapes = f"{tuple(b.shape)} and {tuple(a.shape)}, not (out, r) and (r, in)"
            raise UserError(f"the factors of {name.removesuffix(LORA_A)} are {shapes}")


def combine(
    adapters: Sequence[Updates],
    weights: Sequence[float],
    method: str = "cat",
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> tuple[Updates, dict[str, float]]:
    """Return the combined updates, and the share of the squared norm that each layer retains.

    Args:
        adapters: Of one base; where one has no update of a layer, that is zero.
        weights: One for each.
        method: ``cat``: the weighted sum, exactly, its rank the sum of the ranks; ``svd``: the
            same cut to ``rank``; ``ties`` (Yadav et al. 2023, arXiv:2306.01708), ``dare_linear``
            and ``dare_ties`` (Yu et al. 2023, arXiv:2311.03099), ``magnitude_prune``: on the
            updates of each layer, then cut to ``rank``; ``hf_linear``: HF PEFT's "linear", which
            adds the factors, not the updates, and is not their sum; ``hf_ties`` and
            ``hf_dare_ties``: as HF PEFT elects signs, from the values before they are weighted,
            where ``ties`` and ``dare_ties`` take the weighted ones, as mergekit does.
        rank: The largest of the layer's ranks if None; not used by cat and hf_linear.
        density: Share of an update's values that the methods of TIES and DARE and
            magnitude_prune keep, in (0, 1].
        seed: Of what DARE drops.

    Raises:
        UserError: For an unknown method, a value out of range, or layers that differ in shape.
    """
    check_choice("method", method, METHODS)
    if not 0 < density <= 1:
        raise UserError(f"density must be above 0 and at most 1, got {density}")
    generator = torch.Generator().manual_seed(seed)
    found: Updates = {}
    retained: dict[str, float] = {}
    for name in dict.fromkeys(name for updates in adapters for name in updates):
        parts = [(u[name], w) for u, w in zip(adapters, weights, strict=True) if name in u]
        shapes = {(b.shape[0], a.shape[1]) for (b, a), _ in parts}
        if len(shapes) > 1:
            raise UserError(f"{name} has updates of different shapes, {shapes}: other bases?")
        if method == "hf_linear":
            found[name], retained[name] = _hf_linear(name, parts, len(adapters)), 1.0
            continue
        b = torch.cat([b * w for (b, _), w in parts], 1)
        a = torch.cat([a for (_, a), _ in parts])
        largest = max(a.shape[0] for (_, a), _ in parts)
        if method == "cat":
            found[name], retained[name] = (b, a), 1.0
        elif method == "svd":
            found[name], retained[name] = reduce_rank(b, a, rank or largest)
        else:
            deltas = [(b @ a, w) for (b, a), w in parts]
            delta = _merged(deltas, method, density, generator)
            found[name], retained[name] = factorise(delta, rank or largest)
    return found, retained


def reduce_rank(
    b: Tensor, a: Tensor, rank: int | None = None, retain: float | None = None
) -> tuple[Factors, float]:
    """Cut an update to its largest singular values; the best of that rank (Eckart, Young 1936).

    Args:
        b: (out, r).
        a: (r, in).
        rank: Of the result at most.
        retain: Or the share of the squared norm to retain at least, in (0, 1].

    Returns:
        The factors and the share that is retained.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T)
    rank, retained = _cut(s.square(), rank, retain)
    root = s[:rank].sqrt()
    return (q_b @ u[:, :rank] * root, root[:, None] * (v[:rank] @ q_a.T)), retained


def factorise(
    delta: Tensor, rank: int | None = None, retain: float | None = None
) -> tuple[Factors, float]:
    """Return the best factors of an update that is a whole matrix, as ``reduce_rank`` does.

    Its singular vectors on the shorter side are the eigenvectors of ``delta delta^T``, in far
    less time than a singular value decomposition of a large matrix takes.

    Args:
        delta: (out, in), float64.
        rank: Of the result at most.
        retain: Or the share of the squared norm to retain at least, in (0, 1].
    """
    if delta.shape[0] > delta.shape[1]:
        (b, a), retained = factorise(delta.T, rank, retain)
        return (a.T, b.T), retained
    squares, u = torch.linalg.eigh(delta @ delta.T)  # in rising order
    squares, u = squares.flip(0).clamp(min=0), u.flip(1)
    rank, retained = _cut(squares, rank, retain)
    root = squares[:rank].sqrt().sqrt()
    inverse = torch.where(root > 0, 1 / root, 0.0)
    return (u[:, :rank] * root, inverse[:, None] * (u[:, :rank].T @ delta)), retained


def _cut(squares: Tensor, rank: int | None, retain: float | None) -> tuple[int, float]:
    """Return the rank to cut to and what it retains, from the squared singular values."""
    total = float(squares.sum())
    if rank is None:
        shares = squares.cumsum(0) / max(total, 1e-300)
        rank = int((shares < (retain or 1.0) - 1e-12).sum()) + 1
    rank = min(rank, len(squares))
    return rank, float(squares[:rank].sum()) / total if total else 1.0


def as_lora(updates: Updates) -> tuple[LoRA, dict[str, Tensor]]:
    """Return plain LoRA of scale 1 with these updates, its tensors in float32."""
    ranks = {name: a.shape[0] for name, (_, a) in updates.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    other = {name: rank for name, rank in ranks.items() if rank != usual}
    lora = LoRA(
        r=usual,
        lora_alpha=usual,
        target_modules=list(updates),
        rank_pattern=other,
        alpha_pattern=dict(other),
    )
    tensors = {}
    for name, (b, a) in updates.items():
        key_a, key_b = factor_keys(name)
        tensors[key_a], tensors[key_b] = a.float().contiguous(), b.float().contiguous()
    return lora, tensors


def _hf_linear(name: str, parts: Sequence[tuple[Factors, float]], count: int) -> Factors:
    if len(parts) < count or len({a.shape for (_, a), _ in parts}) > 1:
        raise UserError(f"hf_linear needs one rank in all adapters, which {name} has not: use cat")
    # the root of each scale is in the factors already: sqrt(w s) B and sqrt(w s) A are added
    b_sum, a_sum = (torch.zeros_like(x) for x in parts[0][0])
    for (b, a), weight in parts:
        root = abs(weight) ** 0.5
        b_sum += b * root
        a_sum += a * (root if weight >= 0 else -root)
    return b_sum, a_sum


def _merged(
    deltas: Sequence[tuple[Tensor, float]], method: str, density: float, generator: torch.Generator
) -> Tensor:
    """Return one update, (out, in), of several and their weights."""
    kept = []
    for delta, _ in deltas:
        if "dare" in method:
            mask = torch.rand(delta.shape, generator=generator) < density
            kept.append(mask * delta / density)
        else:
            count = density * delta.numel()
            count = max(1, int(count) if method == "hf_ties" else round(count))
            bound = delta.abs().flatten().kthvalue(delta.numel() - count + 1).values
            kept.append(torch.where(delta.abs() >= bound, delta, 0.0))
    plain = torch.stack(kept)
    stacked = torch.stack([weight * k for (_, weight), k in zip(deltas, kept, strict=True)])
    if method in ("dare_linear", "magnitude_prune"):
        return stacked.sum(0)
    voting = plain if method.startswith("hf_") else stacked
    agrees = voting.sign() == voting.sum(0).sign()  # with the elected sign
    agrees &= stacked != 0
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp(min=1)
