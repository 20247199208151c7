"""``CausalLMModule`` with loaders of one's own: padded batches, or a stream: BASE ROWS FOLDER."""

import json
import sys
from pathlib import Path

from torch.utils.data import DataLoader, IterableDataset
from transformers import DataCollatorForSeq2Seq

from peft_lightning import CausalLMModule, LoRA, Trainer, load_tokenizer

BASE, ROWS, FOLDER = sys.argv[1:]
tokenizer = load_tokenizer(BASE)


class Stream(IterableDataset):
    """Rows as token ids and labels."""

    def __iter__(self):
        for line in Path(ROWS).read_text().splitlines():
            row = json.loads(line)
            prompt = tokenizer(row["prompt"])["input_ids"]
            answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
            yield {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


collate = DataCollatorForSeq2Seq(tokenizer)  # pads, and adds the attention_mask
rows = list(Stream())
module = CausalLMModule(BASE, LoRA(r=8))
options = {"accelerator": "cpu", "logger": False, "default_root_dir": FOLDER}
loader = DataLoader(rows, batch_size=4, collate_fn=collate, shuffle=True)
Trainer(max_epochs=1, **options).fit(module, loader)
Trainer(max_steps=5, **options).fit(module, DataLoader(Stream(), batch_size=4, collate_fn=collate))
