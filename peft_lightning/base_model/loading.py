"""Loading a frozen causal LM and its tokenizer: hub id, local folder or GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from peft_lightning.base_model.places import locate, nearest_place

DTYPES = ("auto", "float32", "bfloat16", "float16")

_LOADING_ERRORS = (OSError, ValueError, SafetensorError)

# GGUF's names of byte-level pre-tokenizers that take digits one by one; transformers' reader
# leaves that out, so that "  2" became other tokens than the model was trained on
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}


def load_base_model(
    name: str,
    *,
    dtype: str = "auto",
    attn_implementation: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    frozen: bool = True,
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """Load a causal language model in eval mode, its tied weights tied.

    Args:
        name: Hub id, local folder, or path of a GGUF file, whose weights are dequantised.
        dtype: auto (as saved; what is read from a GGUF file is float32), float32, bfloat16 or
            float16.
        attn_implementation: A name that transformers knows; auto for its own choice.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
        frozen: Whether no weight requires a gradient.
        device: Where to load to; the CPU if None.

    Raises:
        ValueError: If there is no such model, it is not a causal LM, or it lacks weights.
    """
    require_dtype(dtype)
    source, options = locate(name, revision)
    options["trust_remote_code"] = trust_remote_code
    if "gguf_file" in options:
        options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        with explained("base model", name, options):
            options["config"] = AutoConfig.from_pretrained(source, **options)
        require_causal(name, options["config"])
    if attn_implementation != "auto":
        options["attn_implementation"] = attn_implementation
    if device is not None:
        options["device_map"] = {"": device}
    with explained("base model", name, options), _quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            **options,
        )
    model, report = loaded
    if lost := sorted(report["missing_keys"]):
        raise ValueError(
            f"the base model {name} lacks {len(lost)} weights of {type(model).__name__}, "
            f"{lost[0]} the first: is it a {type(model).__name__}, and all of it there?"
        )
    if "gguf_file" in options:  # not the folder that the file happens to be in
        model.name_or_path = model.config.name_or_path = str(Path(name).expanduser())
    return model.requires_grad_(not frozen).eval()


def load_tokenizer(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub id, local folder or GGUF file.

    Raises:
        ValueError: If there is none.
    """
    source, options = locate(name, revision, weights=False)
    options["trust_remote_code"] = trust_remote_code
    with explained("tokenizer of", name, options):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if "gguf_file" in options:
        _split_digits(tokenizer, Path(source, options["gguf_file"]))
    return tokenizer


def require_dtype(dtype: str) -> None:
    """Raise ValueError, with the nearest name, if ``dtype`` is none of ``DTYPES``."""
    if dtype not in DTYPES:
        near = get_close_matches(str(dtype), DTYPES, n=1, cutoff=0.5)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}{hint}")


def require_causal(name: str, config: Any) -> None:
    """Raise ValueError if a model does not predict the next token of its own text."""
    custom = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    kind = (config.architectures or [type(config).__name__.removesuffix("Config")])[0]
    if getattr(config, "is_encoder_decoder", False):
        reason = "an encoder-decoder"
    elif not custom and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        reason = "no language model that transformers can continue a text with"
    elif "MaskedLM" in kind:
        reason = "a masked language model"
    else:
        return
    raise ValueError(
        f"the base model {name} is {kind}, {reason}: a causal language model is needed, such as "
        "LlamaForCausalLM"
    )


@contextmanager
def explained(what: str, name: str, options: dict[str, Any]) -> Iterator[None]:
    """Say in one line what transformers says in many."""
    try:
        yield
    except _LOADING_ERRORS as error:
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, OSError) and options.get("local_files_only"):
            near = nearest_place(Path(name))
            near = near or "; give a model's folder or a GGUF file"
            reason = f"it is no local folder, and no model hub can be reached{near}"
        elif "trust_remote_code" in str(error):
            reason = "it brings code of its own: if you trust that, set trust_remote_code to true"
        elif "backend tokenizer" in reason:
            reason = "there is no tokenizer.json beside it"
        raise ValueError(f"cannot load the {what} {name}: {reason}") from error


def _split_digits(tokenizer: Any, file: Path) -> None:
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() in _SINGLE_DIGITS:
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


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
