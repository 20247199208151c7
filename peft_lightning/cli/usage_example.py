"""The code of a model card: it loads what the card is of, asks it and prints the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CODE = """\
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")
model = AutoModelForCausalLM.from_pretrained("{base}")
{load}
prompt = "Hello"
{template}inputs = tokenizer(prompt, {options}return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_TEMPLATE = """\
messages = {messages}
if tokenizer.chat_template:
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
"""


def usage_example(
    folder: Path, facts: Mapping[str, Any], is_whole: bool, base: str, place: str
) -> str:
    """Return the section of a card that shows how to use the model, in Markdown.

    Args:
        folder: What the card is of.
        facts: Content of the adapter's ``peft_lightning.json``.
        is_whole: Whether it is a model, and not an adapter.
        base: The base model.
        place: Where the model or adapter will be: OWNER/NAME.
    """
    prompts = facts.get("prompts", {})
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    load = "" if is_whole else f'model = PeftModel.from_pretrained(model, "{place}")\n'
    if facts.get("new_tokens") and not is_whole:
        load = f"model.resize_token_embeddings(len(tokenizer))\n{load}"
    template, options = "", ""
    if prompts.get("chat_template") != "none":
        messages = [{"role": "user", "content": "Hello"}]
        if system := prompts.get("system_prompt"):
            messages.insert(0, {"role": "system", "content": system})
        template = _TEMPLATE.format(messages=json.dumps(messages, ensure_ascii=False))
        options = "add_special_tokens=not tokenizer.chat_template, "
    code = _CODE.format(
        imports="" if is_whole else "from peft import PeftModel\n",
        tokenizer=place if is_whole or has_tokenizer else base,
        base=place if is_whole else base,
        load=load,
        template=template,
        options=options,
    )
    ask = "--base_model" if is_whole else "--ckpt_path"
    return (
        f"```python\n{code}```\n\n"
        f'```bash\npython -m peft_lightning generate {ask} {place} --prompt "Hello"\n```\n'
    )
