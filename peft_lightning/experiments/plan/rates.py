"""Learning rates that were published for a method, and whether an adapter can hold the data."""

from __future__ import annotations

from dataclasses import dataclass

SMALL = 10**9  # parameters of a base below which published rates are higher


@dataclass(frozen=True)
class RateRange:
    """The range of learning rates of a method.

    Args:
        low: Lowest rate.
        high: Highest rate.
        source: Where both are from.
    """

    low: float
    high: float
    source: str


SWEPT = "swept by Biderman et al. 2024, arXiv:2405.09673, on 7B"
RATES = {  # peft_type: for bases of at least SMALL parameters, and for smaller ones
    "LORA": (
        RateRange(1e-5, 5e-4, SWEPT),
        RateRange(1e-5, 3e-3, "Hu et al. 2021 took 2e-4 on 355M, this project's 135M takes 3e-3"),
    ),
    "FULL": (
        RateRange(1e-5, 3e-4, "HF PEFT's comparison on 3B, alignment-handbook on 1.7B"),
        RateRange(1e-5, 1e-3, "TRL takes 2e-5, alignment-handbook 1e-3 on 135M"),
    ),
    "PROMPT_TUNING": (
        RateRange(1e-3, 0.3, "HF PEFT's comparison 1e-3, Lester et al. 2021 0.3 by Adafactor"),
    ),
    "P_TUNING": (RateRange(1e-3, 3e-2, "TRL takes 1e-2 to 3e-2 for prompts"),),
    "IA3": (RateRange(3e-3, 5e-3, "Liu et al. 2022 took 3e-3, HF PEFT's comparison 5e-3"),),
    "PREFIX_TUNING": (RateRange(1e-3, 3e-2, "HF PEFT's comparison takes 5e-3"),),
}


def rate_range(peft_type: str, parameters: int) -> RateRange | None:
    """Return the published range of a method's learning rate; None if none is known.

    Args:
        peft_type: The method.
        parameters: Of the base.
    """
    ranges = RATES.get(peft_type)
    return None if ranges is None else ranges[-1 if parameters < SMALL else 0]


def rate_warning(
    peft_type: str, parameters: int, rate: float | None, recommended: float
) -> str | None:
    """Return a line if a learning rate is outside what is published for the method.

    Args:
        peft_type: The method.
        parameters: Of the base.
        rate: The highest learning rate of the run.
        recommended: That of the adapter's class.
    """
    found = rate_range(peft_type, parameters)
    if rate is None or found is None or found.low <= rate <= found.high:
        return None
    side = "above" if rate > found.high else "below"
    return (
        f"learning rate {rate:g} is {side} what is published for {peft_type} on a base of this "
        f"size, {found.low:g} to {found.high:g} ({found.source}); recommended here: "
        f"--model.learning_rate {recommended:g}"
    )


def capacity_note(peft_type: str, trainable: int, loss_tokens: int) -> str | None:
    """Return a line if a LoRA has fewer parameters than there are tokens to learn.

    The rule is that of Schulman 2025, "LoRA Without Regret": a LoRA learns like full fine-tuning
    as long as it has at least as many parameters as there are tokens in the loss.
    """
    if peft_type != "LORA" or trainable >= loss_tokens:
        return None
    return (
        f"the LoRA has {trainable:,} parameters for {loss_tokens:,} tokens in the loss: with fewer "
        "parameters than tokens it may learn less than full fine-tuning (Schulman 2025, LoRA "
        "Without Regret); a higher r has more"
    )
