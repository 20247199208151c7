"""AdapterModule: a LightningModule whose state is an adapter's, and that prepares its trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import lightning as L
from torch import Tensor

from peft_lightning.messages import UserError
from peft_lightning.training import module_state
from peft_lightning.training.evaluation import Evaluation
from peft_lightning.training.gradients import StepSums
from peft_lightning.training.trainer import attach


class AdapterModule(L.LightningModule):
    """What Lightning and torch ask of a module beside its steps; the base of ``CausalLMModule``.

    Everything that a run depends on is done by callbacks and loops of the trainer, which gets them
    when the trainer is set. So a subclass may override any hook of Lightning without ``super()``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.built_tensors: dict[str, bool] = {}  # of the model as it was built
        self.model_buffers: dict[str, Tensor] | None = None  # that it has got since then
        self.loaded_prefix = ""
        self.checked_prompts: Any = None  # those of predict, when they are known to fit
        self.cut_answers = 0  # of predict, by their length limit
        self.tokenizer_folder: Path | None = None  # of the adapter that answers, if not init_from
        self._modes: dict[str, bool] = {}  # of its parts before freeze
        self.step_sums, self.evaluation = StepSums(), Evaluation()
        self.register_load_state_dict_post_hook(module_state.forget_frozen)

    @property
    def trainer(self) -> L.Trainer:
        """The trainer; it gets what a run needs of it when Lightning sets it, before all hooks."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        L.LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]
        self.model_buffers = None
        attach(trainer, self)

    def freeze(self) -> Self:
        """Freeze all parameters and go to eval mode, as for answers; ``unfreeze`` undoes it."""
        self._modes = {name: part.training for name, part in self.named_modules()}
        super().freeze()
        return self

    def unfreeze(self) -> Self:
        """Unfreeze what is trained, and undo what ``freeze`` did; the base stays frozen."""
        for name, parameter in self.named_parameters():
            part, _, rest = name.partition(".")
            parameter.requires_grad_(
                self.built_tensors.get(rest, True) if part == "model" else True
            )
        for name, part in self.named_modules():
            part.training = self._modes.get(name, part.training)
        return self

    def to_onnx(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the formats of models for other programs are those of our commands.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "a CausalLMModule has no forward to trace: python -m peft_lightning merge writes a "
            "model for transformers and vLLM, export a GGUF file"
        )

    to_torchscript = to_tensorrt = to_onnx

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return what is trained or a subclass has added; nothing of the frozen base.

        The adapter's tensors have HF PEFT's names. The arguments are ``nn.Module``'s.
        """
        return module_state.state_dict(self, *args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what ``state_dict`` returns.

        Raises:
            UserError: If ``strict``, and tensors are missing, unexpected or misshapen.
        """
        if strict:
            module_state.check_fits(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        module_state.load_adapter(self, state_dict, prefix, *args)
        super()._load_from_state_dict(state_dict, prefix, *args)
