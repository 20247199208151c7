"""A model's own forward: its own attention, and its layers' own code where ours stands for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from peft_lightning.kernels.attention import FLAT_ATTENTION

Forward = Callable[..., Any] | None  # what a layer has in place of its class's method, if anything

_KEPT = "_own_forward"  # attribute of a model


class OwnForward:
    """What a model computes with by itself, and whether it does so now; kept on the model.

    Args:
        model: A causal LM of transformers.
    """

    def __init__(self, model: Any) -> None:
        self.attentions: list[tuple[Any, str]] = []  # configs, with the names of their own
        self.forwards: dict[nn.Module, tuple[Forward, Forward]] = {}  # of layers: own, and ours
        self.fingerprint: dict[str, Any] | None = None  # of the base, if nothing has changed it
        self.checked: dict[Any, Any] = {}  # what has been found out about it
        self.attention = self.layers = False  # whether each is the model's own now
        self._name: str = model.config._attn_implementation

    @property
    def has_ours(self) -> bool:
        """Whether the model can use our attention."""
        return bool(self.attentions)

    @property
    def attention_name(self) -> str:
        """The name of the model's own attention."""
        return self.attentions[0][1] if self.attentions else self._name

    def use(self, attention: bool, layers: bool) -> None:
        """Let the model compute with its own attention, and with its own layers, or with ours."""
        if attention != self.attention:
            for config, name in self.attentions:
                config._attn_implementation_internal = name if attention else FLAT_ATTENTION
        if layers != self.layers:
            for layer, (own, ours) in self.forwards.items():
                if layer.__dict__.get("forward") is (ours if layers else own):
                    set_forward(layer, own if layers else ours)
        self.attention, self.layers = attention, layers

    @contextmanager
    def using(self, attention: bool = True, layers: bool = True) -> Iterator[None]:
        """Let the model compute so within a ``with`` block."""
        before = self.attention, self.layers
        self.use(attention, layers)
        try:
            yield
        finally:
            self.use(*before)


def own_forward(model: Any) -> OwnForward:
    """Return what ``model`` computes with by itself."""
    kept: OwnForward | None = model.__dict__.get(_KEPT)
    if kept is None:
        kept = model.__dict__[_KEPT] = OwnForward(model)
    return kept


def use_flat_attention(model: Any) -> None:
    """Let the attention layers of ``model`` call ours, where its class calls one by name.

    Args:
        model: As transformers has loaded it. One whose layers have code of their own for each
            attention, chosen when they were built, is left as it is.
    """
    own = own_forward(model)
    if own.has_ours or not model._can_set_attn_implementation():
        return
    found = {id(config): config for config in _configs(model)}
    names = [(config, config._attn_implementation) for config in found.values()]
    model.set_attn_implementation(FLAT_ATTENTION)
    own.attentions = [(c, name) for c, name in names if c._attn_implementation == FLAT_ATTENTION]


def set_forward(layer: nn.Module, forward: Forward) -> None:
    """Let ``forward`` stand in place of the method of the layer's class; None for that method."""
    layer.__dict__.pop("forward", None)
    if forward is not None:
        layer.forward = forward


def _configs(model: nn.Module) -> Iterator[Any]:
    """Yield the configs of a model and its parts, some of them repeatedly."""
    for module in model.modules():
        config = getattr(module, "config", None)
        for name in (None, *getattr(config, "sub_configs", ())):
            found = config if name is None else getattr(config, name)
            if hasattr(found, "_attn_implementation_internal"):
                yield found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch all dropout off for a check, which then draws no random number, and back on."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
