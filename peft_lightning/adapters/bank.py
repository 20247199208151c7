"""AdapterBank: many adapters over one base, one of them in it at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from peft_lightning.adapters.base import Adapter, attached_adapter
from peft_lightning.adapters.folder import load_adapter, read_adapter
from peft_lightning.adapters.full import Full
from peft_lightning.messages import did_you_mean

BASE = "base"  # the name for no adapter


class AdapterBank:
    """Holds trained adapters of any kind, LoRA of any rank and soft prompts mixed.

    Switching takes one adapter out and puts another in: it takes the same time however many there
    are, and the base is bit-identical after it.

    Args:
        model: A base without an adapter.
        base_fingerprint: That of ``model``, which each adapter's is compared with; see
            ``load_adapter``.
        allow_base_mismatch: Take adapters of other bases too, if their tensors fit.

    Raises:
        ValueError: If the model has an adapter already.
    """

    def __init__(
        self,
        model: nn.Module,
        base_fingerprint: Mapping[str, Any] | None = None,
        allow_base_mismatch: bool = False,
    ) -> None:
        if (other := attached_adapter(model)) is not None:
            raise ValueError(f"the model has an adapter already, {other}: detach it first")
        self.model = model
        self.active = BASE
        self._load = {
            "allow_base_mismatch": allow_base_mismatch,
            "base_fingerprint": base_fingerprint,
        }
        self._held: dict[str, tuple[Adapter, dict[str, Tensor]]] = {}

    @property
    def names(self) -> list[str]:
        """The names to switch to, ``base`` first."""
        return [BASE, *self._held]

    def add(self, name: str, folder: str | Path) -> None:
        """Read the adapter of ``folder``, ours or HF PEFT's, and call it ``name``.

        Raises:
            ValueError: If the name is taken, or the adapter does not fit the base.
        """
        if name in self.names:
            raise ValueError(f"there is an adapter {name!r} already: give {folder} another name")
        if isinstance(read_adapter(folder)[0], Full):
            raise ValueError(f"{folder} is a whole model, not an adapter: load it as the model")
        before = self.active
        self.use(BASE)
        try:
            adapter = load_adapter(self.model, folder, **self._load)  # type: ignore[arg-type]
            tensors = {key: t.clone() for key, t in adapter.state_dict(self.model).items()}
            adapter.detach(self.model)
            self._held[name] = adapter, tensors
        finally:
            self.use(before)

    def use(self, name: str) -> Adapter | None:
        """Put the adapter called ``name`` into the model, frozen and in eval mode.

        Returns:
            The adapter; None for ``base``.

        Raises:
            ValueError: If there is none of that name.
        """
        if name not in self.names:
            raise ValueError(
                f"there is no adapter {name!r}; there are {', '.join(self.names)}"
                + did_you_mean(name, self.names)
            )
        if name != self.active:
            if self.active != BASE:
                self._held[self.active][0].detach(self.model)
            self.active = BASE
            if name != BASE:
                adapter, tensors = self._held[name]
                adapter.attach(self.model, initialise=False)
                adapter.load_state_dict(self.model, tensors)
                self.model.requires_grad_(False).eval()
                self.active = name
        return None if name == BASE else self._held[name][0]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of the adapter called ``name``; none for ``base``."""
        return {} if name == BASE else self._held[name][1]
