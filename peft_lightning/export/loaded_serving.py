"""Whether HF PEFT and llama.cpp serve an adapter's folder: it is loaded in them, where they are."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from peft_lightning.adapters.folder import SavedAdapter, load_adapter, read_adapter
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.tensor_names import layer_of
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.base_model.weights import NotStreamableError, open_weights
from peft_lightning.data import PromptFormat
from peft_lightning.export import llama_cpp
from peft_lightning.export.gguf_file import write_adapter_file
from peft_lightning.export.gguf_model import ModelFile
from peft_lightning.export.serving import TENSORS, Verdict
from peft_lightning.export.serving_rules import REWRITE
from peft_lightning.messages import RunError, UserError, shortened
from peft_lightning.process.progress import Progress
from peft_lightning.process.resources import available_memory

TOKENS = 12  # of each row
OURS = 1e-3  # largest difference of a logit in deviations: float32, in another order
LOST = ("missing", "unexpected", "not supported")  # in HF PEFT's warnings of tensors
OPTIONS = "unexpected keyword arguments"  # in that of options, which may be of no matter


def too_large(base: str, options: dict[str, Any]) -> str | None:
    """Return what to say of a base that does not fit into memory in float32; None if it does."""
    try:
        stored = open_weights(base, **options).stored.values()
    except NotStreamableError:
        return None
    needed, free = sum(4 * math.prod(t.shape) for t in stored), available_memory()
    if free is None or needed < 0.9 * free:
        return None
    sizes = f"{needed / 2**30:.1f} GiB in float32, and {free / 2**30:.1f} GiB of memory are free"
    return f"the base takes {sizes}"


def load_verdicts(
    folder: Path, base_model: str, options: dict[str, Any], with_llama: bool
) -> dict[str, Verdict]:
    """Return the verdicts of the programs that are installed here.

    Args:
        folder: The adapter's.
        base_model: Its base, on this machine.
        options: ``trust_remote_code`` and ``revision`` of the base.
        with_llama: Whether to try llama.cpp, for which the base is written once more.

    Raises:
        UserError: If the adapter cannot be loaded here.
    """
    found: dict[str, Verdict] = {}
    if not (find_spec("peft") or llama_cpp.is_installed()):
        return found
    saved = read_adapter(folder)
    model: Any = load_base_model(base_model, dtype="float32", **options)
    known = base_fingerprint(model)
    size = model.get_input_embeddings().weight.shape[0]
    rows = _rows(size)
    plain = _logits(model, rows[:1])
    adapter = load_adapter(model, folder, base_fingerprint=known, saved=saved)
    new = model.config.get_text_config().vocab_size
    strange = [name for name in map(layer_of, saved.tensors) if not _has(model, name)]
    if strange and isinstance(adapter, LoRA):
        names = f"the base has no {shortened(sorted(set(strange)), 2)}: {REWRITE}"
        found["vllm"] = Verdict(False, [names], [])
    rows = _rows(size, new)
    ours = [
        model(**adapter.prepare_inputs(model, {"input_ids": torch.tensor([row])})).logits
        for row in rows
    ]
    ours = [logits[0, -len(row) :] for logits, row in zip(ours, rows, strict=True)]
    adapter.detach(model)
    effect = _difference(ours[0][:, :size], plain[0][:, :size])
    if find_spec("peft") and (folder / TENSORS).is_file():  # else it looks for it on the hub
        with Progress("loading it by HF PEFT"):
            verdict = _by_hf_peft(folder, model, rows, ours, effect, new)
            if new > size and verdict.accepted and not saved.facts.get("new_tokens"):
                verdict.notes.insert(0, f"before it, base.resize_token_embeddings({new})")
        del model
        if verdict.accepted and isinstance(adapter, LoRA):
            model = load_base_model(base_model, dtype="float32", **options)
            verdict.notes.append(_by_load_adapter(folder, model, rows, ours, new))
            del model
        found["transformers"] = verdict
    if with_llama and llama_cpp.is_installed() and isinstance(adapter, LoRA):
        found["llama.cpp"] = _by_llama_cpp(folder, base_model, saved, options, rows, ours, effect)
    return found


def _has(model: Any, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _by_hf_peft(
    folder: Path, model: Any, rows: Any, ours: Sequence[Tensor], effect: float, new: int
) -> Verdict:
    """Return whether HF PEFT computes ``ours`` from ``folder``; it changes ``model``."""
    from peft import PeftModel

    if new > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(new, mean_resizing=False)
    name = f"HF PEFT {version('peft')} over transformers {version('transformers')}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = PeftModel.from_pretrained(model, folder)
        except Exception as error:
            said = str(error).strip().splitlines() or [""]
            problem = f"{name} cannot load it: {type(error).__name__}: {said[0]:.200}"
            return Verdict(False, [problem, REWRITE], [], "loaded")
    lines = [str(warning.message).splitlines()[0] for warning in caught]
    lines = [line for line in lines if any(word in line.lower() for word in LOST)]
    ignored = [f"{name}: {line:.200}" for line in lines if OPTIONS in line.lower()]
    lost = [f"{name}: {line:.200}" for line in lines if OPTIONS not in line.lower()]
    theirs = [logits[-len(o) :] for logits, o in zip(_logits(loaded, rows), ours, strict=True)]
    found = _compared(name, ours, theirs, effect, OURS, lost)
    if found.problems:
        return replace(found, problems=[*found.problems, REWRITE])
    return replace(found, notes=[*found.notes, *ignored])


def _by_load_adapter(folder: Path, model: Any, rows: Any, ours: Sequence[Tensor], new: int) -> str:
    """Return what transformers' own way to an adapter, without a PeftModel, makes of it."""
    if new > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(new, mean_resizing=False)
    way = "model.load_adapter(CKPT), and so AutoModelForCausalLM.from_pretrained(CKPT),"
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it prints a table
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.load_adapter(str(folder))
            theirs = _logits(model.eval(), rows)
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        return f"not by {way} which ends in {type(error).__name__}: {said[0]:.150}"
    finally:
        logging.set_verbosity(level)
    gap = max(_difference(o, t) for o, t in zip(ours, theirs, strict=True))
    if gap <= OURS * torch.cat(list(ours)).std().item():
        return f"{way} too"
    return f"not by {way} which computes something else: a logit differs by {gap:.3g}"


