"""The state dict in an adapter's file: HF PEFT's prefix, and whether it fits the model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from peft_lightning.messages import UserError, shortened

PREFIX = "base_model.model."  # HF PEFT's, before each parameter's name in the model


def check_tensors_fit(model: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> None:
    """Compare the names and shapes of a model's tensors with those of a file.

    Raises:
        UserError: If they differ. The message lists missing, unexpected and misshapen tensors,
            long lists shortened.
    """
    missing = [name for name in model if name not in file]
    unexpected = [name for name in file if name not in model]
    misshapen = [
        f"{name} {tuple(file[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in model.items()
        if name in file and file[name].shape != tensor.shape
    ]
    problems = {
        "missing in the file": missing,
        "unexpected in the file": unexpected,
        "of another shape in the file": misshapen,
    }
    if any(problems.values()):
        raise UserError(
            "the tensors do not fit the adapter in this model: "
            + "; ".join(
                f"{len(names)} {problem}: {shortened(names)}"
                for problem, names in problems.items()
                if names
            )
            + "; give the base that it was trained on"
        )
