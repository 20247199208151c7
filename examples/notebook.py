# %% [markdown]
# # LoRA in a notebook: no Lightning loop, no configuration file
#
# An adapter acts on any causal LM of transformers. Run the cells in order, or the whole file:
# `python examples/notebook.py [BASE_MODEL [ROWS]]`.

# %%
import sys

import torch

from peft_lightning import (
    LoRA,
    SFTDataModule,
    load_adapter,
    load_base_model,
    load_tokenizer,
    save_adapter,
)
from peft_lightning.inference.generate import generate_texts

BASE = "~/.cache/peft_lightning/models/SmolLM2-135M-Instruct"  # from scripts/get_smollm2.py
ROWS = "examples/home_assistant/train.jsonl"
given = [a for a in sys.argv[1:3] if a[0] != "-" and not a.endswith(".json")]  # not a kernel's
BASE, ROWS = [*given, *[BASE, ROWS][len(given) :]]

# %% The frozen base, and what it answers.
torch.manual_seed(0)
tokenizer = load_tokenizer(BASE)
model = load_base_model(BASE, dtype="float32")
PROMPT = "could you warm up the kitchen a bit"


def answer(prompt: str, adapter: LoRA | None) -> str:
    """Return the greedy answer to ``prompt``."""
    return generate_texts(model, adapter, tokenizer, [prompt], 40)[0]


print(answer(PROMPT, None))

# %% An adapter in it. Only the adapter's tensors require a gradient.
adapter = LoRA(r=8, lora_alpha=16, target_modules="all-linear")
adapter.attach(model)
trained = [p for p in model.parameters() if p.requires_grad]
print(f"{sum(p.numel() for p in trained):,} of {model.num_parameters():,} parameters are trained")

# %% Rows as batches: chat template, loss on the answers only, padding.
data = SFTDataModule(train=ROWS, tokenizer=tokenizer, batch_size=4, layout="padded", val_fraction=0)
data.setup("fit")
batches = list(data.train_dataloader())[:20]

# %% A plain training loop.
optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
for step, batch in enumerate(batches):
    loss = model(**adapter.prepare_inputs(model, batch)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 5 == 0:
        print(f"step {step:2}  loss {loss.item():.3f}")

# %% What it answers now.
model.eval()  # switches the adapter's dropout off; the base is in eval mode all along
answered = answer(PROMPT, adapter)
print(answered)

# %% Save the adapter, take it out, and load it again: the base is as it was in between.
save_adapter(adapter, model, "runs/notebook/adapter", tokenizer=tokenizer)
adapter.detach(model)
adapter = load_adapter(model, "runs/notebook/adapter")
assert answer(PROMPT, adapter) == answered

# %% [markdown]
# HF PEFT reads the same folder (`pip install peft`):

# %%
# from peft import PeftModel
#
# base = load_base_model(BASE, dtype="float32")
# theirs = PeftModel.from_pretrained(base, "runs/notebook/adapter")
# from peft_lightning.data import encode_prompt
# prompt = torch.tensor([encode_prompt(tokenizer, PROMPT)])
# difference = theirs(prompt).logits - model(prompt).logits
# print("HF PEFT's logits differ from ours by at most", difference.abs().max().item())
