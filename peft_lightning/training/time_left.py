"""How long a training run still takes: from the first layers of its first forward pass on."""

from __future__ import annotations

from collections import deque


class TimeLeft:
    """Estimates the time that is left of a training run.

    From the second batch on it is the mean time of the last ones, the first left out, which warms
    up. Before, it comes from how many layers the first forward pass has gone through: with its
    backward pass a batch takes ``FORWARD_PASSES`` times as long.

    Args:
        batches: Of the whole run, on this device.
        evaluations: Of the whole run. Until one has been made, one of its batches is taken to
            last as long as a forward pass in training.
        evaluation_batches: Of each of them.
    """

    FORWARD_PASSES = 2.5  # the backward pass of a frozen base has no products for its weights

    def __init__(
        self, batches: float, evaluations: float = 0, evaluation_batches: float = 0
    ) -> None:
        self.batches, self.evaluations = batches, evaluations
        self.evaluation_batches = evaluation_batches
        self._times: deque[float] = deque(maxlen=50)
        self._finished = 0
        self._batch_start: float | None = None
        self._layers = (0, 1)
        self._evaluation_seconds: deque[float] = deque(maxlen=1)
        self._evaluation_start: float | None = None
        self._evaluated = 0

    def batch_starts(self, now: float) -> None:
        """Take the time."""
        self._batch_start, self._layers = now, (0, 1)

    def layer_ends(self, total: int) -> None:
        """Count a decoder layer of ``total`` that the forward pass has left."""
        self._layers = (self._layers[0] + 1, total)

    def batch_ends(self, now: float) -> None:
        """Take the time of the batch."""
        assert self._batch_start is not None
        if self._finished == 1:
            self._times.clear()
        self._times.append(now - self._batch_start)
        self._finished += 1
        self._batch_start = None

    def evaluation_starts(self, now: float) -> None:
        """Take the time."""
        self._evaluation_start, self._evaluated = now, 0

    def evaluation_batch_ends(self, count: int) -> None:
        """Take note that ``count`` batches of the validation are done."""
        self._evaluated = count

    def evaluation_ends(self, now: float) -> None:
        """Take the time of a validation."""
        if self._evaluation_start is not None:
            self._evaluation_seconds.append(now - self._evaluation_start)
            self.evaluations -= 1
        self._evaluation_start = None

    def seconds(self, now: float) -> float | None:
        """Return the estimate at the time ``now``; None as long as there is nothing to go by."""
        within = 0.0 if self._batch_start is None else now - self._batch_start
        left = self.batches - self._finished
        if self._times:
            each = sum(self._times) / len(self._times)
        else:
            count, total = self._layers
            if not count:
                return None
            each = within * total / count * self.FORWARD_PASSES
            if count >= total:  # the forward pass is over, and its time is no longer known
                each = max(each, within)
        seconds = each * left - min(within, each)
        return max(0.0, seconds) + self._of_evaluations(now, each)

    def _of_evaluations(self, now: float, each: float) -> float:
        """Return the seconds of the validations to come, the rest of this one included."""
        length = each * self.evaluation_batches / self.FORWARD_PASSES
        if self._evaluation_seconds:
            length = self._evaluation_seconds[-1]
        spent = 0.0
        if self._evaluation_start is not None:
            spent = now - self._evaluation_start
            if self._evaluated:
                length = spent * self.evaluation_batches / self._evaluated
        return max(0.0, max(0.0, self.evaluations) * length - min(spent, length))

    @property
    def is_rough(self) -> bool:
        """Whether fewer than two batches are behind the estimate."""
        return self._finished < 2
