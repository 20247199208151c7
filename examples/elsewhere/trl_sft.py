"""An adapter in TRL's ``SFTTrainer``: ``python trl_sft.py BASE ROWS FOLDER``."""

import sys

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from peft_lightning import LoRA, load_tokenizer, save_adapter

BASE, ROWS, FOLDER = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
adapter = LoRA(r=8)
adapter.attach(model)


class Saving(SFTTrainer):
    """Saves the adapter alone: not the base."""

    def _save(self, output_dir=None, state_dict=None):
        save_adapter(adapter, self.model, output_dir)


rows = load_dataset("json", data_files=ROWS, split="train")
args = SFTConfig(FOLDER, max_steps=5, learning_rate=adapter.learning_rate, use_cpu=True, bf16=False)
trainer = Saving(model, args, train_dataset=rows, processing_class=load_tokenizer(BASE))
trainer.train()
save_adapter(adapter, model, f"{FOLDER}/adapter")
