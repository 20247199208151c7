"""What would end a run after its rows are tokenized, asked before: of a base without values."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.lora.ranks import require_ranks_fit
from peft_lightning.base_model.load import require_dtype
from peft_lightning.base_model.quantization import require_quantization
from peft_lightning.base_model.resolve import cached_folder
from peft_lightning.base_model.weights import NotStreamableError, open_weights
from peft_lightning.messages import UserError


def check_early(module: Any) -> None:
    """Attach the adapter of a ``CausalLMModule`` to its base, of which only names and shapes exist.

    A base that is not on this machine is not fetched for that, and one that cannot be read tensor
    by tensor, or an adapter whose tokens have no ids yet, is left to the run.

    Args:
        module: Before its model is built.

    Raises:
        UserError: If an option does not go with the base: its dtype, the targets, ranks or virtual
            tokens of the adapter; or if the base's files are not whole.
    """
    require_dtype(module.dtype_name)
    require_quantization(module.quantization)
    name = module.base_model_name
    if module.given_base is not None or module.init_from is not None:
        return
    if not Path(name).expanduser().is_dir() and cached_folder(name, module.revision) is None:
        return
    how = {"trust_remote_code": module.trust_remote_code, "revision": module.revision}
    try:
        model: Any = open_weights(name, **how).model
    except NotStreamableError:
        return
    adapter, positions = module.adapter, getattr(model.config, "max_position_embeddings", None)
    virtual = getattr(adapter, "num_virtual_tokens", 0)
    if isinstance(positions, int) and virtual >= positions > 0:
        raise UserError(
            f"num_virtual_tokens {virtual} leaves no room for a row: the model has {positions} "
            "positions"
        )
    if isinstance(getattr(adapter, "new_tokens", None), list):
        return
    try:
        adapter.attach(model, initialise=False)
    except UserError:
        raise
    except Exception:  # an adapter of the user's that needs values: the run will see
        return
    if isinstance(adapter, LoRA):
        require_ranks_fit(adapter, model)
    with suppress(Exception):
        adapter.detach(model)
