"""How a run is spread over processes: ``trainer.strategy``, and FSDP2 as one of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from peft_lightning.messages import UserError
from peft_lightning.training.cluster.fsdp2 import gather_full, shard, shard_like

UNSUPPORTED = {  # start of a strategy's name, in lower case -> what to do
    r"ddp_(spawn|fork|notebook)": "processes are started as scripts here: use ddp",
    r"fsdp(?!2)": "FSDP1 flattens float32 adapters and a bfloat16 base into one tensor: use fsdp2",
    r"modelparallel": "it reads checkpoints of its own form, not adapter folders: use fsdp2",
    r"single_(xla|tpu)": "it cannot be made by name: give trainer.accelerator tpu",
    r"deepspeed": "its checkpoints are no adapter folders, and it was never run here: use fsdp2, "
    "which parts layers, gradients and optimizer state, or ddp",
}


def supported_strategies(names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that no entry of ``UNSUPPORTED`` begins."""
    return [n for n in names if not any(re.match(start, n) for start in UNSUPPORTED)]


def require_supported(strategy: Any) -> None:
    """Raise UserError if a run cannot be spread by ``strategy``, a name or an object."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if isinstance(strategy, DDPStrategy) and strategy._start_method != "popen":
        name = f"ddp_{strategy._start_method}"
    for start, use in UNSUPPORTED.items():
        if re.match(start, name.rpartition(".")[2].lower()):
            raise UserError(f"trainer.strategy {name} does not work with adapters: {use}")


class FSDP2Strategy(DDPStrategy):
    """Data parallelism in which each process holds its part of the layers: ``strategy: fsdp2``.

    Everything but where the tensors are is as in DDP. Not Lightning's ``ModelParallelStrategy``,
    which loads checkpoints of its own form only, and after sharding: here a checkpoint is the
    adapter's folder, as ever, and a run may go on with another strategy.

    Args:
        kwargs: Those of ``DDPStrategy`` that say how processes find each other.
    """

    strategy_name = "fsdp2"

    def tensor_init_context(self, empty_init: bool | None = None) -> Any:
        """Load the base on the CPU: no device has to hold all of it."""
        return self.precision_plugin.tensor_init_context()

    def setup(self, trainer: L.Trainer) -> None:
        """Shard the model, which moves its layers, and move the rest."""
        module: Any = self.lightning_module
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        if module.cache_hidden_states:
            raise UserError(
                "cache_hidden_states: true does not go with strategy fsdp2: it needs the whole "
                "model in each process; use strategy ddp"
            )
        if module.compile_layers:
            raise UserError(
                "compile: true does not go with strategy fsdp2, which parts the layers that are "
                "compiled: set model.compile to false, or use strategy ddp"
            )
        if not isinstance(module, FSDPModule):  # it is after fit, when the same one is validated
            self.precision_plugin.convert_module(module)
            mesh = init_device_mesh(self.root_device.type, (self.world_size,))
            steps = ("training_step", "validation_step", "test_step", "generate", "loss_path")
            shard(module, mesh, steps)
        module.to(self.root_device)
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state with whole tensors."""
        return tree_map(gather_full, super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each process its part of a state with whole tensors."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for i, values in saved["state"].items():
                parted = {name: shard_like(v, parameters[i]) for name, v in values.items()}
                saved["state"][i] = parted
        super().load_optimizer_state_dict(checkpoint)


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="The layers in parts: FSDP2")
