"""Gradients of the adapter against HF PEFT's in float64, on the benchmark's rows.

    python scripts/benchmarks/gradients.py [--rows 3]

LoRA with random ``A`` and ``B`` over the base rounded to bfloat16, so that every precision computes
with the same numbers. Each variant runs in a process of its own. The last line is a JSON object:
the relative error of the worst tensor and of all tensors together, by variant.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import workload

MODEL = "~/.cache/peft_lightning/models/SmolLM2-135M-Instruct"
VARIANTS = {"ours": ("fp64", "fp32", "bf16"), "peft": ("fp32", "bf16")}
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
DEVIATION = 0.02  # of lora_B: an update of about the size that training makes


def main() -> None:
    """Run the reference and each variant, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a model's folder or hub id")
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--variant", help="run this one and write its gradients to --out")
    parser.add_argument("--out")
    options = parser.parse_args()
    options.model = str(Path(options.model).expanduser())
    if options.variant:
        name, precision = options.variant.split()
        save_file({"ours": ours, "peft": peft}[name](precision, options), options.out)
        return
    errors = measure(options.model, options.rows)
    print("| variant | worst tensor | all tensors |", "|---|---:|---:|", sep="\n")
    for variant, error in errors.items():
        print(f"| {variant} | {error['worst']:.1e} | {error['all']:.1e} |")
    print(json.dumps(errors))


def measure(model: str, rows: int = 3) -> dict[str, dict[str, float]]:
    """Return the relative errors of every variant's gradients."""
    with tempfile.TemporaryDirectory() as folder:

        def gradients(variant: str) -> dict[str, Tensor]:
            out = str(Path(folder, "gradients.safetensors"))
            command = [sys.executable, __file__, "--model", model, "--rows", str(rows)]
            subprocess.run([*command, "--variant", variant, "--out", out], check=True)
            return load_file(out)

        reference = gradients("peft fp64")
        return {
            f"{name} {precision}": error(gradients(f"{name} {precision}"), reference)
            for name, precisions in VARIANTS.items()
            for precision in precisions
        }


def error(found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Return the error of the worst tensor, and of all, each relative to its reference's norm."""
    assert found.keys() == reference.keys()
    gaps = {name: (found[name] - reference[name]).norm() for name in reference}
    norms = {name: reference[name].norm() for name in reference}
    worst = max(float(gaps[name] / norms[name]) for name in reference)
    whole = torch.stack(list(gaps.values())).norm() / torch.stack(list(norms.values())).norm()
    return {"worst": worst, "all": float(whole)}


@torch.no_grad()
def prepare(model: Any, precision: str) -> None:
    """Round the base to bfloat16, draw ``lora_B``, and cast to the precision."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters(), key=lambda item: _plain(item[0])):
        if "lora_B" in name:
            parameter.normal_(std=DEVIATION, generator=generator)
        elif "lora_A" not in name:
            parameter.copy_(parameter.bfloat16())
    if precision != "bf16":  # there the base is loaded so, and the adapter stays float32
        model.to(DTYPES[precision])


def ours(precision: str, options: argparse.Namespace) -> dict[str, Tensor]:
    """Return the gradients of a flat batch through ``CausalLMModule.nll``."""
    import numpy as np

    from peft_lightning import CausalLMModule, LoRA
    from peft_lightning.data.collate import flat_collate

    torch.manual_seed(0)
    lora = LoRA(r=16, lora_alpha=32, target_modules="all-linear")
    half = precision == "bf16"
    module = CausalLMModule(options.model, lora, dtype="bfloat16" if half else "float32")
    module.configure_model()
    prepare(module.model, precision)
    rows = [(np.array(p + a), np.array([-100] * len(p) + a)) for p, a in _rows(options)]
    batch = flat_collate([{"input_ids": ids, "labels": labels} for ids, labels in rows])
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        nll, tokens = module.nll(batch)
    (nll / tokens).backward()
    return _gradients(module.model)


def peft(precision: str, options: argparse.Namespace) -> dict[str, Tensor]:
    """Return the gradients of the mean loss of HF PEFT's model, row by row."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    prepare(model, precision)
    rows = _rows(options)
    tokens = sum(len(answer) for _, answer in rows)
    for prompt, answer in rows:
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = torch.nn.functional.cross_entropy(wide, torch.tensor(answer), reduction="sum")
        (loss / tokens).backward()
    return _gradients(model)


def _rows(options: argparse.Namespace) -> list[workload.Row]:
    from transformers import AutoTokenizer

    return workload.rows(AutoTokenizer.from_pretrained(options.model), options.rows)


def _gradients(model: Any) -> dict[str, Tensor]:
    named = ((_plain(n), p.grad) for n, p in model.named_parameters() if p.requires_grad)
    return {name: grad.double().contiguous() for name, grad in named if grad is not None}


def _plain(name: str) -> str:
    """Return a parameter's name without what HF PEFT puts into it."""
    return name.removeprefix("base_model.model.").replace(".default", "")


if __name__ == "__main__":
    main()
