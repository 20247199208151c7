"""One epoch of training in float64, by the module and by a definition written out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from peft_lightning.adapters import LoRA
from tiny_run import byte_tokenizer, fit

RATE = 0.05


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=RATE)


def train(
    base: Path, rows: Path, root: Path, **options: Any
) -> tuple[L.Trainer, dict[str, Tensor]]:
    """Train a LoRA for one epoch with plain SGD, without shuffling; return its tensors."""
    data = {"val_fraction": 0, "shuffle": False, **options.pop("data", {})}
    from peft_lightning.training.schedules import Constant

    module = {"optimizer": sgd, "lr_schedule": Constant(), **options.pop("module", {})}
    trainer = fit(
        base,
        rows,
        root,
        adapter=LoRA(r=2, init_lora_weights=False),
        data=data,
        module=module,
        **{"precision": "64-true", "max_epochs": 1, "enable_checkpointing": False, **options},
    )
    return trainer, {k: v.clone() for k, v in trainer.lightning_module.state_dict().items()}


def defined(
    base: Path,
    rows: Path,
    steps: list[int],
    clip: Callable[[tuple[Tensor, ...]], list[Tensor]] | None = None,
    weight_of: Callable[[dict[str, Any]], float] = lambda record: 1.0,
) -> dict[str, Tensor]:
    """Train by the definition: each step's gradient is that of the mean over all its tokens.

    Every row goes through transformers' own forward alone, with its loss on the answer and the
    end-of-turn token. The mean is weighted: its divisor is the sum of the tokens' weights.

    Args:
        base: The model's folder.
        rows: The file of rows.
        steps: How many rows each optimizer step has.
        clip: What becomes of a step's gradients before the update.
        weight_of: The weight in the loss of each token of a record's answer.
    """
    L.seed_everything(0, verbose=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    adapter = LoRA(r=2, init_lora_weights=False)
    adapter.attach(model)
    model.double()
    tokenizer = byte_tokenizer()
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    parameters = [p for p in model.parameters() if p.requires_grad]
    for count in steps:
        total, tokens = torch.zeros((), dtype=torch.float64), 0.0
        for record in records[:count]:
            prompt = f"<|im_start|>user\n{record['prompt']}<|im_end|>\n<|im_start|>assistant\n"
            start = len(tokenizer(prompt)["input_ids"])
            ids = tokenizer(f"{prompt}{record['completion']}<|im_end|>\n")["input_ids"]
            logits = model(torch.tensor([ids])).logits[0]
            answer = ids[start:-1]  # all but the line break after the end of the turn
            nll = F.cross_entropy(
                logits[start - 1 : start - 1 + len(answer)], torch.tensor(answer), reduction="sum"
            )
            total = total + weight_of(record) * nll
            tokens += weight_of(record) * len(answer)
        records = records[count:]
        grads = torch.autograd.grad(total / tokens, parameters)
        grads = grads if clip is None else clip(grads)
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter -= RATE * grad
    return {k: v.clone() for k, v in adapter.state_dict(model).items()}
