"""KeptCheckpoints: which checkpoints stay beside last.ckpt and best.ckpt, by their steps."""

from __future__ import annotations

from typing import Any

from peft_lightning.messages import UserError

ALL = -1


class KeptCheckpoints:
    """The steps whose checkpoints some rule keeps; each is saved as ``step=<n>.ckpt``.

    Args:
        save_top_k: How many of the best validations are kept; 1 for ``best.ckpt`` alone.
        keep_last: How many of the last saves are kept; 1 for ``last.ckpt`` alone.
        every_n_train_steps: Every so many steps one is kept for good; None for none.
        mode: Which of two scores is better, min or max.

    Raises:
        UserError: If a number is neither at least 1 nor -1, for all of them.
    """

    def __init__(
        self, save_top_k: int, keep_last: int, every_n_train_steps: int | None, mode: str
    ) -> None:
        given = {"save_top_k": save_top_k, "keep_last": keep_last}
        for name, number in given.items():
            if number < 1 and number != ALL:
                raise UserError(f"{name} must be at least 1, or -1 for all of them, got {number}")
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise UserError(f"every_n_train_steps must be at least 1, got {every_n_train_steps}")
        self.save_top_k, self.keep_last, self.every = save_top_k, keep_last, every_n_train_steps
        self._sign = 1 if mode == "min" else -1
        self.scores: dict[int, float] = {}  # of the best validations, by step
        self.last: list[int] = []
        self.regular: list[int] = []

    @property
    def steps(self) -> set[int]:
        """The steps that are kept now."""
        return {*self.scores, *self.last, *self.regular}

    def is_due(self, step: int) -> bool:
        """Whether a step has to be saved although nothing else saves it."""
        return self.every is not None and step > 0 and step % self.every == 0

    def add(self, step: int) -> None:
        """Take a step that is saved."""
        if self.keep_last != 1:
            saved = [*(s for s in self.last if s != step), step]
            self.last = saved if self.keep_last == ALL else saved[-self.keep_last :]
        if self.is_due(step) and step not in self.regular:
            self.regular.append(step)

    def add_score(self, step: int, score: float) -> None:
        """Take a step that was validated; one whose score is nan is not among the best."""
        if self.save_top_k == 1 or score != score:
            return
        ranked = sorted({**self.scores, step: score}.items(), key=lambda x: (self._sign * x[1], x))
        self.scores = dict(ranked if self.save_top_k == ALL else ranked[: self.save_top_k])

    def state_dict(self) -> dict[str, Any]:
        """Return the steps of each rule, for a run that goes on."""
        return {"scores": dict(self.scores), "last": [*self.last], "regular": [*self.regular]}

    def load_state_dict(self, state: dict[str, Any]) -> set[int]:
        """Go on with them; a rule that is not configured any more forgets its own.

        Returns:
            The steps that were kept, by whatever rules.
        """
        self.scores = dict(state["scores"]) if self.save_top_k != 1 else {}
        self.last = [*state["last"]] if self.keep_last != 1 else []
        self.regular = [*state["regular"]]
        return {*state["scores"], *state["last"], *state["regular"]}
