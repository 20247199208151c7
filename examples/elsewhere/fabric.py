"""An adapter on an HF model in Lightning Fabric: ``python fabric.py BASE ROWS FOLDER``."""

import sys

import torch
from lightning.fabric import Fabric
from transformers import AutoModelForCausalLM

from peft_lightning import LoRA, SFTDataModule, load_tokenizer, save_adapter

BASE, ROWS, FOLDER = sys.argv[1:]
fabric = Fabric(accelerator="cpu", devices=1)
fabric.launch()
base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
adapter = LoRA(r=8)
adapter.attach(base)
trained = [p for p in base.parameters() if p.requires_grad]
model, optimizer = fabric.setup(base, torch.optim.AdamW(trained, lr=adapter.learning_rate))
data = SFTDataModule(train=ROWS, tokenizer=load_tokenizer(BASE), layout="padded", val_fraction=0)
data.setup("fit")
for batch in data.train_dataloader():  # of this process
    loss = model(**adapter.prepare_inputs(base, fabric.to_device(batch))).loss
    fabric.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    fabric.print(f"loss {loss.item():.4f}")
if fabric.is_global_zero:
    save_adapter(adapter, base, FOLDER)
