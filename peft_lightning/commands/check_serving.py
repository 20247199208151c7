"""``python -m peft_lightning check-serving``: which programs serve an adapter, what to change."""

from __future__ import annotations

import json as json_module


def check_serving(
    ckpt_path: str,
    /,
    *,
    base_model: str | None = None,
    json: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Tell whether vLLM, transformers and llama.cpp serve an adapter, and what to change if not.

    Args:
        ckpt_path: Folder of an adapter or checkpoint, or OWNER/NAME@REVISION on the hub.
        base_model: Base model, if not the one that the adapter names; only its config is read.
        json: Print everything as one JSON object.
        trust_remote_code: Whether code that comes with the model may run.
    """
    from peft_lightning.export.serving import judge_folder
    from peft_lightning.hub import adapter_folder

    found, base_is_known = judge_folder(adapter_folder(ckpt_path), base_model, trust_remote_code)
    if found is None:
        print(f"{ckpt_path} is a whole model: vLLM and transformers load it as any model's folder")
        print("llama.cpp: python -m peft_lightning export CKPT OUT.gguf --type model")
        return
    if json:
        print(json_module.dumps({name: vars(verdict) for name, verdict in found.items()}, indent=2))
        return
    for name, verdict in found.items():
        print(f"{name}: {'yes' if verdict.accepted else 'no'}")
        for line in (*verdict.problems, *verdict.notes):
            print(f"  {line}")
    if not base_is_known:
        print(
            "the config of the base model was not found, so its architecture was not checked: "
            "give --base_model"
        )
