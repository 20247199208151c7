"""A new run from trained weights: which adapter a folder holds, and whether it fits the run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.adapters import Adapter, LoRA, load_adapter, read_adapter
from peft_lightning.adapters.base_check import require_base
from peft_lightning.adapters.folder import read_adapter_config
from peft_lightning.adapters.full import Full
from peft_lightning.hub import adapter_folder
from peft_lightning.messages import UserError, shortened
from peft_lightning.training.run_identity import MAY_CHANGE

_HOW_IT_BEGAN = MAY_CHANGE - {"lora_dropout"}  # says nothing of trained weights


def adapter_to_continue(init_from: str) -> tuple[Path, Adapter]:
    """Return the folder of ``init_from`` and the adapter in it.

    Args:
        init_from: A folder, ours or HF PEFT's, or ``owner/name@revision`` on the hub.

    Raises:
        UserError: If there is no such adapter, or it is a whole model.
    """
    try:
        folder = adapter_folder(init_from)
        adapter, _ = read_adapter_config(folder)
    except FileNotFoundError as error:
        raise UserError(f"model.init_from: {error}") from None
    if isinstance(adapter, Full):
        raise UserError(
            f"model.init_from {init_from} is a whole model: give it as model.base_model"
        )
    return folder, adapter


def attach_trained(
    model: Any,
    folder: Path,
    given: Adapter,
    fingerprint: dict[str, Any] | None,
    is_whole: bool = False,
) -> Adapter:
    """Attach the adapter of ``folder`` with its weights, to train on.

    Args:
        model: The base.
        folder: The adapter's.
        given: The configured adapter: that of the folder, or the default, which is none.
        fingerprint: The base's.
        is_whole: Whether what was trained beside the adapter is loaded next.

    Returns:
        The adapter as it is on this base: HF PEFT's folder of an enlarged one holds whole
            embeddings, of which the new rows are kept.

    Raises:
        UserError: If ``given`` is another adapter, it was trained on another base, or it does
            not fit.
    """
    own, _, facts = saved = read_adapter(folder, is_whole)
    if facts["base_fingerprint"] is None:
        rank_zero_info(
            f"{folder} does not remember its base's fingerprint: that it was trained on "
            f"{model.name_or_path} is not checked"
        )
    require_base(folder, facts, fingerprint, "Give that one as model.base_model")
    if given not in (LoRA(), own):
        on_model = own.resolved_for(model, saved.tensors)[0]
        configured, held = (_in_model(adapter, model) for adapter in (given, on_model))
        keys = {*configured, *held}
        if differing := {key for key in keys if configured.get(key) != held.get(key)}:
            raise UserError(conflict(given, folder, own, differing))
    return load_adapter(model, folder, trainable=True, saved=saved)


def conflict(
    given: Adapter | str, init_from: str | Path, own: Adapter, keys: Collection[str] = ()
) -> str:
    """Return what to say where ``given`` is configured and ``init_from`` holds ``own``.

    Args:
        given: The adapter, or the name of its class.
        init_from: The folder.
        own: The adapter in it.
        keys: The options in which they differ.
    """
    name = given if isinstance(given, str) else type(given).__name__
    if isinstance(given, str) or type(given) is not type(own):
        return (
            f"model.adapter is {name}, and model.init_from {init_from} holds "
            f"{type(own).__name__}: leave model.adapter out"
        )
    there, here = own.options(), given.options()
    named = [k for k in here if k in keys] or [k for k in here if there[k] != here[k]]
    differing = [f"{k} {there[k]!r:.60} there, {here[k]!r:.60} here" for k in named]
    return (
        f"model.adapter is another {name} than that of model.init_from {init_from}: "
        f"{shortened(differing)}; leave model.adapter out"
    )


def _in_model(adapter: Adapter, model: Any) -> dict[str, Any]:
    """Return what ``adapter`` is in ``model``: shorthands written out, without how it began."""
    adapter.attach(model, initialise=False)
    try:
        config = adapter.hf_config(model)
    finally:
        adapter.detach(model)
    known = {key: value for key, value in config.items() if key not in _HOW_IT_BEGAN}
    return {k: sorted(v) if isinstance(v, list) else v for k, v in known.items()}
