"""The logits that a merged model is compared with, and its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from peft_lightning.adapters.folder import SavedAdapter, load_adapter
from peft_lightning.base_model import load_base_model, load_tokenizer
from peft_lightning.base_model.positions import positions_of
from peft_lightning.base_model.quantization import dequantized
from peft_lightning.kernels.float32_compute import compute_in_float32
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress

LONGEST_ROW, MOST_TOKENS = 512, 1024
SHAKEN_BY = 1e-6  # of float32, which rounds by 6e-8 in each layer


@dataclass(frozen=True)
class Reference:
    """What a base and its adapter compute for the rows of a text, to compare models with.

    Args:
        rows: Token ids.
        plain: Logits of the base, (T, V) float32 for each row.
        adapted: Those of base and adapter.
        shaken: Those again, several times, computed from embeddings that differ by rounding.
    """

    rows: list[list[int]]
    plain: list[Tensor]
    adapted: list[Tensor]
    shaken: list[list[Tensor]] = field(default_factory=list)

    def steady(self, tolerance: float) -> Tensor:
        """Return for each token whether rounding moves its logits by no more than ``tolerance``.

        Rounding moves those of a model that chooses, as experts for a token or keys to look at,
        where two choices are equally good.
        """
        adapted = torch.cat(self.adapted)
        moved = [(torch.cat(logits) - adapted).abs().amax(-1) for logits in self.shaken]
        return torch.stack(moved).amax(0) <= tolerance


def reference_of(
    base: str,
    ckpt_path: str | None,
    text: str,
    device: str,
    options: dict[str, Any],
    longest_row: int = LONGEST_ROW,
    quantization: str | None = None,
    saved: SavedAdapter | None = None,
    shakes: int = 0,
) -> Reference:
    """Return what a base and its adapter compute for a text.

    Args:
        base: Hub id, folder or GGUF file.
        ckpt_path: The adapter's folder; None if what is compared is the base in another form.
        text: Its first tokens are used, at most 1024 in rows of ``longest_row``.
        device: Where to compute.
        options: ``trust_remote_code`` and ``revision``, for the base.
        longest_row: Most tokens of a row, if the model has that many positions.
        quantization: Take the base's weights after quantising (4bit or 8bit) and dequantising them.
        saved: The content of ``ckpt_path`` if it has been read already.
        shakes: How often base and adapter are computed again, for ``Reference.shaken``.

    Raises:
        UserError: If the text has less than two tokens.
    """
    stored = quantization is None and device == "cpu"  # two bytes a weight, computed in float32
    dtype = "auto" if stored else "float32"
    loaded = load_base_model(base, dtype=dtype, device=device, quantization=quantization, **options)
    model: Any = compute_in_float32(loaded) if stored else dequantized(loaded)
    positions = positions_of(model).number or longest_row
    ids = list(load_tokenizer(base, **options)(text, verbose=False)["input_ids"])[:MOST_TOKENS]
    length = min(longest_row, positions)
    rows = [ids[i : i + length] for i in range(0, len(ids), length)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise UserError("the text to verify with has less than two tokens: give a longer one")
    plain = _logits(model, rows)
    adapted = plain
    if ckpt_path is not None:
        load_adapter(model, ckpt_path, allow_base_mismatch=True, saved=saved)
        adapted = _logits(model, rows)
    generator = torch.Generator().manual_seed(0)

    def shake(layer: Any, inputs: Any, output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output * (1 + SHAKEN_BY * noise)

    with model.get_input_embeddings().register_forward_hook(shake):
        shaken = [_logits(model, rows) for _ in range(shakes)]
    return Reference(rows, plain, adapted, shaken)


def logits_of(
    out: str,
    rows: Sequence[Sequence[int]],
    device: str,
    options: dict[str, Any],
    stored: bool = True,
) -> list[Tensor]:
    """Return the logits that a merged model has for rows of token ids, (T, V) float32 each.

    Args:
        out: Folder or GGUF file of the model.
        rows: Token ids.
        device: Where to compute.
        options: ``trust_remote_code``.
        stored: Whether weights may stay in the two bytes that they are stored in.
    """
    stored = stored and device == "cpu"
    trust = options["trust_remote_code"]
    model: Any = load_base_model(
        out, dtype="auto" if stored else "float32", device=device, trust_remote_code=trust
    )
    return _logits(compute_in_float32(model) if stored else model, rows)


@torch.no_grad()
def _logits(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the logits of each row, (T, V) float32 on the CPU."""
    found = []
    with Progress("verifying", len(rows), "rows") as progress:
        for row in rows:
            ids = torch.tensor([row], device=model.device)
            found.append(model(input_ids=ids, use_cache=False).logits[0].float().cpu())
            progress.update(len(found))
    return found
