"""What a run says of its rows at its start: a few lines, and the first row with its marks."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from peft_lightning.data.split import Split
from peft_lightning.data.tokens.marked_tokens import marked_tokens, short_marked_text
from peft_lightning.messages import shortened

MOST_FINDINGS = 8  # that are named


def describe_rows(
    splits: Mapping[str, Split], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[str]:
    """Return what is said of the rows of a run: at most four lines, and the first row.

    Args:
        splits: The splits of ``fit``.
        tokenizer: The tokenizer of the rows.
        max_length: Maximum number of tokens of a row.
    """
    train = splits["train"]
    index = int(train.rows[0])
    row = train.dataset[index]
    tokens = marked_tokens(tokenizer, row["input_ids"], row["loss_weights"])
    return [
        *(_sizes(name, split) for name, split in splits.items()),
        _lengths(train, max_length),
        _findings(splits),
        f"first row, its tokens in the loss between ⟦ and ⟧: {short_marked_text(tokens)}",
    ]


def _sizes(name: str, split: Split) -> str:
    sizes = split.sizes
    share = sizes["loss_tokens"] / max(1, sizes["tokens"])
    return (
        f"{name}: {sizes['rows']:,} rows, {sizes['tokens']:,} tokens,"
        f" {sizes['loss_tokens']:,} of them in the loss ({share:.1%})"
    )


def _lengths(split: Split, max_length: int) -> str:
    lengths = split.lengths[split.rows]
    p50, p95 = (int(np.percentile(lengths, q, method="inverted_cdf")) for q in (50, 95))
    return (
        f"lengths: {lengths.min():,} to {lengths.max():,} tokens, median {p50:,}, 95 % at most"
        f" {p95:,}; max_length {max_length:,}{_beyond(split)}"
    )


def _beyond(split: Split) -> str:
    """Return what ``max_length`` has left out or cut."""
    metas = _metas({"train": split})
    left_out = sum(meta.get("num_too_long", 0) for meta in metas)
    cut = sum(meta.get("num_truncated", 0) for meta in metas)
    longest = max((meta.get("longest", 0) for meta in metas), default=0)
    parts = [f"leaves out {left_out:,} rows"] if left_out else []
    parts += [f"cuts {cut:,} rows"] if cut else []
    if not parts:
        return ", no row is longer"
    return f" {' and '.join(parts)}, {longest:,} would keep all whole"


def _findings(splits: Mapping[str, Split]) -> str:
    counts: Counter[str] = Counter()
    for meta in _metas(splits):
        for finding in meta.get("findings", []):
            counts[f"{finding['kind']} {finding['subject']}".rstrip()] += finding["count"]
    if not counts:
        return "nothing odd in the rows; python -m peft_lightning audit looks closer"
    named = [f"{name} ({count:,} rows)" for name, count in counts.most_common()]
    return (
        f"in the rows: {shortened(named, MOST_FINDINGS)}; python -m peft_lightning audit shows them"
    )


def _metas(splits: Mapping[str, Split]) -> list[dict[str, Any]]:
    """Return the facts of each source, each source once."""
    parts: list[Any] = [part for split in splits.values() for part in split.dataset.datasets]
    return [part.meta for part in {part.folder: part for part in parts}.values()]
