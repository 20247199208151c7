"""``python -m peft_lightning export``: an adapter, or the merged model, as a GGUF file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from peft_lightning.messages import UserError, check_choice

FORMATS = ("gguf",)
TYPES = ("adapter", "model")  # the values of general.type in a GGUF file


def export(
    ckpt_path: str,
    out: str,
    /,
    type: str = "adapter",
    format: str = "gguf",
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
    overwrite: bool = False,
) -> None:
    """Write a GGUF file for llama.cpp, Ollama and others: a LoRA alone, or the merged model.

    For Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi 3, SmolLM 3, Granite, OLMo 2, StarCoder 2,
    GPT-2, GPT-NeoX and Falcon. A model is then loaded and compared, as in the command merge; if it
    differs, the file OUT.UNVERIFIED gives the reason. A Modelfile beside it is for Ollama, with
    template, stop words and system prompt.

    Args:
        ckpt_path: Folder of an adapter or checkpoint, or OWNER/NAME@REVISION on the hub; with
            --type model also the folder of a model.
        out: The .gguf file to write.
        type: adapter: the LoRA alone, for llama.cpp's --lora together with the base's GGUF file;
            model: the base merged with the adapter, and its tokenizer.
        format: gguf, the only one.
        base_model: Base model, if not the one that the adapter names: hub id, folder or GGUF file.
        dtype: auto (float32 for an adapter, the base's for a model), float32, bfloat16 or float16;
            for a model also q8_0, and by llama.cpp's quantizer, if the extra llama is installed,
            q6_k, q5_k_m, q4_k_m, q3_k_m, q2_k, iq4_xs and others.
        tokenizer_pre: llama.cpp's name of the pre-tokenizer, such as llama-bpe; without, it is
            found from the tokenizer.
        verify: Whether to compare a model with the base and its adapter; this takes the memory of
            both in float32.
        max_logit_difference: Largest allowed difference of a logit, as in merge.
        text: Text file to compare on; without, a built-in text.
        device: Where to compare: auto (the GPU if there is one), cpu, cuda, cuda:1 ...
        allow_base_mismatch: Export even if the adapter was trained on another base model.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
        overwrite: Replace the file if it is one that this command wrote.
    """
    check_choice("type", type, TYPES)
    check_choice("format", format, FORMATS)
    if not out.endswith(".gguf") or Path(out).is_dir():
        raise UserError(f"out must be a file's name that ends in .gguf, got {out!r}")
    import torch

    from peft_lightning.base_model.load import DTYPES, find_device
    from peft_lightning.data import PromptFormat
    from peft_lightning.export import llama_cpp
    from peft_lightning.export.answering import Answering
    from peft_lightning.export.gguf_file import (
        GGUF,
        read_checkpoint,
        require_supported,
        write_adapter_file,
    )
    from peft_lightning.export.gguf_model import ModelFile
    from peft_lightning.export.ollama import MODELFILE, modelfile_of, write_modelfile
    from peft_lightning.export.unverified import (
        UNVERIFIED,
        require_max_logit_difference,
        tell_if_stopped,
    )
    from peft_lightning.export.verify import TEXT
    from peft_lightning.files import read_text, require_no_input, require_output

    check_choice("dtype", dtype, (*DTYPES, *llama_cpp.KINDS))
    quantized = dtype if dtype in llama_cpp.KINDS else None
    if quantized and type == "adapter":
        raise UserError(f"a LoRA is stored in {', '.join(DTYPES[1:])}: {dtype} needs --type model")
    if quantized not in (None, "q8_0"):
        llama_cpp.require_installed(dtype)
    device = find_device(device)
    require_max_logit_difference(max_logit_difference)
    sample = TEXT if text is None else read_text(text)
    wanted = None if dtype == "auto" or quantized else getattr(torch, dtype)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    inputs = [ckpt_path, base_model, text]
    require_output(out, GGUF, inputs, overwrite)
    require_output(modelfile_of(out), MODELFILE, inputs, overwrite=True)
    tell_if_stopped(out, Path(f"{out}.{UNVERIFIED}"))
    base, folder, saved = read_checkpoint(ckpt_path, base_model)
    require_no_input(out, [base])
    prompts = PromptFormat() if saved is None else PromptFormat.of_folder(saved.facts, folder)
    held = replace(prompts.beyond_template(), system_prompt=None)  # the rest is in the files
    if said := str(held):
        print(f"it was trained with prompts of another form, to be given where it answers: {said}")
    if type == "adapter":
        write_adapter_file(Path(out), base, folder, saved, wanted, allow_base_mismatch, options)
        print(f"exported: {out}; use it as llama-cli -m BASE.gguf --lora {out}")
        try:
            asked = Answering.of(base, prompts, options, folder, saved)
            print(write_modelfile(Path(out), asked, is_adapter=True))
        except UserError as error:
            print(f"no Modelfile is written: {error}")
        return
    require_supported(base, folder, prompts, tokenizer_pre, options)
    file = ModelFile(base, folder, saved, options, prompts, allow_base_mismatch, tokenizer_pre)
    if verify:
        file.verify_on(sample, device, max_logit_difference)
    file.write(Path(out), wanted, quantized)
