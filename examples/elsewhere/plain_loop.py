"""A torch loop over an HF model with an adapter: ``python plain_loop.py BASE ROWS FOLDER``."""

import sys

import torch
from transformers import AutoModelForCausalLM

from peft_lightning import LoRA, SFTDataModule, load_tokenizer, save_adapter

BASE, ROWS, FOLDER = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
adapter = LoRA(r=8)
adapter.attach(model)
trained = [p for p in model.parameters() if p.requires_grad]
tokenizer = load_tokenizer(BASE)
data = SFTDataModule(train=ROWS, tokenizer=tokenizer, layout="padded", val_fraction=0)
data.setup("fit")
optimizer = torch.optim.AdamW(trained, lr=adapter.learning_rate, weight_decay=0.0)
for batch in data.train_dataloader():
    loss = model(**adapter.prepare_inputs(model, batch)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.4f}")
save_adapter(adapter, model, FOLDER)
