"""New tokens of a model whose output embedding has a bias."""

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peft_lightning import CausalLMModule, LoRA
from peft_lightning.adapters import save_adapter
from peft_lightning.data.collate import flat_collate
from tiny_configs import tiny_config
from tiny_run import byte_tokenizer


def test_a_whole_head_with_a_bias_grows_with_the_new_tokens(tmp_path):
    config = tiny_config("phi")
    config.vocab_size = len(byte_tokenizer())
    base = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(base.lm_head.bias)
    base.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    adapter = LoRA(r=2, new_tokens=["<a>"], modules_to_save=["lm_head"], init_lora_weights=False)
    module = CausalLMModule(str(tmp_path / "base"), adapter)
    module.configure_model()
    ids = torch.tensor([5, 260, 9, 260, 7])
    batch = flat_collate([{"input_ids": ids.numpy(), "labels": ids.numpy()}])
    module.nll(batch)[0].backward()
    assert module.model.lm_head.modules_to_save.bias.grad.all()
    save_adapter(module.adapter, module.model, tmp_path / "saved", tokenizer=module.tokenizer)
    resized = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    resized.resize_token_embeddings(261)
    for model in (PeftModel.from_pretrained(resized, tmp_path / "saved"), module.model):
        logits = model.eval()(input_ids=ids[None]).logits[0, :-1]
        assert logits.shape[-1] == 261
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
        torch.testing.assert_close(module.nll(batch)[0], expected, rtol=1e-4, atol=1e-4)
