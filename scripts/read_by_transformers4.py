"""Compare what transformers 4.x computes from our folders with what transformers 5 does.

    python scripts/read_by_transformers4.py PYTHON4 [name ...]

``PYTHON4`` is a Python with transformers 4.57 and torch. For tiny random models of many
architectures, and for the quick start's SmolLM2-135M-Instruct if it is there, the base, a merged
folder (streamed, and loaded whole) and a ``Full`` checkpoint are written here and read there. The
exit status is 1 if a logit or a token id differs, or transformers warns of weights.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 2e-4  # of a logit, relative to their standard deviation; float32, two versions' kernels
TEXT = "The lighthouse keeper climbed 199 steps: <|im_start|>each evening\n  ok."

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
THETA = {"rope_theta": 500.0, "rope_type": "default"}
LLAMA3 = {
    "rope_theta": 500.0,
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_theta": 500.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {
    "rope_theta": 500.0,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
BY_LAYER = {
    "full_attention": {"rope_theta": 900.0, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
}
LINEAR, DYNAMIC = ({**THETA, "rope_type": kind, "factor": 2.0} for kind in ("linear", "dynamic"))
BASES = {  # 4.57 takes one base for both kinds of ModernBERT's layers
    "full_attention": THETA,
    "sliding_attention": THETA,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {
    **EXPERTS,
    "n_routed_experts": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": THETA}),
    "llama-tied": ("llama", {"rope_parameters": THETA, "tie_word_embeddings": True}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "llama-dynamic": ("llama", {"rope_parameters": DYNAMIC}),
    "mistral": ("mistral", {"rope_parameters": THETA, "sliding_window": 8}),
    "qwen2": ("qwen2", {"rope_parameters": THETA}),
    "qwen3": ("qwen3", {"rope_parameters": YARN}),
    "gemma": ("gemma", {"rope_parameters": THETA}),
    "gemma2": ("gemma2", {"rope_parameters": THETA, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {"rope_parameters": BY_LAYER, "sliding_window": 8,
                               "layer_types": ["sliding_attention", "full_attention"]}),
    "phi": ("phi", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}),
    "phi3": ("phi3", {"rope_parameters": THETA}),
    "phi3-longrope": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 16}),
    "gpt_neox": ("gpt_neox", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("falcon", {"rope_parameters": THETA, "alibi": False, "head_dim": None}),
    "stablelm": ("stablelm", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}),
    "starcoder2": ("starcoder2", {"rope_parameters": THETA}),
    "olmo2": ("olmo2", {"rope_parameters": THETA}),
    "granite": ("granite", {"rope_parameters": THETA}),
    "cohere": ("cohere", {"rope_parameters": THETA}),
    "cohere2": ("cohere2", {"rope_parameters": THETA, "sliding_window": 8}),
    "smollm3": ("smollm3", {"rope_parameters": THETA}),
    "glm4": ("glm4", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}),
    "nemotron": ("nemotron", {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8,
         "mamba_d_state": 8, "num_local_experts": 4, "shared_intermediate_size": 24},
    ),
    "mixtral": ("mixtral", {"rope_parameters": THETA, **EXPERTS, "num_local_experts": 4}),
    "qwen2_moe": ("qwen2_moe", {"rope_parameters": THETA, **EXPERTS, "num_experts": 4}),
    "qwen3_moe": ("qwen3_moe", {"rope_parameters": THETA, **EXPERTS, "num_experts": 4}),
    "gpt_oss": ("gpt_oss", {"rope_parameters": YARN, **EXPERTS, "num_local_experts": 4}),
    "deepseek_v3": ("deepseek_v3", {"rope_parameters": THETA, **DEEPSEEK}),
    "glm4_moe": ("glm4_moe", {"rope_parameters": THETA, **DEEPSEEK}),
    "modernbert-decoder": ("modernbert-decoder", {"rope_parameters": BASES}),
}  # fmt: skip

READER = r"""
import json, sys, warnings
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for line in sys.stdin:
    folder, ids, text = json.loads(line)
    said = {}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor(ids), use_cache=False).logits
        torch.save(logits, Path(folder, "logits.pt"))
        said["weights"] = {k: sorted(map(str, v)) for k, v in info.items() if v}
        if Path(folder, "tokenizer.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            said["ids"] = tokenizer(text)["input_ids"]
            said["text"] = tokenizer.decode(said["ids"], skip_special_tokens=True)
    except Exception as error:
        said["error"] = f"{type(error).__name__}: {error}"
    print("ANSWER " + json.dumps(said), flush=True)
"""


class Reader:
    """A process with its own transformers that reads folders."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-W", "ignore", "-c", READER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
        )

    def read(self, folder: Path, ids: list[list[int]]) -> tuple[Any, dict[str, Any]]:
        """Return the logits, None if there are none, and what else it said."""
        import torch

        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(folder), ids, TEXT]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                said = json.loads(line.removeprefix("ANSWER "))
                file = folder / "logits.pt"
                return torch.load(file) if file.exists() else None, said
        raise RuntimeError("the other Python has ended")


