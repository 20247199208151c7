"""The load-balancing loss of experts' routers, as the model itself adds it to its own loss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from peft_lightning.messages import UserError

_FUNCTION = "load_balancing_loss_func"  # of transformers' file of each such model


class RouterLoss:
    """Adds up what transformers' function of the model gives for the routers of a forward pass.

    The experts' shares are means over all tokens of the batch and all layers, labelled or not, and
    over nothing else: padding is left out, and a flat batch gives what its padded rows give.

    Args:
        model: A causal LM of transformers.
        function: The router logits of the layers, (B * T, experts) each, the number of experts, how
            many a token goes to, and the attention mask, (B, T), or None -> the loss, ().
        coefficient: Factor on it.
    """

    def __init__(self, model: Any, function: Callable[..., Tensor], coefficient: float) -> None:
        config = model.config.get_text_config()
        self.decoder, self.function, self.coefficient = model.get_decoder(), function, coefficient
        self.sizes = [
            getattr(model, name, None) or getattr(config, name)
            for name in ("num_experts", "num_experts_per_tok")
        ]
        self._logits: Any = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the router logits of the forward pass in a ``with`` block."""

        def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "output_router_logits": True}

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._logits = output.router_logits

        hooks = [
            self.decoder.register_forward_pre_hook(ask, with_kwargs=True),
            self.decoder.register_forward_hook(keep),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def value(self, mask: Tensor | None) -> Tensor:
        """Return the loss of the routers in the last forward pass, times the coefficient, ().

        Args:
            mask: (B, T), 1 at tokens and 0 at padding; None if all are tokens.

        Raises:
            UserError: If the model has kept no router logits.
        """
        logits, self._logits = self._logits, None
        if not logits:
            raise UserError(
                "the model gives no router logits, which its load-balancing loss is made of: set "
                "model.router_aux_loss to 0 to train without it"
            )
        return self.coefficient * self.function(logits, *self.sizes, mask)


def router_loss(model: Any, coefficient: float | None = None) -> RouterLoss | None:
    """Return the load-balancing loss that training adds; None if there is none.

    Args:
        model: A causal LM of transformers.
        coefficient: Factor on the loss; None for the model's, if its config has
            ``output_router_logits``, as for the model's own loss. 0 for none.

    Raises:
        UserError: If a coefficient is given and the model has no such loss.
    """
    own = own_coefficient(model)
    if coefficient is not None and coefficient < 0:
        raise UserError(f"model.router_aux_loss must not be negative, got {coefficient}")
    if coefficient and own is None:
        raise UserError(
            f"model.router_aux_loss is {coefficient}, but {type(model).__name__} has no "
            "load-balancing loss of experts' routers in transformers: leave it out"
        )
    factor = (own if asks_for_it(model) else None) if coefficient is None else coefficient
    return RouterLoss(model, _function(model), factor) if factor else None


def asks_for_it(model: Any) -> bool:
    """Whether the model adds the loss of its routers to its own loss."""
    config = model.config
    return any(
        getattr(c, "output_router_logits", False) for c in (config, config.get_text_config())
    )


def own_coefficient(model: Any) -> float | None:
    """Return the factor in the model's own loss; None if it has no such loss."""
    if _function(model) is None:
        return None
    config = model.config.get_text_config()
    found = getattr(model, "router_aux_loss_coef", getattr(config, "router_aux_loss_coef", None))
    found = getattr(model, "aux_loss_coef", None) if found is None else found
    return None if found is None else float(found)


def _function(model: Any) -> Any:
    for kind in type(model).__mro__:
        if found := getattr(sys.modules.get(kind.__module__), _FUNCTION, None):
            return found
    return None
