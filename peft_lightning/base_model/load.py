"""Loading a frozen causal LM: hub id, local folder or GGUF file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from peft_lightning.base_model.fingerprint import base_fingerprint, remember_fingerprint
from peft_lightning.base_model.generation_config import mended_options
from peft_lightning.base_model.load_errors import explained, require_causal
from peft_lightning.base_model.quantization import (
    is_quantized,
    quantization_method,
    quantization_options,
    ready_to_train,
    require_quantization,
)
from peft_lightning.base_model.resolve import (
    INDEX_FILE,
    locate,
    model_folder,
    reading,
    shard_files,
    short_name,
)
from peft_lightning.base_model.weights import NotStreamableError, open_weights
from peft_lightning.kernels.attention import FLAT_ATTENTION
from peft_lightning.kernels.machine import Machine, find_machine
from peft_lightning.kernels.own_forward import use_flat_attention
from peft_lightning.kernels.precision import choose, name_of, remember_choice
from peft_lightning.messages import UserError, check_choice
from peft_lightning.process.progress import Progress

DTYPES = ("auto", "float32", "bfloat16", "float16")
AS_SAVED = "saved"  # of load_base_model only: that of a command's output is another matter


def load_base_model(
    name: str,
    *,
    dtype: str = "auto",
    attn_implementation: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    frozen: bool = True,
    device: str | torch.device | None = None,
    quantization: str | None = None,
    precision: str | None = None,
    machine: Machine | None = None,
) -> PreTrainedModel:
    """Load a causal language model in eval mode, its tied weights tied.

    Args:
        name: Hub id, local folder, or path of a GGUF file, whose weights are dequantised.
        dtype: float32, bfloat16 or float16; auto for what suits the processor: as saved if it
            multiplies that, else float32, as for a GGUF file; in a run, that of its products.
            saved for the type of the files, whatever computes it.
        attn_implementation: A name that transformers knows; auto for its own choice;
            ``FLAT_ATTENTION`` for ours, where the model's layers can call it.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
        frozen: Whether no weight requires a gradient. Weights that do are float32 with dtype auto.
        device: Where to load to; the CPU if None.
        quantization: 4bit or 8bit: weights of linear layers in so many bits, by bitsandbytes;
            ``dtype`` is that of the others, and of what is computed. The fingerprint is that of
            the model as saved.
        precision: Of the Trainer that computes, as Lightning names it; None outside a run.
        machine: Where it is computed, if that is not ``device``.

    Raises:
        UserError: If there is no such model, it is not a causal LM, it lacks weights, or is
            quantised already; or if bitsandbytes is not installed.
    """
    if dtype != AS_SAVED:
        require_dtype(dtype)
    require_quantization(quantization)
    source, options = locate(name, revision)
    options["trust_remote_code"] = trust_remote_code
    saved: str | None = None
    if "gguf_file" in options:
        if quantization:
            raise UserError(
                f"{name} is a GGUF file, which is dequantised when it is loaded: quantization "
                "takes a folder of safetensors files or a hub id"
            )
        options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        with explained("base model", name, options):
            options["config"] = AutoConfig.from_pretrained(source, **options)
        require_causal(name, options["config"])
        generation, left_out = mended_options(source, options)
        for what in left_out:
            _say(f"generation_config.json of {name} is not valid, and is read without {what}")
        options |= generation
        saved, method = name_of(options["config"].dtype), quantization_method(options["config"])
        if dtype == "auto" and method not in (None, "bitsandbytes"):
            dtype = AS_SAVED  # another library's kernels want the type that is saved with them
        if method or quantization:
            device = device or torch.get_default_device()  # a run's; transformers takes any GPU
    choice = choose(
        machine or find_machine(device or torch.get_default_device()),
        saved or "float32" if dtype == AS_SAVED else dtype,
        precision,
        saved,
        trains_weights=not frozen,
        parameters=partial(_count_parameters, name, source, options, saved),
    )
    if "config" in options:
        options |= quantization_options(name, options["config"], quantization, choice.dtype)
    if attn_implementation not in ("auto", FLAT_ATTENTION):
        options["attn_implementation"] = attn_implementation
    if device is not None:
        options["device_map"] = {"": device}
    loading = Progress(f"loading {short_name(name)}")
    fitting = {"trust_remote_code": trust_remote_code, "revision": revision}
    with (
        explained("base model", name, options),
        _naming_the_file(name, fitting),
        _quiet(),
        reading(options),
        loading,
    ):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype="auto" if dtype == AS_SAVED else getattr(torch, choice.dtype),
            output_loading_info=True,
            weights_only=True,  # of .bin files, which could hold code: nothing but tensors is read
            **options,
        )
    model, report = loaded
    if lost := sorted(report["missing_keys"]):
        raise UserError(
            f"the base model {name} lacks {len(lost)} weights of {type(model).__name__}, "
            f"{lost[0]} the first: is it a {type(model).__name__}, and all of it there?"
        )
    if "gguf_file" in options:  # not the folder that the file happens to be in
        model.name_or_path = model.config.name_or_path = str(Path(name).expanduser())
    if is_quantized(model):
        ready_to_train(model)
        frozen = True
    remember_choice(model, choice)
    if attn_implementation == FLAT_ATTENTION:
        use_flat_attention(model)
    # float32 that became float16 has another fingerprint: it is rounded to bfloat16 from there
    twice = not is_quantized(model) and (saved, model.dtype) == ("float32", torch.float16)
    if quantization or twice:
        how = {"trust_remote_code": trust_remote_code, "revision": revision}
        remember_fingerprint(model, _fingerprint_of_files(name, how))
    return model.requires_grad_(not frozen).eval()


@contextmanager
def _naming_the_file(name: str, options: dict[str, Any]) -> Iterator[None]:
    """Have a base that cannot be loaded read tensor by tensor, which names what does not fit."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        is_misfit = "ignore_mismatched_sizes" in str(error)
        if is_misfit or isinstance(error, SafetensorError):
            with suppress(NotStreamableError):
                open_weights(name, **options)
        if is_misfit:
            raise UserError(f"the weights of {name} do not fit its config.json") from error
        raise


