"""``python -m peft_lightning export``: an adapter, or the merged model, as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_lightning.messages import check_choice

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from peft_lightning.adapters.lora.method import LoRA
    from peft_lightning.export.gguf_layout import Layout

FORMATS = ("gguf-lora", "gguf")


def export(
    ckpt_path: str,
    out: str,
    /,
    format: str = "gguf-lora",
    base_model: str | None = None,
    dtype: str = "auto",
    tokenizer_pre: str | None = None,
    verify: bool = True,
    max_logit_difference: float | None = None,
    text: str | None = None,
    device: str = "auto",
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> None:
    """Write a GGUF file for llama.cpp, Ollama and others: a LoRA alone, or the merged model.

    For Llama, Mistral, Qwen 2 and Qwen 3. A merged model is then loaded and compared, as merge
    does it; if they disagree, the file OUT.UNVERIFIED says why.

    Args:
        ckpt_path: Folder of an adapter or checkpoint, or a hub's OWNER/NAME@REVISION; for gguf a
            model's folder will do too.
        out: The .gguf file to write.
        format: gguf-lora: the adapter alone, for llama.cpp's --lora beside the base's GGUF file;
            gguf: one file with the merged model and its tokenizer.
        base_model: Base model, if not the one that the adapter names: hub id, folder or GGUF file.
        dtype: auto (float32 for a LoRA, as the base's for a model), float32, bfloat16 or float16.
        tokenizer_pre: llama.cpp's name of how the tokenizer cuts text, such as llama-bpe; without,
            it is found from the tokenizer.
        verify: Whether to compare a merged model; it takes its memory in float32.
        max_logit_difference: Largest allowed difference of a logit, as in merge.
        text: Text file to compare on; without, a built-in text.
        device: Where to compare: auto (the GPU if there is one), cpu, cuda, cuda:1 ...
        allow_base_mismatch: Go on even if the adapter was trained on another base model.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
    """
    check_choice("format", format, FORMATS)
    if not out.endswith(".gguf") or Path(out).is_dir():
        raise ValueError(f"out must be a file's name that ends in .gguf, got {out!r}")
    import torch
    from transformers import AutoConfig

    from peft_lightning.base_model.load import find_device, require_dtype
    from peft_lightning.commands.merge import UNVERIFIED, read_text, require_max_logit_difference
    from peft_lightning.export.verify import TEXT, THRESHOLDS, compare
    from peft_lightning.files import atomic_text

    require_dtype(dtype)
    device = find_device(device)
    require_max_logit_difference(max_logit_difference)
    sample = TEXT if text is None else read_text(text)
    wanted = None if dtype == "auto" else getattr(torch, dtype)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    base, folder = _places(ckpt_path, base_model)
    if format == "gguf-lora":
        _write_lora(Path(out), base, folder, ckpt_path, wanted, allow_base_mismatch, options)
        print(f"exported: {out}; use it as llama-cli -m BASE.gguf --lora {out}")
        return
    mark = Path(f"{out}.{UNVERIFIED}")
    mark.unlink(missing_ok=True)  # of another file of this name
    layout, stored = _write_model(
        Path(out), base, folder, wanted, tokenizer_pre, allow_base_mismatch, options
    )
    print(f"exported: {out}, {Path(out).stat().st_size:,} bytes")
    if layout.context_length < layout.config.max_position_embeddings:
        print(
            f"its context is {layout.context_length} tokens: llama.cpp has no sliding window of "
            "attention for this architecture, and beyond it the two would differ"
        )
    if not verify:
        return
    if unread := layout.unread(
        AutoConfig.from_pretrained(Path(out).parent, gguf_file=Path(out).name)
    ):
        print(f"not verified: transformers reads {unread}; llama.cpp reads it right")
        return
    length = min(512, layout.context_length)
    atomic_text(mark, "the verification was not finished\n")
    found = compare(out, base, folder, sample, device, options, length)
    print(f"verified on {found}")
    if problem := found.problem(max_logit_difference or THRESHOLDS[stored]):
        atomic_text(mark, f"{problem}\n{found}\n")
        raise RuntimeError(f"{out} is not what was trained: {problem}")
    mark.unlink()


def _places(ckpt_path: str, base_model: str | None) -> tuple[str, str | None]:
    """Return where the base and its adapter are; None if ``ckpt_path`` is a whole model.

    Raises:
        ValueError: If it is neither, or is an adapter that is no LoRA, or names no base.
    """
    from peft_lightning.adapters.folder import CONFIG_FILE, read_adapter
    from peft_lightning.adapters.merge import require_mergeable
    from peft_lightning.hub import adapter_folder

    if Path(ckpt_path, "config.json").is_file() and not Path(ckpt_path, CONFIG_FILE).is_file():
        if base_model is not None:
            raise ValueError(
                f"{ckpt_path} is a whole model: give it without --base_model {base_model}"
            )
        return ckpt_path, None
    adapter, _, facts = read_adapter(ckpt_path := str(adapter_folder(ckpt_path)))
    require_mergeable(adapter, ckpt_path)
    if not (base := base_model or facts["base_model"]):
        raise ValueError(f"{ckpt_path} does not name its base model: give it with --base_model")
    return base, ckpt_path


def _write_lora(
    out: Path,
    base: str,
    folder: str | None,
    ckpt_path: str,
    dtype: torch.dtype | None,
    allow_base_mismatch: bool,
    options: dict[str, Any],
) -> None:
    import torch

    from peft_lightning.adapters.folder import read_adapter, require_base
    from peft_lightning.adapters.merge import require_mergeable
    from peft_lightning.base_model import base_fingerprint, load_base_model
    from peft_lightning.base_model.weights import NotStreamableError, open_weights
    from peft_lightning.export.gguf import write_lora
    from peft_lightning.files import atomic_file

    if folder is None:
        raise ValueError(f"{ckpt_path} is a whole model and no LoRA: export it with --format gguf")
    adapter, tensors, facts = read_adapter(folder)
    model: Any
    try:
        weights = open_weights(base, **options)
        model, fingerprint = weights.model, weights.fingerprint()
    except NotStreamableError:
        model = load_base_model(base, **options)
        fingerprint = base_fingerprint(model)
    if not allow_base_mismatch:
        require_base(folder, facts, fingerprint)
    with atomic_file(out) as file:
        write_lora(file, model, require_mergeable(adapter), tensors, dtype or torch.float32)


def _write_model(
    out: Path,
    base: str,
    folder: str | None,
    dtype: torch.dtype | None,
    pre: str | None,
    allow_base_mismatch: bool,
    options: dict[str, Any],
) -> tuple[Layout, torch.dtype]:
    """Write the merged model; return its layout and the dtype of its matrices."""
    from functools import partial

    from peft_lightning.adapters.folder import read_adapter, require_base
    from peft_lightning.adapters.lora.merge_extra import holds_parts
    from peft_lightning.adapters.merge import require_mergeable
    from peft_lightning.base_model import load_tokenizer
    from peft_lightning.base_model.weights import NotStreamableError, open_weights
    from peft_lightning.export.gguf import write_model
    from peft_lightning.export.gguf_tokenizer import add_vocabulary, copy_vocabulary
    from peft_lightning.export.merged_folder import write_merged
    from peft_lightning.export.merged_weights import MergedTensors
    from peft_lightning.files import atomic_file, scratch_folder

    adapter: LoRA | None = None
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"base_fingerprint": None}
    if folder is not None:
        found, tensors, facts = read_adapter(folder)
        adapter = require_mergeable(found, folder)
    with scratch_folder(out.with_name(f"{out.name}.merged")) as temporary:
        place = base
        try:
            if holds_parts(tensors):
                raise NotStreamableError("the adapter trains more than updates of linear layers")
            weights = open_weights(base, **options)
            if not allow_base_mismatch and facts["base_fingerprint"]:
                require_base(str(folder), facts, weights.fingerprint())
        except NotStreamableError:
            if folder is None:
                raise
            write_merged(temporary, folder, base, dtype, 2 * 10**9, allow_base_mismatch, options)
            weights, tensors = open_weights(str(temporary)), {}
            if adapter is not None and adapter.new_tokens:
                place = str(temporary)  # whose tokenizer has them
            adapter = None
        size = weights.model.config.vocab_size
        if place.endswith(".gguf"):
            vocabulary = partial(copy_vocabulary, file=Path(base).expanduser())
        else:
            tokenizer = load_tokenizer(place, **options)
            vocabulary = partial(add_vocabulary, tokenizer=tokenizer, size=size, pre=pre)
        merged = MergedTensors(weights, adapter, tensors, dtype)
        with atomic_file(out) as file:
            return write_model(file, merged, out.stem, vocabulary)