def main(arguments: list[str]) -> int:
    """Compare all folders of all models, or of those named; return the exit status."""
    if not arguments:
        print(__doc__)
        return 2
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    here, there, names = Reader(sys.executable), Reader(arguments[0]), arguments[1:]
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name, folder, ids in written(Path(temporary), names):
            found = differences(here.read(folder, ids), there.read(folder, ids))
            wrong += bool(found)
            print(f"{name:32} {'; '.join(found)[:600] or 'the same'}", flush=True)
    print(f"{wrong} folders are read differently")
    return int(wrong > 0)


def differences(ours: tuple[Any, dict[str, Any]], theirs: tuple[Any, dict[str, Any]]) -> list[str]:
    """Return what differs between two readings of a folder."""
    (a, here), (b, there) = ours, theirs
    if said := [f"{v} {x['error']}" for v, x in ((5, here), (4, there)) if "error" in x]:
        return said
    found = []
    error = ((a - b).abs().max() / a.std()).item()
    if not error <= LARGEST:
        found.append(f"a logit differs by {error:.2g} standard deviations")
    for key in ("ids", "text", "weights"):
        if here.get(key) != there.get(key):
            found.append(f"{key}: {here.get(key)} in 5, {there.get(key)} in 4")
    return found


def written(place: Path, names: list[str]) -> Iterator[tuple[str, Path, list[list[int]]]]:
    """Yield the name, the folder and the token ids of each folder to read."""
    import torch

    from get_smollm2 import default_folder

    ids = torch.randint(3, 96, (2, 40), generator=torch.Generator().manual_seed(0)).tolist()
    for name in names or MODELS:
        if name in MODELS:
            base = tiny(place / name, *MODELS[name])
            for kind, folder in folders(base, place):
                yield f"{name} {kind}", folder, ids
    real = default_folder()
    if (not names or "smollm2" in names) and real.is_dir():
        for kind, folder in folders(real, place):
            yield f"SmolLM2-135M-Instruct {kind}", folder, ids


def tiny(folder: Path, model_type: str, options: dict[str, Any]) -> Path:
    """Write a tiny random model with a tokenizer, as transformers 5 writes them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    options = {k: v for k, v in {**SMALL, **options}.items() if v is not None}
    config = AutoConfig.for_model(model_type, **copy.deepcopy(options))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.15)
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_tokenizer(),
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
    )
    tokenizer.save_pretrained(folder)
    return folder


def folders(base: Path, place: Path) -> Iterator[tuple[str, Path]]:
    """Yield the folders that this package writes of a base: made portable, merged, and trained."""
    import shutil

    import torch

    from peft_lightning import Full, LoRA, save_adapter
    from peft_lightning.base_model import load_base_model, load_tokenizer
    from peft_lightning.base_model.portable import make_portable
    from peft_lightning.export.merged_folder import write_merged

    new = place / f"{base.name}-base"
    shutil.copytree(base, new)
    make_portable(new)
    yield "base", new
    options = {"trust_remote_code": False, "revision": None}
    for kind, extra in (("merged", {}), ("merged whole", {"bias": "none", "lora_bias": False})):
        model = load_base_model(str(base), dtype="float32")
        head = type(model.get_output_embeddings()).__name__ == "Linear"
        saved = {"modules_to_save": ["lm_head"]} if kind == "merged whole" and head else {}
        adapter = LoRA(r=2, target_modules="all-linear", **saved, **extra)
        adapter.attach(model)
        for tensor in adapter.state_dict(model).values():
            tensor.data.normal_(std=0.05)
        ckpt, out = place / "adapter", place / f"{base.name}-{kind.replace(' ', '-')}"
        save_adapter(adapter, model, ckpt)
        out.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            write_merged(out, str(ckpt), str(base), None, 10**9, True, options)
        yield kind, out
    model = load_base_model(str(base), dtype="float32")
    Full().attach(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    save_adapter(
        Full(), model, full := place / f"{base.name}-full", tokenizer=load_tokenizer(str(base))
    )
    yield "Full", full


def _byte_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(t, special=True) for t in ("<|im_end|>", "<|im_start|>")])
    return tokenizer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