def _fingerprint_of_files(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of a base as it is saved."""
    try:
        return open_weights(name, **options).fingerprint()
    except NotStreamableError:
        return base_fingerprint(load_base_model(name, dtype=AS_SAVED, **options))


def _count_parameters(
    name: str, source: str, options: dict[str, Any], saved: str | None
) -> int | None:
    """Return about how many parameters a base has, from the size of its files; None if unknown."""
    if saved is None or "gguf_file" in options or quantization_method(options["config"]):
        return None
    hub: dict[str, Any] = {
        key: options[key] for key in ("revision", "local_files_only") if key in options
    }
    with explained("base model", name, options):
        folder = model_folder(source, hub)
    names = {path.name: path for path in folder.iterdir()}
    files = shard_files(names[INDEX_FILE]) if INDEX_FILE in names else list(folder.glob("*.bin"))
    files = [names["model.safetensors"]] if "model.safetensors" in names else files
    return sum(file.stat().st_size for file in files) // getattr(torch, saved).itemsize


def require_dtype(dtype: str) -> None:
    """Raise UserError, with the nearest name, if ``dtype`` is none of ``DTYPES``."""
    check_choice("dtype", dtype, DTYPES)


def find_device(name: str) -> str:
    """Return the name of a device: for auto the GPU, if there is one, else the CPU.

    Raises:
        UserError: If there is none of that name.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0].partition("Expected one of")[0].rstrip(": ")
        raise UserError(
            f"device must be auto, cpu or a GPU that is there, such as cuda:0, got {name!r}"
            + (f": {reason}" if reason else "")
        ) from None
    return name


@cache
def _say(line: str) -> None:
    """Print a line the first time that there is reason to."""
    print(line, file=sys.stderr)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars: what it loads in a second needs none."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
