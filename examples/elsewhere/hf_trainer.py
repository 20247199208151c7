"""An adapter in HF's ``Trainer``: ``python hf_trainer.py BASE ROWS FOLDER``."""

import sys

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from peft_lightning import LoRA, SFTDataModule, load_tokenizer, read_adapter, save_adapter

BASE, ROWS, FOLDER = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
adapter = LoRA(r=8)
adapter.attach(model)
data = SFTDataModule(train=ROWS, tokenizer=load_tokenizer(BASE), layout="padded", val_fraction=0)
data.setup("fit")


class Saving(Trainer):
    """Reads our batches, and saves and loads the adapter alone: not the base."""

    def get_train_dataloader(self):
        return data.train_dataloader()

    def _save(self, output_dir=None, state_dict=None):
        save_adapter(adapter, self.model, output_dir)

    def _load_from_checkpoint(self, folder, model=None):
        adapter.load_state_dict(self.model, read_adapter(folder).tensors)


args = TrainingArguments(FOLDER, max_steps=5, learning_rate=adapter.learning_rate, use_cpu=True)
trainer = Saving(model, args)
trainer.train()  # with resume_from_checkpoint=True it continues from the last checkpoint
save_adapter(adapter, model, f"{FOLDER}/adapter")
