"""``python -m peft_lightning check-serving``: which programs serve an adapter, what to change."""

from __future__ import annotations

import json as json_module
from dataclasses import replace


def check_serving(
    ckpt_path: str,
    /,
    *,
    base_model: str | None = None,
    load: bool = True,
    json: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> None:
    """Tell whether vLLM, transformers and llama.cpp serve an adapter, and what to change if not.

    Where HF PEFT or llama.cpp is installed, and the base model is on this machine, the adapter is
    loaded in it, and its logits are compared; of all else the verdict is by the program's rules.

    Args:
        ckpt_path: Folder of an adapter or checkpoint, or OWNER/NAME@REVISION on the hub.
        base_model: Base model, if not the one that the adapter names.
        load: Whether to load it; this takes the memory of the base in float32, for llama.cpp the
            disk too. Without, only the config of the base is read.
        json: Print everything as one JSON object.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of the base model's hub id.
    """
    from peft_lightning.adapters.folder import read_adapter_config
    from peft_lightning.base_model.resolve import is_at_hand
    from peft_lightning.export.loaded_serving import load_verdicts, too_large
    from peft_lightning.export.serving import judge_folder
    from peft_lightning.hub import adapter_folder
    from peft_lightning.messages import UserError

    folder = adapter_folder(ckpt_path)
    found, base_is_known = judge_folder(folder, base_model, trust_remote_code)
    if found is None:
        print(f"{ckpt_path} is a whole model: vLLM and transformers load it as any model's folder")
        print("llama.cpp: python -m peft_lightning export CKPT OUT.gguf --type model")
        return
    why_not = None
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    try:
        base = base_model or read_adapter_config(folder)[1]["base_model"]
        here = load and base_is_known and is_at_hand(base, revision)
        if here and (reason := too_large(base, options)):
            why_not = f"it was not loaded: {reason}"
        elif here:
            with_llama = found["llama.cpp"].accepted is True
            for name, verdict in load_verdicts(folder, base, options, with_llama).items():
                notes = [*(found[name].notes if verdict.accepted is not False else [])]
                tried = found[name] if verdict.accepted is None else verdict
                found[name] = replace(tried, notes=[*notes, *verdict.notes])
    except UserError as error:
        why_not = f"it was not loaded: {error}"
        for name, verdict in found.items():
            if verdict.accepted:  # rules that do not know what is wrong say nothing
                reason = "it could not be loaded here"
                found[name] = replace(verdict, accepted=None, notes=[], unknown=reason)
    if json:
        print(json_module.dumps({name: vars(verdict) for name, verdict in found.items()}, indent=2))
        return
    for name, verdict in found.items():
        print(f"{name}: {verdict}")
        for line in (*verdict.problems, *verdict.notes):
            print(f"  {line}")
    if why_not:
        print(why_not)
    if not base_is_known:
        print(
            "the config of the base model was not found, so its architecture was not checked: "
            "give --base_model"
        )
