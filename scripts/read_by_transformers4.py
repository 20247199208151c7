"""Compare what transformers 4.x computes from our folders with what transformers 5 does.

    python scripts/read_by_transformers4.py PYTHON4 [name ...]

``PYTHON4`` is a Python with transformers 4.57, a peft of its time and torch. For tiny random models
of many architectures, and for the quick start's SmolLM2-135M-Instruct if it is there, the base, a
merged folder (streamed, and loaded whole), a ``Full`` checkpoint and an adapter's checkpoint are
written here and read there; so are tokenizers of several classes. The exit status is 1 if a logit,
a token id, a text or a rendered conversation differs, or transformers warns of weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiny_bases import KINDS, MODELS, tokenizer_of, write_base

LARGEST = 2e-4  # of a logit, relative to their standard deviation; float32, two versions' kernels
TEXT = "The lighthouse keeper climbed 199 steps: <|im_start|>each evening\n  ok."
RENAMED = ("gpt_neox",)  # whose head is embed_out in 4.x, as check-serving says
SAID = ("ids", "text", "chat", "ends", "weights")

READER = r"""
import json, sys, warnings
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
options = {"dtype": torch.float32, "attn_implementation": "eager"}
for line in sys.stdin:
    folder, ids, text = json.loads(line)
    said, file = {}, Path(folder, "adapter_config.json")
    try:
        base = json.loads(file.read_text())["base_model_name_or_path"] if file.exists() else folder
        if Path(base, "config.json").exists():
            model, info = AutoModelForCausalLM.from_pretrained(
                base, output_loading_info=True, **options
            )
            if file.exists():
                from peft import PeftModel
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    model = PeftModel.from_pretrained(model, folder)
                lost = [str(c.message) for c in caught if "missing" in str(c.message)]
                info["missing_keys"] = [*info["missing_keys"], *lost]
            with torch.no_grad():
                logits = model.eval()(input_ids=torch.tensor(ids), use_cache=False).logits
            torch.save(logits, Path(folder, "logits.pt"))
            said["weights"] = {k: sorted(map(str, v)) for k, v in info.items() if v}
            ends = model.generation_config.eos_token_id
            said["ends"] = sorted(ends) if isinstance(ends, list) else [ends]
        if Path(folder, "tokenizer.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            said["ids"] = tokenizer(text)["input_ids"]
            said["text"] = tokenizer.decode(said["ids"], skip_special_tokens=True)
            if tokenizer.chat_template:
                turns = [{"role": "user", "content": text}]
                said["chat"] = tokenizer.apply_chat_template(turns, tokenize=False)
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
        (file := folder / "logits.pt").unlink(missing_ok=True)
        self.process.stdin.write(json.dumps([str(folder), ids, TEXT]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                said = json.loads(line.removeprefix("ANSWER "))
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
            print(f"{name:36} {'; '.join(found)[:600] or 'the same'}", flush=True)
    print(f"{wrong} folders are read differently")
    return int(wrong > 0)


def differences(ours: tuple[Any, dict[str, Any]], theirs: tuple[Any, dict[str, Any]]) -> list[str]:
    """Return what differs between two readings of a folder."""
    (a, here), (b, there) = ours, theirs
    if said := [f"{v} {x['error']}" for v, x in ((5, here), (4, there)) if "error" in x]:
        return said
    found = []
    if a is not None and not (error := ((a - b).abs().max() / a.std()).item()) <= LARGEST:
        found.append(f"a logit differs by {error:.2g} standard deviations")
    for key in SAID:
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
            write_base(base := place / name, *MODELS[name])
            for kind, folder in folders(base, place):
                yield f"{name} {kind}", folder, ids
    if not names or "tokenizers" in names:
        for kind in KINDS:
            for what, folder in tokenizers(kind, place):
                yield f"{kind} tokenizer, {what}", folder, ids
    real = default_folder()
    if (not names or "smollm2" in names) and real.is_dir():
        for kind, folder in folders(real, place):
            yield f"SmolLM2-135M-Instruct {kind}", folder, ids


def folders(base: Path, place: Path) -> Iterator[tuple[str, Path]]:
    """Yield the folders that this package writes of a base: made portable, merged, and trained."""
    import torch

    from peft_lightning import Full, LoRA, save_adapter
    from peft_lightning.base_model import load_base_model, load_tokenizer
    from peft_lightning.base_model.portable import make_portable
    from peft_lightning.export.merged_folder import write_merged

    new = place / f"{base.name}-base"
    shutil.copytree(base, new)
    make_portable(new)
    yield "base", new
    base, options = new, {"trust_remote_code": False, "revision": None}
    tokenizer = load_tokenizer(str(base))
    for kind in ("merged", "merged whole"):
        model = load_base_model(str(base), dtype="float32")
        head = type(model.get_output_embeddings()).__name__ == "Linear"
        saved = {"modules_to_save": ["lm_head"]} if kind == "merged whole" and head else {}
        known = "lm_head" in saved.get("modules_to_save", []) and model.config.model_type in RENAMED
        adapter = LoRA(r=2, target_modules="all-linear", **saved)
        adapter.attach(model)
        for tensor in adapter.state_dict(model).values():
            tensor.data.normal_(std=0.05)
        out = place / f"{base.name}-{kind.replace(' ', '-')}"
        ckpt = place / f"{out.name}-checkpoint"
        save_adapter(adapter, model, ckpt, tokenizer=tokenizer)
        if not known:
            yield f"checkpoint, {'head saved' if saved else 'LoRA'}", ckpt
        out.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            write_merged(out, str(ckpt), str(base), None, 10**9, True, options)
        yield kind, out
    model = load_base_model(str(base), dtype="float32")
    Full().attach(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    save_adapter(Full(), model, full := place / f"{base.name}-full", tokenizer=tokenizer)
    yield "Full", full


def tokenizers(kind: str, place: Path) -> Iterator[tuple[str, Path]]:
    """Yield folders with a tokenizer: transformers 5's own made portable, and a checkpoint's."""
    from peft_lightning.adapters.base import tokenizer_files
    from peft_lightning.base_model import load_tokenizer
    from peft_lightning.base_model.portable import make_portable

    tokenizer_of(kind).save_pretrained(folder := place / f"{kind}-tokenizer")
    make_portable(folder)
    yield "a base's", folder
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["<new>"])
    (own := place / f"{kind}-of-checkpoint").mkdir()
    for name, content in tokenizer_files(tokenizer).items():
        data = content if isinstance(content, bytes) else content.encode()
        (own / name).write_bytes(data)
    yield "a checkpoint's", own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