def _by_llama_cpp(
    folder: Path,
    base: str,
    saved: SavedAdapter,
    options: dict[str, Any],
    rows: Any,
    ours: Sequence[Tensor],
    effect: float,
) -> Verdict:
    """Return whether llama.cpp computes ``ours`` from the files that ``export`` writes.

    Where the base alone cannot be loaded there, that says nothing of the adapter.
    """
    name = f"llama.cpp by llama-cpp-python {version('llama_cpp_python')}"
    with tempfile.TemporaryDirectory(prefix="peft_lightning-serving-") as place:
        model, adapter = Path(place, "base.gguf"), Path(place, "lora.gguf")
        try:
            write_adapter_file(adapter, base, str(folder), saved, None, True, options)
        except UserError as error:
            return Verdict(False, [str(error)], [], "loaded")
        file = ModelFile(base, None, None, options, PromptFormat())
        try:
            with redirect_stdout(StringIO()):
                file.write(model, torch.float32, None)
            llama_cpp.logits_of_file(str(model), rows[:1])
        except (UserError, RunError) as error:
            return Verdict(None, [], [f"not loaded, as {name} does not take the base: {error}"])
        try:
            theirs = llama_cpp.logits_of_file(str(model), rows, str(adapter))
        except RunError as error:
            return Verdict(False, [str(error)], [], "loaded")
    return _compared(name, ours, theirs, effect, llama_cpp.OWN_ROUNDING, [])


def _compared(
    name: str,
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    effect: float,
    limit: float,
    problems: list[str],
) -> Verdict:
    """Return the verdict on logits that were computed elsewhere."""
    spread = torch.cat(list(ours)).std().item()
    pairs = list(zip(ours, theirs, strict=True))
    error = max(_difference(o, t[:, : o.shape[1]]) for o, t in pairs)
    if not error <= limit * spread:
        problems = [
            *problems,
            f"{name} computes something else: a logit differs by {error:.3g}, and the adapter "
            f"moves them by up to {effect:.3g}",
        ]
    count = sum(map(len, ours))
    does = f"the adapter moves them by {effect:.1g}" if effect else "the adapter does nothing"
    note = f"loaded by {name}: logits of {count} tokens are ours to {error:.1g}, {does}"
    return Verdict(not problems, problems, [note], "loaded")


def _rows(size: int, new: int = 0) -> list[list[int]]:
    """Return two rows of ids spread over the vocabulary, new ones in the second alone."""
    step = max(1, size // (2 * TOKENS))
    ids = [i * step for i in range(2 * TOKENS) if i * step < size]
    return [ids[::2], [*range(size, new)][:TOKENS] + ids[1::2]]


@torch.no_grad()
def _logits(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the logits of each row, (T, V) float32, with those of virtual tokens before them."""
    return [model(input_ids=torch.tensor([row])).logits[0].float() for row in rows]


def _difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()
