"""AdapterBank: many adapters over one base, one of them in it at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from peft_lightning.adapters.base import Adapter, attached_adapter
from peft_lightning.adapters.folder import SavedAdapter, load_adapter, read_adapter
from peft_lightning.adapters.full import Full
from peft_lightning.messages import UserError, did_you_mean

BASE = "base"  # the name for no adapter


class AdapterBank:
    """Holds trained adapters of any method, one of which is active.

    Switching detaches one adapter and attaches another. It takes the same time however many
    adapters there are, and leaves the base bit-identical.

    Args:
        model: A base model without an adapter.
        base_fingerprint: The fingerprint of ``model``, with which each adapter's is compared; see
            ``load_adapter``.
        allow_base_mismatch: Accept adapters of other bases too, if their tensors fit.

    Raises:
        UserError: If the model has an adapter already.
    """

    def __init__(
        self,
        model: nn.Module,
        base_fingerprint: Mapping[str, Any] | None = None,
        allow_base_mismatch: bool = False,
    ) -> None:
        if (other := attached_adapter(model)) is not None:
            raise UserError(f"the model has an adapter already, {other}: detach it first")
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

    def add(self, name: str, folder: str | Path, saved: SavedAdapter | None = None) -> None:
        """Read the adapter of ``folder``, ours or HF PEFT's, and call it ``name``.

        Args:
            name: A name that no adapter of the bank has.
            folder: The adapter's folder.
            saved: The content of ``folder`` if it has been read already.

        Raises:
            UserError: If the name is taken, or the adapter does not fit the base.
        """
        if name in self.names:
            raise UserError(f"there is an adapter {name!r} already: give {folder} another name")
        saved = saved or read_adapter(folder)
        if isinstance(saved.adapter, Full):
            raise UserError(f"{folder} is a whole model, not an adapter: load it as the model")
        before = self.active
        self.use(BASE)
        try:
            adapter = load_adapter(self.model, folder, saved=saved, **self._load)  # type: ignore[arg-type]
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
            UserError: If there is none of that name.
        """
        if name not in self.names:
            raise UserError(
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
