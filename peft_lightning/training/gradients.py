"""The gradient of an optimizer step: that of the mean loss over all its tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.loops.optimization.automatic import (
    Closure,
    _AutomaticOptimization,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from peft_lightning.messages import UserError
from peft_lightning.training.sanity_checks import SanityChecks

UNIT = 1024.0  # a power of two, so exact: keeps gradients of a sum in float16's range


class StepSums:
    """Losses and tokens of the micro-batches of an optimizer step, summed.

    Attributes:
        nll: Summed loss in nats; of all processes once the last gradient is computed.
        tokens: Labelled tokens, or the sum of their weights, as ``nll``.
        norm: Of the gradients that are to be clipped, if it is known.
        virtual_token_norms: Of the gradient of each virtual token, (n,), if there are any.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin an optimizer step."""
        self.nll: Tensor | float = 0.0
        self.tokens: Tensor | float = 0.0
        self.norm: Tensor | None = None
        self.virtual_token_norms: Tensor | None = None
        self._pending: Tensor | None = None  # tokens of the micro-batch under way
        self._counts_tokens: bool | None = None
        self._is_over = False

    def end(self) -> None:
        """End it; an optimizer that computes its step again, as LBFGS, begins anew."""
        self._is_over = True

    def mean(self, nll: Tensor, tokens: Tensor | float, batch: Any) -> Tensor:
        """Return the mean loss of a micro-batch, whose tokens become its weight in the step.

        Args:
            nll: Summed loss in nats.
            tokens: Labelled tokens, or the sum of their weights.
            batch: The micro-batch.

        Raises:
            UserError: If the loss leaves out the weights of the batch.
        """
        SanityChecks.check_weights(tokens, batch)
        if self._is_over:
            self.begin()
        count = torch.as_tensor(tokens, device=nll.device)
        self.nll = self.nll + nll.detach().double()
        self._pending = count.double() + (0.0 if self._pending is None else self._pending)
        return nll / torch.where(count > 0, count, 1).to(nll.dtype)

    def take(self, loss: Tensor, module_class: type) -> Tensor:
        """Return the weight of a micro-batch: its tokens, or 1 if nobody has counted them.

        Args:
            loss: What ``training_step`` returned.
            module_class: Whose ``training_step`` it was.

        Raises:
            UserError: If the tokens of another micro-batch of the step were counted, or not.
        """
        if self._is_over:
            self.begin()
        counts_tokens = self._pending is not None
        if self._counts_tokens not in (None, counts_tokens):
            raise UserError(
                f"training_step of {module_class.__name__} counts the tokens of some micro-batches "
                "only: return mean_loss(nll, tokens, batch) for each of them"
            )
        self._counts_tokens = counts_tokens
        if self._pending is None:
            self.nll = self.nll + loss.detach().double()
            weight = torch.ones((), dtype=torch.float64, device=loss.device)
        else:
            weight, self._pending = self._pending, None
        self.tokens = self.tokens + weight
        return weight

    @property
    def counts_tokens(self) -> bool:
        """Whether the weights are tokens; else each micro-batch counts as one."""
        return bool(self._counts_tokens)

    def reduce(self, trainer: Any, device: torch.device) -> None:
        """Sum both over all processes."""
        totals = torch.stack([torch.as_tensor(x, device=device) for x in (self.nll, self.tokens)])
        self.nll, self.tokens = trainer.strategy.reduce(totals, reduce_op="sum").unbind()


class TokenWeightedOptimization(_AutomaticOptimization):
    """Lightning's loop over the micro-batches of a step, in which each counts by its tokens.

    ``training_step`` returns a mean over the tokens of a micro-batch. Lightning takes the mean of
    these means, over the micro-batches and then over the processes, in which tokens of a short
    micro-batch count more (Lightning issue 20350). Here the loss is multiplied by its tokens before
    the backward pass, so that the gradients add up; before the last backward pass of a step they
    are divided by the tokens of the whole step. From ``on_after_backward`` of that pass on, the
    gradients are those of the mean, and no hook of a module has to be called for it.
    """

    def _make_closure(self, kwargs: OrderedDict, optimizer: Optimizer, batch_idx: int) -> Closure:
        self._is_first = batch_idx % self.trainer.accumulate_grad_batches == 0
        if self._is_first:
            self._sums.begin()
        return super()._make_closure(kwargs, optimizer, batch_idx)

    def _make_backward_fn(self, optimizer: Optimizer) -> Callable[[Tensor], None] | None:
        backward = super()._make_backward_fn(optimizer)
        if backward is None:
            return None
        return lambda loss: backward(self._weighted(loss))

    @property
    def _sums(self) -> StepSums:
        sums: Any = self.trainer.lightning_module.step_sums
        return sums

    def _weighted(self, loss: Tensor) -> Tensor:
        """Return a loss whose gradient adds up to that of the step, and scale those before it.

        Args:
            loss: That of ``training_step``, divided by the number of micro-batches.
        """
        trainer, sums = self.trainer, self._sums
        module: Any = trainer.lightning_module
        loss = loss * trainer.accumulate_grad_batches
        tokens = sums.take(loss, type(module))
        is_last = not trainer.fit_loop._should_accumulate()
        if not is_last:
            return loss * (tokens / UNIT).to(loss.dtype)
        sums.end()
        if self._is_first and trainer.world_size == 1:
            return loss  # a mean over all tokens already
        sums.reduce(trainer, loss.device)
        total = float(sums.tokens) or 1.0
        if not self._is_first:
            grads = [p.grad for p in module.trainable_parameters() if p.grad is not None]
            torch._foreach_mul_(grads, UNIT * trainer.world_size / total)
        if not sums.counts_tokens and trainer.global_step == 0:
            rank_zero_info(
                f"training_step of {type(module).__name__} does not say over how many tokens its "
                "mean is, so the micro-batches of a step count alike: return "
                "self.mean_loss(nll, tokens, batch) for a mean over all tokens of the step"
            )
        return loss * (tokens * trainer.world_size / total).to(loss.dtype)
