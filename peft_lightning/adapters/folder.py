"""Adapter folders: HF PEFT's two files and ``peft_lightning.json`` with our own facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from peft_lightning.adapters.base import Adapter, as_json, tokenizer_files
from peft_lightning.adapters.base_check import require_base
from peft_lightning.adapters.folder_files import (
    CONFIG_FILE,
    AdapterFiles,
    read_json,
    required,
    tensor_files,
)
from peft_lightning.adapters.full import Full
from peft_lightning.adapters.lookup import adapter_class, own_class
from peft_lightning.adapters.mlx import MLX_FILE, hf_config, is_mlx
from peft_lightning.files import (
    existing_folder,
    require_replaceable,
    require_undamaged,
    sealed_folder,
)
from peft_lightning.messages import UserError, shortened

FACTS_FILE = "peft_lightning.json"
ADDED_FILE = "added_tensors.safetensors"  # of a subclass of CausalLMModule
FORMAT_VERSION = 1

Texts = Mapping[str, str | bytes]


class SavedAdapter(NamedTuple):
    """The content of an adapter's folder.

    Args:
        adapter: The adapter's configuration.
        tensors: Its tensors, on the CPU, by their names in the file.
        facts: ``base_model`` (a name or None), ``base_fingerprint`` (None if unknown, as in HF
            PEFT's folders), and the other content of ``peft_lightning.json``.
    """

    adapter: Adapter
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def adapter_texts(
    adapter: Adapter,
    model: nn.Module,
    facts: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> dict[str, str | bytes]:
    """Return the content of the files of an adapter's folder beside its tensors, by name.

    Args:
        adapter: The adapter that is attached to ``model``.
        model: The base with the adapter.
        facts: Further content of ``peft_lightning.json``: ``base_fingerprint`` and anything else
            that JSON can hold.
        tokenizer: With which the adapter was trained, saved with it. Without, that of the base is
            taken wherever the folder is read.
    """
    own = {
        "format_version": FORMAT_VERSION,
        "peft_type": adapter.peft_type,
        "base_model": getattr(model, "name_or_path", None) or None,
        "base_fingerprint": None,
        **own_class(adapter),
        **adapter.metadata(),
    }
    texts = adapter.extra_files(model)
    if tokenizer is not None:
        texts |= tokenizer_files(tokenizer)
    texts[FACTS_FILE] = as_json({**own, **(facts or {})})
    return texts


def write_files(
    folder: Path, tensor_file: str, tensors: Mapping[str, Tensor], texts: Texts
) -> None:
    """Write an adapter's files into ``folder``, which exists.

    Raises:
        UserError: If there is no tensor, or one is empty, sharded or not finite; nothing is
            written.
        OSError: If the system refuses to write.
    """
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    if parts := [name for name, tensor in tensors.items() if isinstance(tensor, DTensor)]:
        raise UserError(
            f"refusing to save: {shortened(parts)} are sharded over processes; gather them first, "
            "as CausalLMModule.state_dict does"
        )
    bad = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if not tensors or empty:
        raise UserError(f"refusing to save: no values in {shortened(empty) or 'the adapter'}")
    if bad:
        raise UserError(
            f"refusing to save: {len(bad)} of {len(tensors)} tensors have values that are not "
            f"finite: {shortened(bad)}. Training has diverged: lower the learning rate"
        )
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        taken = {t.untyped_storage().data_ptr() for t in plain.values()}
        plain[name] = own.clone() if own.untyped_storage().data_ptr() in taken else own
    save_file(plain, folder / tensor_file, metadata={"format": "pt"})
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def save_adapter(
    adapter: Adapter,
    model: nn.Module,
    folder: str | Path,
    facts: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> None:
    """Save the adapter to ``folder``, which is replaced as a whole.

    HF PEFT and every program that reads its files can load the folder. See ``adapter_texts`` for
    the arguments.

    Raises:
        UserError: If something else than an adapter is in ``folder``, or a checkpoint of a run.
    """
    texts = adapter_texts(adapter, model, facts, tokenizer)
    require_replaceable(Path(folder), adapter.tensor_file, "adapter")
    with sealed_folder(folder) as temporary:
        write_files(temporary, adapter.tensor_file, adapter.state_dict(model), texts)


def read_adapter(folder: str | Path, is_whole: bool = False) -> SavedAdapter:
    """Read an adapter's folder, ours or HF PEFT's.

    Args:
        folder: The folder.
        is_whole: Whether weights of the base that were trained beside the adapter are loaded too,
            by a class of ``CausalLMModule``.

    Raises:
        FileNotFoundError: If the folder or a file of it is not there.
        UserError: If a file is damaged, cannot be read, or sets an option that is not
            implemented; or if weights of the base were trained, unless ``is_whole``.
    """
    adapter, facts, files = _opened(folder)
    of_base = [n for n in facts.get("added_tensors", []) if str(n).startswith("model.")]
    if of_base and not is_whole:
        raise UserError(
            f"{folder} is more than an adapter: {shortened(of_base)} of the base were trained too, "
            f"and are in its {ADDED_FILE}. The class that was trained has them: "
            f"load_from_checkpoint({str(folder)!r})"
        )
    tensors = files.tensors()
    if empty := [name for name, tensor in tensors.items() if tensor.numel() == 0]:
        raise UserError(
            f"{folder}: {len(empty)} of {len(tensors)} tensors are empty, {shortened(empty, 2)}: "
            "DeepSpeed saves them so where it has divided them (ZeRO 3). Convert its checkpoint by "
            "its zero_to_fp32.py, or save again with stage3_gather_16bit_weights_on_model_save"
        )
    names = adapter.hf_names(tensors)
    return SavedAdapter(adapter, {names[name]: tensor for name, tensor in tensors.items()}, facts)


def read_adapter_config(folder: str | Path) -> tuple[Adapter, dict[str, Any]]:
    """Read an adapter's folder without its tensors, whose file is checked for damage only.

    Returns:
        The adapter and the facts of ``SavedAdapter``.

    Raises:
        FileNotFoundError: As ``read_adapter``.
        UserError: As ``read_adapter``.
    """
    return _opened(folder)[:2]


def _opened(folder: str | Path) -> tuple[Adapter, dict[str, Any], AdapterFiles]:
    """Return the adapter of a folder, its facts, and its files with the tensors."""
    folder = existing_folder(folder)
    require_undamaged(folder, [CONFIG_FILE, FACTS_FILE])
    facts = read_facts(folder)
    if facts.get("peft_type") == Full.peft_type:
        return Full(), facts, tensor_files(folder, Full.tensor_file)
    config, files = read_hf_config(folder)
    kind = adapter_class(config.get("peft_type"), facts.get("adapter_class"), folder)
    own = {name: facts[name] for name in kind.own_options & facts.keys()}
    if paths := [name for name, value in own.items() if isinstance(value, str)]:
        raise UserError(f"{folder / FACTS_FILE}: {paths[0]} must not name a file elsewhere")
    adapter = kind.from_hf_config({**config, **own})
    facts["base_model"] = facts["base_model"] or config.get("base_model_name_or_path")
    if not isinstance(facts["base_model"], str | None):
        name = f"base_model_name_or_path must be a name, got {facts['base_model']!r:.80}"
        raise UserError(f"{folder / CONFIG_FILE}: {name}")
    return adapter, facts, files or tensor_files(folder, adapter.tensor_file)


def read_hf_config(folder: Path) -> tuple[dict[str, Any], AdapterFiles | None]:
    """Return the config of an adapter's folder with HF PEFT's keys, and the tensors' files of MLX.

    Raises:
        FileNotFoundError: If it is no adapter's folder.
        UserError: If a file cannot be read, or is of an adapter of MLX that HF PEFT has not.
    """
    config = read_json(required(folder, CONFIG_FILE))
    if not is_mlx(config):
        return config, None
    files = AdapterFiles([required(folder, MLX_FILE)], is_mlx=True)
    return hf_config(config, files.names(), folder), files


def read_facts(folder: str | Path) -> dict[str, Any]:
    """Return the content of ``peft_lightning.json`` in a folder; without the file, no base.

    Raises:
        UserError: If the file cannot be read, or was written by a newer release.
    """
    facts: dict[str, Any] = {"base_model": None, "base_fingerprint": None}
    path = Path(folder, FACTS_FILE)
    if path.is_file():
        facts |= read_json(path)
        version = facts.get("format_version", FORMAT_VERSION)
        if type(version) is not int or version > FORMAT_VERSION:
            raise UserError(
                f"{path} has format_version {version!r:.80}, and this release reads up to "
                f"{FORMAT_VERSION}: install a newer one"
            )
        for name, kind in (("base_model", str), ("base_fingerprint", dict)):
            if facts[name] is not None and not isinstance(facts[name], kind):
                raise UserError(f"{path}: {name} must be {kind.__name__}, got {facts[name]!r:.80}")
    return facts


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    trainable: bool = False,
    allow_base_mismatch: bool = False,
    base_fingerprint: Mapping[str, Any] | None = None,
    saved: SavedAdapter | None = None,
) -> Adapter:
    """Attach the adapter of ``folder`` to ``model`` with its trained tensors.

    Args:
        model: A model without an adapter. If loading fails it is unchanged.
        folder: The adapter's folder, ours or HF PEFT's.
        trainable: Whether the adapter is to be trained; otherwise it is frozen and in eval mode.
        allow_base_mismatch: Load even if ``base_fingerprint`` is not that of the adapter's base.
        base_fingerprint: The fingerprint of ``model``; compared if the folder has one.
        saved: The content of ``folder`` if it has been read already.

    Raises:
        UserError: If the tensors do not fit, or were trained on another base.
    """
    adapter, tensors, facts = saved or read_adapter(folder)
    if not allow_base_mismatch:
        require_base(folder, facts, base_fingerprint)
    before = set(model.modules())
    adapter, fitted = adapter.resolved_for(model, tensors)
    adapter.attach(model, initialise=False)
    try:
        adapter.load_state_dict(model, fitted)
    except BaseException:
        adapter._undo(model)
        raise
    if not trainable:
        model.requires_grad_(False)
        for module in set(model.modules()) - before:
            module.training = False
    return adapter
