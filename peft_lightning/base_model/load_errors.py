"""What is wrong with a model that cannot be loaded, in one line."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from peft_lightning.base_model.resolve import nearest_place
from peft_lightning.messages import UserError

_LOADING_ERRORS = (OSError, ValueError, SafetensorError, pickle.UnpicklingError)
_STRANGE = (  # what transformers and gguf raise over files that hold something else
    *(struct.error, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError),
    *(AssertionError, StrictDataclassError),
)
_COUNTS = ("num_hidden_layers", "num_experts", "num_local_experts", "n_routed_experts")
_MOST = 10**4  # layers, or experts of one


def require_causal(name: str, config: Any) -> None:
    """Raise UserError if a model does not predict the next token of its own text."""
    for option in _COUNTS:
        count = getattr(config.get_text_config(), option, None)
        if isinstance(count, int) and count > _MOST:
            raise UserError(f"the config of {name} asks for {option} {count:,}: it is damaged")
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
    raise UserError(
        f"the base model {name} is {kind}, {reason}: a causal language model is needed, such as "
        "LlamaForCausalLM"
    )


def _is_of_sizes(error: RuntimeError) -> bool:
    """Whether torch refuses the sizes of a config; a recursion is a RuntimeError too."""
    return isinstance(error, RecursionError) or "negative dimension" in str(error)


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
        elif isinstance(error, pickle.UnpicklingError):
            reason = "a .bin file of it holds more than tensors, or is damaged; no code was run"
        elif "backend tokenizer" in reason:
            reason = "there is no tokenizer.json beside it"
        raise UserError(f"cannot load the {what} {name}: {reason}") from error
    except (*_STRANGE, RuntimeError) as error:
        is_ours = type(error).__module__.startswith("peft_lightning")
        if is_ours or (isinstance(error, RuntimeError) and not _is_of_sizes(error)):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"cannot load the {what} {name}: its files are damaged, or those of something else "
            f"({reason:.160})"
        ) from error
