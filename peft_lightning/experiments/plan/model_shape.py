"""What a training step needs by arithmetic: bytes of memory and floating-point operations.

Memory is that of Korthikanti et al. 2022 (arXiv:2205.05198, section 4) for layers whose attention
keeps no scores, with what frozen weights leave out; operations are 2 for each weight and token of a
product, forward, and as many for each of the two gradients backward (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from peft_lightning.base_model.quantization import count_numbers
from peft_lightning.kernels.decoder_layers import decoder_layers

CHUNK = 128  # positions whose logits exist at once: linear_cross_entropy
LOGITS = 3  # copies of a chunk's logits in float32: they, their probabilities, their gradient
OPTIMIZER_BYTES = 8  # of a parameter: AdamW's two means in float32
TRAINED_BYTES = 4  # of a trained parameter, and of its gradient: both are float32
BITS = {"4bit": 4.127, "8bit": 8.02}  # of a quantised weight with its scales: QLoRA, LLM.int8()
WEIGHT_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that decide what a step needs.

    Args:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        intermediate: Width of an MLP.
        kv: Width of the keys, and of the values.
        vocabulary: Rows of the output embedding.
        linear: Weights of the linear layers in the decoder.
        other: Other weights of the base: embeddings, norms.
        trainable: Trained parameters.
        trains_base: Whether the base's own weights are trained.
        trains_layers: Whether something in the decoder's layers is trained, so that the inputs of
            their products are kept.
        virtual_tokens: Before each sequence.
    """

    layers: int
    hidden: int
    intermediate: int
    kv: int
    vocabulary: int
    linear: int
    other: int
    trainable: int
    trains_base: bool = False
    trains_layers: bool = True
    virtual_tokens: int = 0


@dataclass(frozen=True)
class StepOptions:
    """The options of a run that decide what a step needs.

    Args:
        tokens: Tokens of the largest batch.
        dtype: Type of the base's weights.
        compute_bytes: Of a number of the activations: 2 in bf16-mixed, 4 in 32-true.
        quantization: 4bit, 8bit or None.
        checkpointing: Whether activations are computed again in the backward pass.
        keeps_gradients: Whether gradients of earlier batches are kept, to accumulate.
    """

    tokens: int
    dtype: str = "bfloat16"
    compute_bytes: int = 2
    quantization: str | None = None
    checkpointing: bool = False
    keeps_gradients: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step, by what they are for.

    Args:
        weights: Of the base.
        trained: Trained parameters that are not the base's own.
        gradients: Of the trained parameters.
        optimizer: Its state.
        activations: What the backward pass needs of the forward pass.
        logits: Of a chunk.
        keeps_gradients: Whether there are gradients already when all activations are there; else
            the ones grow as the others are freed.
    """

    weights: float
    trained: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    keeps_gradients: bool = False

    @property
    def total(self) -> float:
        """Bytes at the highest."""
        both = self.activations + self.gradients
        most = both if self.keeps_gradients else max(self.activations, self.gradients)
        return self.weights + self.trained + self.optimizer + self.logits + most


def shape_of(model: Any, adapter: Any) -> ModelShape:
    """Return the sizes of a model with its adapter attached, which may be on the meta device."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    tied = {id(p) for m in (head, model.get_input_embeddings()) if m for p in m.parameters()}
    linear = sum(
        count_numbers(m.weight)
        for m in model.modules()
        if isinstance(m, nn.Linear) and id(m.weight) not in tied
        if adapter.trains_base or not m.weight.requires_grad
    )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(count_numbers(p) for p in model.parameters())
    base = total if adapter.trains_base else total - trainable
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    heads = getattr(config, "num_attention_heads", 1) or 1
    width = getattr(config, "head_dim", None) or hidden // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return ModelShape(
        *(layers, hidden, int(inner or 4 * hidden), int(kv_heads * width)),
        *(int(config.vocab_size), linear, base - linear, trainable),
        bool(adapter.trains_base),
        any(p.requires_grad for layer in decoder_layers(model) for p in layer.parameters()),
        int(getattr(adapter, "num_virtual_tokens", 0) or 0),
    )


def memory_of(shape: ModelShape, options: StepOptions) -> Memory:
    """Return the bytes of a training step at its highest, on a device that holds nothing else."""
    bits = BITS.get(options.quantization or "", 8 * WEIGHT_BYTES[options.dtype])
    weights = shape.linear * bits / 8 + shape.other * WEIGHT_BYTES[options.dtype]
    trained = TRAINED_BYTES * shape.trainable
    return Memory(
        weights,
        0.0 if shape.trains_base else trained,
        trained,
        OPTIMIZER_BYTES * shape.trainable,
        options.tokens * activation_bytes_per_token(shape, options),
        LOGITS * CHUNK * shape.vocabulary * 4.0,
        options.keeps_gradients,
    )


def activation_bytes_per_token(shape: ModelShape, options: StepOptions) -> float:
    """Return the bytes that the backward pass needs of each token of a batch.

    A layer keeps the inputs of its two norms, queries, keys, values and output of the attention,
    and both inner products of the gated MLP. Where something in it is trained it keeps the inputs
    of the products too: the norms' outputs, and what goes into the last product of the MLP. With
    activation checkpointing it keeps its input alone, and one layer at a time has all.
    """
    inside = 4 * shape.hidden + 2 * shape.kv + 2 * shape.intermediate
    if shape.trains_layers:
        inside += 2 * shape.hidden + shape.intermediate
    if options.checkpointing:
        return float((shape.layers * shape.hidden + inside) * options.compute_bytes)
    return float(shape.layers * inside * options.compute_bytes)


def operations(
    shape: ModelShape, tokens: float, loss_tokens: float, row_tokens: float, checkpointing: bool
) -> float:
    """Return the floating-point operations of training on tokens.

    Args:
        shape: The model.
        tokens: All of them.
        loss_tokens: Those in the loss, which alone meet the output embedding.
        row_tokens: Mean length of a row; half of it is what a token attends to.
        checkpointing: Whether layers are computed twice.
    """
    products = 2 * shape.linear * tokens
    # scores and weighted sums, over half of the row on average
    attention = 2 * shape.layers * shape.hidden * row_tokens * tokens
    forward = products + attention
    backward = products * (2 if shape.trains_base else 1) + 2 * attention
    adapter = 6 * shape.trainable * tokens if shape.trains_layers and not shape.trains_base else 0
    head = loss_tokens * 2 * shape.vocabulary * shape.hidden * (3 if shape.trains_base else 2)
    return forward * (2 if checkpointing else 1) + backward + adapter + head


def with_virtual_tokens(shape: ModelShape, options: StepOptions, rows: int) -> StepOptions:
    """Return the options with the tokens that a prompt adds before each of the rows."""
    return replace(options, tokens=options.tokens + rows * shape.virtual_tokens)
