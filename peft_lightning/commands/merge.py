"""``python -m peft_lightning merge``: an adapter and its base model become one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_lightning.messages import UserError

if TYPE_CHECKING:
    import torch


def merge(
    ckpt_path: str,
    out: str,
    /,
    base_model: str | None = None,
    tokenizer: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    max_shard_size: str = "2GB",
    verify: bool = True,
    max_logit_difference: float | None = None,
    text: str | None = None,
    device: str = "auto",
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> None:
    """Merge an adapter into its base model, and write the merged model as an HF folder.

    The base is read and written shard by shard. The merged model is then loaded and compared with
    the base and its adapter; if they differ, the exit status is 1 and the file UNVERIFIED in the
    folder gives the reason.

    Args:
        ckpt_path: Folder of an adapter or checkpoint, or OWNER/NAME@REVISION on the hub; it names
            its base model.
        out: Folder to write.
        base_model: Base model, if not the one that the adapter names: hub id, folder or GGUF file.
        tokenizer: Hub id or folder of the tokenizer that the merged model gets; without, the one in
            the adapter's folder, else that of the base.
        dtype: Data type of the merged weights: auto (that of the base), float32, bfloat16 or
            float16.
        quantization: 4bit or 8bit: merge into the quantized and dequantized weights of the base,
            over which the adapter was trained; without, into the weights as saved.
        max_shard_size: Largest size of a file of weights, such as 2GB or 500MB.
        verify: Whether to compare; this takes the memory of the model in float32.
        max_logit_difference: Largest allowed difference of a logit, in standard deviations of the
            logits; without, 0.001 for float32, 0.2 for float16 and 1 for bfloat16 weights.
        text: Text file to compare on; without, a built-in text.
        device: Where to compare: auto (the GPU if there is one), cpu, cuda, cuda:1 ...
        allow_base_mismatch: Merge even if the adapter was trained on another base model.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
        overwrite: Replace the merged model that is in the folder.
    """
    import torch

    from peft_lightning.adapters.folder import read_adapter
    from peft_lightning.adapters.merge import require_mergeable
    from peft_lightning.base_model.load import find_device, require_dtype
    from peft_lightning.cli.model_card import of_adapter
    from peft_lightning.data import PromptFormat
    from peft_lightning.data.tokens.template_sources import is_template_source
    from peft_lightning.export.generation_config import complete_generation_config
    from peft_lightning.export.merged_folder import write_merged
    from peft_lightning.export.merged_from import MERGED, write_merged_from
    from peft_lightning.export.unverified import (
        UNFINISHED,
        UNVERIFIED,
        require_max_logit_difference,
        settle,
        tell_if_stopped,
    )
    from peft_lightning.export.verify import TEXT, THRESHOLDS, compare
    from peft_lightning.files import atomic_folder, read_text, require_output, size_in_bytes
    from peft_lightning.hub import adapter_folder

    require_dtype(dtype)
    device = find_device(device)
    size = size_in_bytes(max_shard_size)
    require_max_logit_difference(max_logit_difference)
    sample = TEXT if text is None else read_text(text)
    adapter, _, facts = saved = read_adapter(ckpt_path := str(adapter_folder(ckpt_path)))
    require_mergeable(adapter, ckpt_path)
    prompts = PromptFormat.of_folder(facts, ckpt_path)
    base = base_model or facts["base_model"]
    if not base:
        raise UserError(f"{ckpt_path} does not name its base model: give it with --base_model")
    require_output(out, MERGED, [ckpt_path, base, text, tokenizer], overwrite)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    wanted = None if dtype == "auto" else getattr(torch, dtype)
    if (trained_over := facts.get("quantization")) and not quantization:
        print(
            f"{ckpt_path} was trained over {trained_over} weights of {base}, and is merged into "
            f"the original ones; --quantization {trained_over} merges into the former, dequantised"
        )
    tell_if_stopped(out, Path(out, UNVERIFIED))
    with atomic_folder(out) as folder:
        write_merged(
            folder,
            ckpt_path,
            base,
            wanted,
            size,
            allow_base_mismatch,
            options,
            quantization,
            saved,
            tokenizer,
        )
        if is_template_source(template := prompts.chat_template or ""):
            text = prompts.in_template(template)
            (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
            prompts = prompts.beyond_template()
        left_out = complete_generation_config(folder, options)
        write_merged_from(
            folder, {**of_adapter(Path(ckpt_path), saved.tensors), "base_model": base}
        )
        if verify:
            (folder / UNVERIFIED).write_text(UNFINISHED)
    for what in left_out:
        print(f"generation_config.json of {base} is not valid, and is written without {what}")
    files = sorted(Path(out).glob("*.safetensors"))
    print(
        f"merged: {out}, {len(files)} x safetensors, {sum(f.stat().st_size for f in files):,} bytes"
    )
    if said := str(prompts):
        print(f"it was trained with prompts of another form, to be given where it answers: {said}")
    if not verify:
        return
    limit = max_logit_difference or max(THRESHOLDS[d] for d in _dtypes(files))
    given: dict[str, Any] = {"quantization": quantization, "saved": saved, "threshold": limit}
    found = compare(out, base, ckpt_path, sample, device, options, **given)
    settle(Path(out, UNVERIFIED), out, found, limit)


def _dtypes(files: list[Path]) -> set[torch.dtype]:
    from peft_lightning.base_model.weights import stored_tensors

    dtypes = {tensor.dtype for file in files for tensor in stored_tensors(file).values()}
    return {dtype for dtype in dtypes if dtype.is_floating_point}
