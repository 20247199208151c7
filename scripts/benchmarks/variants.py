"""One variant of the benchmark in this process: ``python variants.py NAME OPTIONS``, JSON out.

Every variant trains the same adapter from the same start (a seed is set before it is drawn, as HF
PEFT and we draw alike) on the same rows, and reports each step's wall and CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
import workload

PROMPT_TOKENS = 16


class Clock:
    """Wall and CPU seconds of each step, and its loss."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[int] = []  # useful ones, of a variant that makes its own batches
        self._start = (0.0, 0.0)

    def start(self) -> None:
        """Begin a step."""
        self._wait()
        self._start = time.perf_counter(), time.process_time()

    def stop(self, loss: float) -> None:
        """End a step whose mean loss over labelled tokens was ``loss``."""
        self._wait()
        self.wall.append(time.perf_counter() - self._start[0])
        self.cpu.append(time.process_time() - self._start[1])
        self.losses.append(loss)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Run one variant and print its measurements as the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=VARIANTS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the adapter and the rows")
    parser.add_argument("--longest", type=int, default=400, help="tokens of the longest row")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    count = options.steps, options.batch_size
    batches = workload.batches(tokenizer, *count, options.seed, options.longest)
    clock = Clock(options.device)
    VARIANTS[options.name](options, tokenizer, batches, clock)
    lengths = [[len(p) + len(a) for p, a in batch] for batch in batches]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    result = {
        "wall": clock.wall,
        "cpu": clock.cpu,
        "losses": clock.losses,
        "tokens": clock.tokens or [sum(batch) for batch in lengths],
        "labelled": [sum(len(a) for _, a in batch) for batch in batches],
        "peak_bytes": peak,
    }
    print(json.dumps(result))


# ---- ours -------------------------------------------------------------------------------------


def ours(options: Any, tokenizer: Any, batches: Any, clock: Clock, **module: Any) -> None:
    """CausalLMModule in Lightning's Trainer, with every callback that a run has."""
    import lightning as L
    import numpy as np
    from lightning.pytorch.callbacks import Callback
    from torch.utils.data import DataLoader

    from peft_lightning import CausalLMModule, Constant, LoRA
    from peft_lightning.data.collate import flat_collate

    class Timer(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            clock.start()

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            clock.stop(trainer.callback_metrics["train/loss"].item())

    def flat(batch: list[workload.Row]) -> Any:
        arrays = [(np.array(p + a), np.array([-100] * len(p) + a)) for p, a in batch]
        return flat_collate([{"input_ids": ids, "labels": labels} for ids, labels in arrays])

    torch.manual_seed(options.seed)
    adapter = module.pop("adapter", LoRA(r=16, lora_alpha=32, target_modules="all-linear"))
    half = options.precision == "bf16"
    model = CausalLMModule(
        options.model,
        adapter,
        learning_rate=options.rate,
        lr_schedule=Constant(),
        dtype="bfloat16" if half else "float32",
        **module,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="gpu" if options.device == "cuda" else "cpu",
            devices=1,
            max_epochs=1,
            precision="bf16-mixed" if half else "32-true",
            callbacks=[Timer()],
            logger=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        trainer.fit(model, DataLoader([flat(b) for b in batches], batch_size=None))  # type: ignore[arg-type]


def ours_recomputed(*args: Any) -> None:
    """The same with activation checkpointing."""
    ours(*args, activation_checkpointing=True)


def ours_without_kernels(*args: Any) -> None:
    """The same by torch's operations alone, as where there is no C++ compiler."""
    os.environ["PEFT_LIGHTNING_KERNELS"] = "off"
    ours(*args)


def ours_prompt(*args: Any) -> None:
    """Prompt tuning."""
    from peft_lightning import PromptTuning

    ours(*args, adapter=PromptTuning(num_virtual_tokens=PROMPT_TOKENS))


# ---- HF PEFT in a plain loop ------------------------------------------------------------------


def peft_model(options: Any, prompt: bool = False, attention: str | None = None) -> Any:
    """Return the base with HF PEFT's adapter in it.

    Args:
        options: Of the process.
        prompt: Whether the adapter is prompt tuning instead of LoRA.
        attention: transformers' name of an attention; None for its own choice, sdpa.
    """
    from peft import LoraConfig, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    place = {"device_map": {"": options.device}} if options.device == "cuda" else {}
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=dtype, attn_implementation=attention, **place
    )
    torch.manual_seed(options.seed)
    config: Any = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    if prompt:
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPT_TOKENS)
    return get_peft_model(model, config).to(options.device).train()


def plain_loop(
    options: Any, batches: Any, clock: Clock, model: Any, loss_of: Callable[[Any, Any], Any]
) -> None:
    """Train ``model`` with AdamW, one optimizer step for each batch.

    On a GPU in bf16 under autocast, as HF's Trainer runs it: without, the products of HF PEFT's
    float32 adapter are float32's, many times slower there.
    """
    half = options.device == "cuda" and options.precision == "bf16"
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.rate, weight_decay=0.0, fused=True)
    for batch in batches:
        clock.start()
        with torch.autocast(options.device, torch.bfloat16, enabled=half):
            loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.stop(loss.item())


