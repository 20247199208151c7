"""The data module and an adapter in a LightningModule of one's own: BASE ROWS FOLDER."""

import sys

import lightning as L
import torch
from transformers import AutoModelForCausalLM

from peft_lightning import LoRA, SFTDataModule, load_tokenizer, save_adapter


class Mine(L.LightningModule):
    """A model of transformers with an adapter."""

    def __init__(self, base: str):
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.adapter = LoRA(r=8)
        self.adapter.attach(self.model)

    def training_step(self, batch, batch_idx):
        return self.model(**self.adapter.prepare_inputs(self.model, batch)).loss

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.adapter.learning_rate)


BASE, ROWS, FOLDER = sys.argv[1:]
data = SFTDataModule(train=ROWS, tokenizer=load_tokenizer(BASE), layout="padded", val_fraction=0)
L.Trainer(max_epochs=1, accelerator="cpu", logger=False).fit(module := Mine(BASE), data)
save_adapter(module.adapter, module.model, FOLDER)
