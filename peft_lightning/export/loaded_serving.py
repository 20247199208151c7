"""Whether HF PEFT and llama.cpp serve an adapter's folder: it is loaded in them, where they are."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peft_lightning.adapters.folder import SavedAdapter, load_adapter, read_adapter
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.data import PromptFormat
from peft_lightning.export import llama_cpp
from peft_lightning.export.gguf_file import write_adapter_file
from peft_lightning.export.gguf_model import ModelFile
from peft_lightning.export.serving import Verdict
from peft_lightning.messages import RunError, UserError
from peft_lightning.process.progress import Progress

TOKENS = 12  # of each row
OURS = 1e-3  # largest difference of a logit in deviations: float32, in another order
LOST = ("missing", "unexpected", "not supported")  # in HF PEFT's warnings of tensors


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
    rows = _rows(size, new)
    ours = [
        model(**adapter.prepare_inputs(model, {"input_ids": torch.tensor([row])})).logits
        for row in rows
    ]
    ours = [logits[0, -len(row) :] for logits, row in zip(ours, rows, strict=True)]
    adapter.detach(model)
    effect = _difference(ours[0][:, :size], plain[0][:, :size])
    if find_spec("peft"):
        with Progress("loading it by HF PEFT"):
            found["transformers"] = _by_hf_peft(folder, model, rows, ours, effect, new)
    del model
    if with_llama and llama_cpp.is_installed() and isinstance(adapter, LoRA):
        found["llama.cpp"] = _by_llama_cpp(folder, base_model, saved, options, rows, ours, effect)
    return found


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
            return Verdict(False, [problem], [], "loaded")
    lines = [str(warning.message).splitlines()[0] for warning in caught]
    lost = [line for line in lines if any(word in line.lower() for word in LOST)]
    theirs = [logits[-len(o) :] for logits, o in zip(_logits(loaded, rows), ours, strict=True)]
    return _compared(name, ours, theirs, effect, OURS, [f"{name}: {line:.200}" for line in lost])


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