def padded(batch: list[workload.Row], device: str) -> dict[str, Any]:
    """Return a batch padded on the right."""
    width = max(len(p) + len(a) for p, a in batch)

    def column(values: Iterator[list[int]], pad: int) -> Any:
        rows = [row + [pad] * (width - len(row)) for row in values]
        return torch.tensor(rows, device=device)

    return {
        "input_ids": column((p + a for p, a in batch), 0),
        "attention_mask": column(([1] * (len(p) + len(a)) for p, a in batch), 0),
        "labels": column(([-100] * len(p) + a for p, a in batch), -100),
    }


def peft_padded(options: Any, tokenizer: Any, batches: Any, clock: Clock) -> None:
    """Padded batches and the model's own loss."""
    plain_loop(
        options,
        batches,
        clock,
        peft_model(options),
        lambda model, batch: model(**padded(batch, options.device)).loss,
    )


def peft_prompt(options: Any, tokenizer: Any, batches: Any, clock: Clock) -> None:
    """Prompt tuning, padded: HF PEFT cannot pack it."""
    plain_loop(
        options,
        batches,
        clock,
        peft_model(options, prompt=True),
        lambda model, batch: model(**padded(batch, options.device)).loss,
    )


def peft_packed(
    options: Any, tokenizer: Any, batches: Any, clock: Clock, attention: str | None = None
) -> None:
    """Rows end to end, told apart by their positions; logits at the labelled tokens only."""

    def loss_of(model: Any, batch: list[workload.Row]) -> Any:
        ids = torch.tensor([[i for p, a in batch for i in p + a]], device=options.device)
        places = [k for p, a in batch for k in range(len(p) + len(a))]
        keep, targets, start = [], [], 0
        for prompt, answer in batch:
            start += len(prompt)
            keep += range(start - 1, start - 1 + len(answer))
            targets += answer
            start += len(answer)
        logits = model(
            input_ids=ids,
            position_ids=torch.tensor([places], device=options.device),
            logits_to_keep=torch.tensor(keep, device=options.device),
            use_cache=False,
        ).logits[0]
        return F.cross_entropy(logits.float(), torch.tensor(targets, device=options.device))

    plain_loop(options, batches, clock, peft_model(options, attention=attention), loss_of)


def peft_packed_flash(*args: Any) -> None:
    """The same with the package flash_attn, which reads the positions itself."""
    peft_packed(*args, attention="flash_attention_2")


# ---- TRL --------------------------------------------------------------------------------------


def trl(options: Any, tokenizer: Any, batches: Any, clock: Clock, **settings: Any) -> None:
    """SFTTrainer with HF PEFT, on the same tokens, loss on the answers."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Timer(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.stop(float("nan"))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
            if logs and "loss" in logs:
                clock.losses[-1] = float(logs["loss"])

    class Counting(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            clock.tokens.append(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *args, **kwargs)

    records = [
        {"input_ids": p + a, "completion_mask": [0] * len(p) + [1] * len(a)}
        for batch in batches
        for p, a in batch
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=options.batch_size,
            num_train_epochs=1,
            learning_rate=options.rate,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=options.device == "cpu",
            bf16=options.precision == "bf16",
            completion_only_loss=True,
            **settings,
        )
        torch.manual_seed(options.seed)
        trainer = Counting(
            model=options.model,
            args=config,
            train_dataset=Dataset.from_list(records),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
            callbacks=[Timer()],
        )
        trainer.train()


def trl_default(*args: Any) -> None:
    """Its defaults: random batches, gradient checkpointing."""
    trl(*args)


def trl_sequential(*args: Any) -> None:
    """Its defaults, with the rows in their order."""
    trl(*args, train_sampling_strategy="sequential")


def trl_grouped(options: Any, tokenizer: Any, batches: Any, clock: Clock) -> None:
    """Rows of similar length together, no checkpointing.

    Not by transformers' ``group_by_length``, which finds nothing to group in so few rows.
    """
    count = len(batches), options.batch_size
    rows = workload.grouped_batches(tokenizer, *count, options.seed, options.longest)
    settings = {"train_sampling_strategy": "sequential", "gradient_checkpointing": False}
    trl(options, tokenizer, rows, clock, **settings)


# ---- litgpt -----------------------------------------------------------------------------------


def litgpt(options: Any, tokenizer: Any, batches: Any, clock: Clock) -> None:
    """Litgpt's LoRA model, its chunked loss, padded; random weights of the same shape."""
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    from litgpt.utils import chunked_cross_entropy

    places = ("query", "key", "value", "projection", "mlp", "head")
    lora = {f"lora_{place}": place != "head" for place in places}
    config = Config.from_name("SmolLM2-135M-Instruct", lora_r=16, lora_alpha=32, **lora)
    torch.manual_seed(options.seed)
    model = GPT(config).to(options.device)
    if options.precision == "bf16":
        model = model.bfloat16()  # as its bf16-true, the setting of its own configurations
    mark_only_lora_as_trainable(model)
    model.max_seq_length = max(len(p) + len(a) for batch in batches for p, a in batch)

    def loss_of(model: Any, batch: list[workload.Row]) -> Any:
        columns = padded(batch, options.device)
        logits = model(columns["input_ids"], lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        return chunked_cross_entropy(logits, columns["labels"][..., 1:])

    plain_loop(options, batches, clock, model, loss_of)


VARIANTS = {
    f.__name__: f
    for f in (
        *(ours, ours_recomputed, ours_without_kernels, ours_prompt),
        *(peft_padded, peft_packed, peft_packed_flash, peft_prompt, litgpt),
        *(trl_default, trl_sequential, trl_grouped),
    )
}

if __name__ == "__main__":
    main()
