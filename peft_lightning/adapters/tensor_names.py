"""The names and shapes of a model's tensors compared with those of a file."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from peft_lightning.messages import shortened


def check_names(model: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of a model's tensors with a file's.

    Raises:
        ValueError: If they differ; lists every kind of difference, long lists shortened.
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
        raise ValueError(
            "the tensors do not fit the adapter in this model: "
            + "; ".join(
                f"{len(names)} {problem}: {shortened(names)}"
                for problem, names in problems.items()
                if names
            )
        )
