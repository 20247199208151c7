"""CausalLMModule: a frozen causal LM, one adapter, and a loss that is exact to the token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn, optim

from peft_lightning.adapters import LoRA
from peft_lightning.hidden_cache.cache import cache_of_run
from peft_lightning.training import adapter_state, build_model, gradients, prediction
from peft_lightning.training.callbacks import default_callbacks
from peft_lightning.training.evaluation import Evaluation, with_source
from peft_lightning.training.lr_schedule import DEFAULT_SCHEDULE, LRScheduleOption
from peft_lightning.training.optimizer import configure_optimizers
from peft_lightning.training.trainer import prepare_trainer


class CausalLMModule(L.LightningModule):
    """Trains one adapter on a frozen causal language model.

    Override ``nll`` for another loss: it returns a sum and a count, so gradient accumulation and
    several processes stay exact. If rows have weights, ``batch["loss_weights"]`` are the tokens':
    weigh sum and count by them. The base stays in eval mode; only the adapter's dropout is active.

    Args:
        base_model: Hub id, local folder or GGUF file of a causal LM.
        adapter: What is trained: LoRA, PromptTuning, Full; PTuning or PrefixTuning, from a folder.
        learning_rate: Peak learning rate; by default the one its adapter recommends.
        optimizer: A torch optimizer by class path; by default AdamW without weight decay.
        lr_schedule: Of the learning rate: ours, torch's, or a function of the step.
        dtype: Of the base: auto, float32, bfloat16 or float16. The adapter is always float32.
        quantization: 4bit or 8bit: the base's linear layers in so many bits, by bitsandbytes.
        activation_checkpointing: Recompute activations in the backward pass; do not keep them.
        compile: Compile the decoder layers with torch.compile; not for virtual tokens.
        cache_hidden_states: Run the layers below the adapter once a row; keep the outputs on disk.
        hidden_cache_gib: Disk space for these files in GiB; the least recently used are removed.
        sample_prompts: Prompts whose greedy answers are logged at each validation.
        sample_max_new_tokens: Length limit of those answers.
        predict_max_new_tokens: Length limit of the answers of ``predict``.
        attn_implementation: auto (one attention per sequence), or transformers' sdpa, eager, ...
        trust_remote_code: Whether code that comes with the base model may run.
        revision: Branch, tag or commit of a hub id.
        init_from: Train the adapter of a folder, ours or HF PEFT's, or ``owner/name@revision``.
    """

    def __init__(
        self,
        base_model: build_model.BaseModelOption,
        adapter: build_model.AdapterOption = LoRA(),  # noqa: B008  (frozen)
        learning_rate: float | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_schedule: LRScheduleOption = DEFAULT_SCHEDULE,
        dtype: str = "auto",
        activation_checkpointing: bool = False,
        compile: bool = False,
        cache_hidden_states: bool = False,
        hidden_cache_gib: float = 20.0,
        sample_prompts: list[str] | None = None,
        sample_max_new_tokens: int = 64,
        predict_max_new_tokens: int = 128,
        attn_implementation: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
        init_from: str | None = None,
        quantization: str | None = None,
    ) -> None:
        super().__init__()
        self.configured_adapter = adapter = build_model.adapter_of(adapter)
        self.init_from, adapter = build_model.adapter_to_train(adapter, init_from)
        build_model.check_options(adapter, learning_rate, activation_checkpointing)
        base = build_model.base_of(base_model, dtype, quantization, revision)
        self.base_model_name, self.given_base = base
        self.revision, self.adapter = revision, adapter
        self.learning_rate = adapter.learning_rate if learning_rate is None else learning_rate
        self.optimizer, self.given_learning_rate = optimizer, learning_rate
        self.dtype_name, self.quantization, self.lr_schedule = dtype, quantization, lr_schedule
        self.activation_checkpointing, self.compile_layers = activation_checkpointing, compile
        self.cache_hidden_states, self.hidden_cache_gib = cache_hidden_states, hidden_cache_gib
        self.sample_prompts = sample_prompts or []
        self.sample_max_new_tokens = sample_max_new_tokens
        self.predict_max_new_tokens = predict_max_new_tokens
        self.attn_implementation, self.trust_remote_code = attn_implementation, trust_remote_code
        unset: Any = None  # until build_model; the bank, of several adapters, until predict
        self.model = self.outputs = self.tokenizer = self.bank = unset
        self.fingerprint: dict[str, Any] | None = None
        self.answer_folders: dict[str, str] = {}
        self.correct: Tensor | None = None  # correct predictions of the last nll, if it counts them
        self.step_sums, self.evaluation = gradients.StepSums(), Evaluation()

    def configure_model(self) -> None:
        """Load the base, freeze it and attach the adapter; once, however often it is called."""
        if self.model is None:
            build_model.build_model(self)

    def load_tokenizer(self) -> Any:
        """Return the base's tokenizer with the adapter's new tokens; it is loaded once."""
        return build_model.tokenizer_of(self)

    def extend_tokenizer(self, tokenizer: Any) -> None:
        """Add the adapter's new tokens to another tokenizer that the data goes through."""
        build_model.extend_tokenizer(self, tokenizer)

    def setup(self, stage: str) -> None:
        prepare_trainer(self.trainer)

    def configure_callbacks(self) -> list[L.Callback]:
        return default_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return configure_optimizers(self, CausalLMModule)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer updates."""
        return [p for p in self.parameters() if p.requires_grad]

    def on_fit_start(self) -> None:
        self.outputs.frozen = cache_of_run(self) if self.cache_hidden_states else None

    def nll(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the summed loss in nats and the tokens in it, both weighted by their weights."""
        nll, tokens, self.correct = self.outputs.nll(batch)
        return nll, tokens

    def labelled_logits(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the logits that predict labelled tokens, (N, V), and those tokens, (N,)."""
        return self.outputs.logits(batch)

    def labelled_weights(self, batch: dict[str, Any]) -> Tensor:
        """Return the weights of the tokens of ``labelled_logits``, (N,); 1 where rows have none."""
        return self.outputs.weights(batch)

    def loss_path(self) -> str:
        """Return how the loss is computed, for the table at a run's start."""
        return self.outputs.path()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self.step_sums.add(*self.nll(batch), batch)  # a sum: below, the gradient is a mean's

    def on_before_optimizer_step(self, optimizer: optim.Optimizer) -> None:
        """Divide by the tokens of the whole step, whatever its micro-batches and processes."""
        gradients.finish_gradients(self, CausalLMModule)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip, unless ``on_before_optimizer_step`` has done so. An override replaces both."""
        options = (optimizer, gradient_clip_val, gradient_clip_algorithm)
        gradients.clip_gradients(self, CausalLMModule, *options)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.correct, batch = None, with_source(self.trainer, batch, dataloader_idx)
        self.evaluation.update(*self.nll(batch), self.correct, batch)  # which nll has set

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.evaluation.log(self, "val")

    def on_test_epoch_end(self) -> None:
        self.evaluation.log(self, "test")

    def answer_with(self, folders: list[str]) -> list[str]:
        """Let ``predict`` use the adapters of ``folders``, NAME=FOLDER each; return the names."""
        return prediction.answer_with(self, folders)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        return prediction.predict_batch(self, batch)

    def generate(
        self, prompts: list[list[int]] | list[str], max_new_tokens: int = 128
    ) -> list[str]:
        """Return the greedy answers to prompts: texts (in the chat template) or token ids."""
        return prediction.generate_texts(self, prompts, max_new_tokens)

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the adapter's tensors under HF PEFT's names; nothing of the frozen base."""
        return adapter_state.adapter_tensors(self, prefix)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the adapter's tensors; missing, unexpected and misshapen ones are an error."""
        return adapter_state.load_adapter_tensors(self, state_dict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        adapter_state.add_to_checkpoint(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        adapter_state.check_checkpoint(self, checkpoint)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, base_model: str | None = None, **kwargs: Any
    ) -> CausalLMModule:
        """Build a module from an adapter folder, on another ``base_model`` if that has moved."""
        return build_model.load_trained(cls, checkpoint_path, base_model, kwargs)
