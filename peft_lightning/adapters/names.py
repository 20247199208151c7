"""Names compared, and what a message says of wrong ones: the nearest, and readable lists."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor


def shortened(names: Sequence[str], limit: int = 5) -> str:
    """Join names, all of them or the first ``limit`` with the count of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def nearest(wrong: Iterable[str], right: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the nearest right name of each wrong one, or nothing."""
    right = list(right)
    found = [difflib.get_close_matches(name, right, n=1, cutoff=0.5) for name in wrong]
    names = list(dict.fromkeys(match for matches in found for match in matches))
    return f"; did you mean {', '.join(names)}?" if names else ""


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
