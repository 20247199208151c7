"""Adapter: puts trainable tensors into a frozen model and prepares its inputs."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peft_lightning.adapters.field_types import check_field_types
from peft_lightning.adapters.state_dict import check_tensors_fit
from peft_lightning.base_model.portable import portable_files
from peft_lightning.messages import UserError

PEFT_VERSION = "0.21.2"  # the HF PEFT release whose files ours are

HF_COMMON: dict[str, Any] = {  # HF PEFT's keys that all its methods have, and their values here
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "inference_mode": True,
    "peft_version": PEFT_VERSION,
    "revision": None,
    "task_type": "CAUSAL_LM",
}

_ATTACHED = "_attached_adapter"  # attribute of a model: the adapter in it


@dataclass(frozen=True)
class Adapter(ABC):
    """The base class of all methods: trains a few tensors over a frozen model.

    A subclass is a frozen dataclass whose fields are its whole configuration, named like HF PEFT's
    keys. It sets ``peft_type``, under which it is registered in ``by_peft_type``, and implements
    the abstract methods below. A class from outside of this package takes no type from one of ours.
    """

    by_peft_type: ClassVar[dict[str, type[Adapter]]] = {}
    imported: ClassVar[list[type[Adapter]]] = []  # all subclasses, in the order of their import
    peft_type: ClassVar[str]
    learning_rate: ClassVar[float]  # the recommended one, for AdamW
    uses_kv_cache: ClassVar[bool] = False  # whether it hands keys and values to every layer
    tensor_file: ClassVar[str] = "adapter_model.safetensors"
    hf_defaults: ClassVar[dict[str, Any]]  # HF PEFT's keys for this method and its defaults
    hf_ignored: ClassVar[frozenset[str]] = frozenset(  # keys that do not change what is computed
        {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"}
        | {"revision", "runtime_config", "task_type"}
    )

    own_options: ClassVar[frozenset[str]] = frozenset()  # those that HF PEFT's file has no key for
    elsewhere: ClassVar[str] = "load it with the program that wrote it"  # what to do if refused

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Adapter.imported.append(cls)
        if "peft_type" in cls.__dict__:
            there = Adapter.by_peft_type.get(cls.peft_type)
            if there is None or is_ours(cls) or not is_ours(there):
                Adapter.by_peft_type[cls.peft_type] = cls

    def options(self) -> dict[str, Any]:
        """Return the fields and their values."""
        return asdict(self)

    def hf_options(self) -> dict[str, Any]:
        """Return the options that HF PEFT's file has keys for."""
        return {k: v for k, v in self.options().items() if k not in self.own_options}

    def metadata(self) -> dict[str, Any]:
        """Return the options that HF PEFT does not know, for ``peft_lightning.json``."""
        values = {name: getattr(self, name) for name in sorted(self.own_options)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def trains_base(self) -> bool:
        """Whether weights of the base itself are trained, which have to be float32."""
        return False

    def with_tokenizer(self, tokenizer: Any) -> Adapter:
        """Add the adapter's new tokens to ``tokenizer``, in place.

        Returns:
            The adapter with the ids of its new tokens, to be attached; itself if it has none.

        Raises:
            UserError: If the tokenizer has them already, or gives them other ids.
        """
        return self

    def attach(self, model: nn.Module, *, initialise: bool = True) -> None:
        """Put trainable tensors into ``model`` and freeze the rest of it.

        The tensors are float32 over a base of any lower precision (float64 over float64). The
        adapter's dropout is active until ``model.eval()``; the mode of the base does not change.

        Args:
            model: A model without an adapter. If attaching fails it is unchanged.
            initialise: False leaves the tensors zero, to be loaded next, and draws no random
                numbers.

        Raises:
            UserError: If the model has an adapter already, or this one does not fit it.
        """
        if (other := attached_adapter(model)) is not None:
            raise UserError(
                f"the model already has an adapter, {other}: detach it first, one model holds "
                "one adapter"
            )
        self._insert(model, initialise)
        setattr(model, _ATTACHED, self)

    def detach(self, model: nn.Module) -> None:
        """Remove the adapter, which leaves the base bit-identical and frozen."""
        self._require_attached(model)
        self._undo(model)

    def disable(self, model: nn.Module) -> None:
        """Take the adapter out for ``disable_adapter``, which notes what changes, to undo it."""
        self._require_attached(model)
        self._undo(model)

    def prepare_inputs(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword inputs of ``model`` for ``batch``; the same object if unchanged.

        ``labels`` and ``loss_weights``, where the batch has them, are aligned with the inputs: an
        adapter that adds positions adds them there too.
        """
        return batch

    def is_padding_sensitive(self, model: nn.Module) -> bool:
        """Whether padding before a text would change the model's output for it."""
        return False

    def prepare_shared(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any] | None:
        """Return the inputs for a flat ``batch`` with the virtual tokens only once.

        They are the first sequence, and ``prefix_len``, their number, makes every other sequence
        attend to them: as attention is causal, their hidden states are the same for each.

        Returns:
            The inputs; None if the adapter has no virtual tokens.
        """
        return None

    @abstractmethod
    def _insert(self, model: nn.Module, initialise: bool) -> None:
        """Freeze ``model`` and put the trainable tensors in; change nothing if that fails."""

    @abstractmethod
    def _remove(self, model: nn.Module) -> None:
        """Undo ``_insert``."""

    @abstractmethod
    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the adapter's tensors in ``model`` by their names in the file."""

    def tensor_names(self, model: nn.Module) -> set[str]:
        """Return the names of ``tensors``; no other process has to call it."""
        return set(self.tensors(model))

    def hf_config(self, model: nn.Module) -> dict[str, Any]:
        """Return the content of ``adapter_config.json``: HF PEFT's keys, all of them."""
        base = getattr(model, "name_or_path", None) or None
        own = {**self.hf_options(), "base_model_name_or_path": base, "peft_type": self.peft_type}
        return {**HF_COMMON, **self.hf_defaults, **own}

    def merged_parameters(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the base's parameters as they are with the adapter merged into them.

        An adapter can be merged if it implements this: with these values in place of the base's,
        the plain base computes what it computes with the adapter.

        Returns:
            New tensors by the names of the parameters in the base, of any floating dtype: they are
            rounded to the base's once.

        Raises:
            UserError: If the adapter changes more than parameters of the base.
        """
        raise UserError(f"a {self.peft_type} adapter cannot be merged")

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the adapter's tensors by their names in the file: detached, not copied."""
        self._require_attached(model)
        return {name: tensor.detach() for name, tensor in self.tensors(model).items()}

    def hf_names(self, names: Iterable[str]) -> dict[str, str]:
        """Return the name that the adapter has for each tensor of a file.

        Raises:
            UserError: If the file holds more than one adapter.
        """
        return {name: name for name in names}

    def resolved_for(
        self, model: nn.Module, tensors: Mapping[str, Tensor]
    ) -> tuple[Adapter, Mapping[str, Tensor]]:
        """Return the adapter and its file's tensors, resolved for ``model``, the plain base.

        Raises:
            UserError: If the tensors were saved for another base.
        """
        return self, tensors

    def load_state_dict(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Copy ``tensors`` into the adapter's, which keep their dtype and device.

        Raises:
            UserError: If names are missing or unexpected or shapes differ. The message lists
                them, and nothing is copied.
        """
        own = self.state_dict(model)
        check_tensors_fit(own, tensors)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def extra_files(self, model: nn.Module) -> dict[str, str | bytes]:
        """Return the content of the files beside the tensor file, by file name."""
        return {"adapter_config.json": as_json(self.hf_config(model))}

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Self:
        """Create the adapter from the content of an ``adapter_config.json``.

        Missing keys have HF PEFT's defaults, not ours.

        Raises:
            UserError: If a key that is not implemented here differs from its default, or a value
                has the wrong type.
        """
        own = {f.name for f in fields(cls)}
        defaults = {**HF_COMMON, **cls.hf_defaults}
        values = {**defaults, **config}
        foreign = {
            key: value
            for key, value in values.items()
            if key not in own | cls.hf_ignored
            and value != defaults.get(key)
            and not (value is None or value is False or value == {} or value == [])
        }
        if foreign:
            given = ", ".join(f"{key}={value!r}" for key, value in foreign.items())
            raise UserError(
                f"the {cls.peft_type} adapter sets {given}, which {cls.__name__} does not "
                f"implement: {cls.elsewhere}"
            )
        options = {key: value for key, value in values.items() if key in own}
        check_field_types(cls, options)
        return cls(**options)

    def _undo(self, model: nn.Module) -> None:
        self._remove(model)
        delattr(model, _ATTACHED)

    def _require_attached(self, model: nn.Module) -> None:
        other = attached_adapter(model)
        if other != self:
            there = "it has no adapter" if other is None else f"it has {other}"
            raise UserError(f"{self} is not attached to this model: {there}")

    def _require(self, ok: bool, name: str, rule: str) -> None:
        """Raise UserError with the ``rule`` for the field ``name``, unless ``ok``."""
        if not ok:
            raise UserError(f"{name} must be {rule}, got {getattr(self, name)!r}")


def attached_adapter(model: nn.Module) -> Adapter | None:
    """Return the adapter that is attached to ``model``."""
    return getattr(model, _ATTACHED, None)


def is_ours(kind: type) -> bool:
    """Whether a class is of this package, not of a user or another package."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def adapter_dtype(base: torch.dtype) -> torch.dtype:
    """Return the dtype of trainable tensors over a base of dtype ``base``."""
    return torch.float64 if base == torch.float64 else torch.float32


def tokenizer_files(tokenizer: Any) -> dict[str, str | bytes]:
    """Return the files of a tokenizer of transformers, by name; tokenizer.json without white space.

    Several chat templates are in its config: their files would be in a folder of their own.
    """
    with tempfile.TemporaryDirectory() as folder:
        has_one = not isinstance(tokenizer.chat_template, dict)
        tokenizer.save_pretrained(folder, save_jinja_files=has_one)
        files = {f.name: f.read_bytes() for f in Path(folder).iterdir() if f.is_file()}
    if content := files.get("tokenizer.json"):  # a third of its indented size, and less
        compact = json.dumps(json.loads(content), ensure_ascii=False, separators=(",", ":"))
        files["tokenizer.json"] = compact.encode()
    return portable_files(files)


def as_json(content: Mapping[str, Any]) -> str:
    """Return ``content`` as HF PEFT writes it."""
    return json.dumps(content, indent=2, sort_keys=True)


def plain_number(value: float) -> float:
    """Return 32 for 32.0: HF PEFT writes whole numbers as integers."""
    return int(value) if float(value).is_integer() else value
