"""``ensure_weight_tying`` in a form that HF PEFT understands for every name of the embeddings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from peft_lightning.adapters.lora.expressions import fullmatch
from peft_lightning.adapters.lora.trainable_tokens import vocabulary_names
from peft_lightning.messages import UserError

EMBEDDINGS = ("embed_tokens", "lm_head")  # peft/utils/constants.py: EMBEDDING_LAYER_NAMES


def with_seen_tying(
    model: nn.Module, options: Mapping[str, Any], adapted: Collection[str]
) -> dict[str, Any]:
    """Return the options of HF PEFT's config, in which it sees that the embeddings stay tied.

    It ties them only where the options name ``embed_tokens`` or ``lm_head``: GPT-2's ``wte`` alone
    would be trained as an untied one. Where neither is a name in the model, the two are named as
    layers of their own, whose tensors are in the file and are equal.

    Args:
        model: The model with the adapter.
        options: The options, with ``target_modules`` as HF PEFT has them.
        adapted: Names of the adapted layers.
    """
    found = dict(options)
    source, head = vocabulary_names(model)
    if not options["ensure_weight_tying"] or head is None:
        return found
    known = [name for name in (source, head) if _leaf(name) in EMBEDDINGS]
    targets, saved = options["target_modules"], options["modules_to_save"] or []
    if {source, head} <= set(adapted) and not _is_seen(targets):
        names = list(adapted) if isinstance(targets, str) else targets
        found["target_modules"] = list(dict.fromkeys([*names, *(known[-1:] or (source, head))]))
        found["ensure_weight_tying"] = bool(known)
    elif any(name.endswith(tuple(saved)) for name in (source, head)):
        if _has_bias(model, head):  # HF PEFT's tied copy of a saved module has none
            known = []
        if not known or not _is_seen(saved):
            found["modules_to_save"] = list(
                dict.fromkeys([*saved, *(known[-1:] or (source, head))])
            )
        found["ensure_weight_tying"] = bool(known)
    return found


def require_readable_rows(
    model: nn.Module, tokens: Collection[str], tied: bool, saved: Collection[str]
) -> None:
    """Raise UserError if single tokens' rows would be trained as HF PEFT cannot compute them.

    Args:
        model: The base, without an adapter.
        tokens: Names of the embeddings of which rows are trained.
        tied: Whether the output embedding shares the weight of the input embedding.
        saved: Names of the modules that are trained whole.
    """
    source, head = vocabulary_names(model)
    if head is None:
        return
    shares = tied and source in tokens and head not in saved
    if (head in tokens or shares) and _has_bias(model, head):
        raise UserError(
            f"rows of {head} cannot be trained alone: it has a bias, which HF PEFT leaves out "
            f"there. Train it whole: modules_to_save [{_leaf(source)}, {_leaf(head)}]"
        )
    if tied and source in tokens and head in saved:
        raise UserError(
            f"modules_to_save [{_leaf(head)}] beside single tokens' rows of {source}, to which it "
            "is tied, cannot be read by HF PEFT or any other program: leave modules_to_save out, "
            f"as the rows are trained in both, or train both whole: [{_leaf(source)}, "
            f"{_leaf(head)}], with ensure_weight_tying to keep them one"
        )


def _has_bias(model: nn.Module, name: str) -> bool:
    return getattr(model.get_submodule(name), "bias", None) is not None


def _is_seen(names: Sequence[str] | str | None) -> bool:
    """Whether HF PEFT finds a name of an embedding in an option."""
    if isinstance(names, str):
        return any(fullmatch(names, name) for name in EMBEDDINGS)
    return any(_leaf(name) in EMBEDDINGS for name in names or [])


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
