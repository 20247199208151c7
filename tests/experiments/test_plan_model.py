"""Memory and operations of a step by arithmetic, against a calculation by hand."""

import pytest
import torch

from peft_lightning import Full, LoRA, PromptTuning
from peft_lightning.experiments.plan.gpu import (
    CONTEXT,
    FRAGMENTATION,
    UTILISATION,
    estimate,
    find_gpu,
    precision_on,
)
from peft_lightning.experiments.plan.model_shape import (
    ModelShape,
    StepOptions,
    memory_of,
    operations,
    shape_of,
)
from peft_lightning.messages import UserError
from tiny import tiny_model

# a model of 2 layers, of width 8, MLPs of 20, keys of 4, 100 tokens; 10 in a batch
LAYER = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 20  # queries, keys and values, output, MLP
SHAPE = ModelShape(2, 8, 20, 4, 100, linear=2 * LAYER, other=100 * 8 + 5 * 8, trainable=300)


def test_a_lora_step_needs_weights_activations_logits_and_its_own_numbers():
    memory = memory_of(SHAPE, StepOptions(tokens=10, dtype="bfloat16", compute_bytes=2))
    assert memory.weights == 2 * (2 * LAYER + 840)
    assert memory.trained == memory.gradients == 4 * 300
    assert memory.optimizer == 8 * 300
    # norms' inputs and outputs 4 x 8, queries 8, keys and values 2 x 4, attention 8, MLP 3 x 20
    assert memory.activations == 10 * 2 * (32 + 8 + 8 + 8 + 60) * 2
    assert memory.logits == 3 * 128 * 100 * 4
    assert memory.total == (
        memory.weights + 1200 + 2400 + memory.logits + memory.activations  # more than gradients
    )
    kept = memory_of(SHAPE, StepOptions(10, "bfloat16", 2, keeps_gradients=True))
    assert kept.total == memory.total + 1200


@pytest.mark.parametrize(("bits", "each"), [("4bit", 4.127), ("8bit", 8.02)])
def test_quantised_weights_are_the_linear_layers_with_their_scales(bits, each):
    memory = memory_of(SHAPE, StepOptions(10, "float32", 4, quantization=bits))
    assert memory.weights == pytest.approx(2 * LAYER * each / 8 + 840 * 4)


def test_checkpointing_keeps_the_input_of_each_layer_and_one_layer_whole():
    memory = memory_of(SHAPE, StepOptions(10, "float32", 4, checkpointing=True))
    assert memory.activations == 10 * (2 * 8 + 116) * 4


def test_operations_are_those_of_each_product_and_its_gradients():
    tokens, loss, row = 50.0, 20.0, 10.0
    products = 2 * 2 * LAYER * tokens
    # each token attends to half of its row, 5 tokens: 2 x 8 x 5 for scores, as many for sums
    attention = 2 * (2 * 2 * 8 * 5) * tokens
    head = 2 * 8 * 100 * loss
    frozen = (products + attention) + (products + 2 * attention) + 6 * 300 * tokens + 2 * head
    assert operations(SHAPE, tokens, loss, row, False) == pytest.approx(frozen)
    again = frozen + products + attention
    assert operations(SHAPE, tokens, loss, row, True) == pytest.approx(again)
    full = ModelShape(2, 8, 20, 4, 100, 2 * LAYER, 840, 2 * LAYER + 840, trains_base=True)
    trained = (products + attention) + (2 * products + 2 * attention) + 3 * head
    assert operations(full, tokens, loss, row, False) == pytest.approx(trained)


def test_the_sizes_of_a_model_are_read_from_it():
    model = tiny_model("llama", torch.float32)
    config = model.config
    linear = sum(
        m.weight.numel()
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and "lm_head" not in name
    )
    total = sum(p.numel() for p in model.parameters())
    model.requires_grad_(False)
    adapter = LoRA(r=2)
    adapter.attach(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = shape_of(model, adapter)
    assert (shape.layers, shape.hidden) == (config.num_hidden_layers, config.hidden_size)
    assert (shape.linear, shape.linear + shape.other) == (linear, total)
    assert shape.trainable == trained
    assert shape.trains_layers
    assert not shape.trains_base

    adapter.detach(model)
    prompt = PromptTuning(num_virtual_tokens=3)
    prompt.attach(model)
    shape = shape_of(model, prompt)
    assert (shape.linear, shape.virtual_tokens, shape.trains_layers) == (linear, 3, False)

    model = tiny_model("llama", torch.float32)
    Full().attach(model)
    shape = shape_of(model, Full())
    assert (shape.linear, shape.linear + shape.other, shape.trainable) == (linear, total, total)


def test_a_gpus_time_and_memory_follow_from_its_data_sheet():
    gpu = find_gpu("H100")
    options = StepOptions(tokens=4096)
    found = estimate(gpu, "bf16-mixed", SHAPE, options, 2048, 0.4, 10)
    assert found.peak == memory_of(SHAPE, options).total * FRAGMENTATION + CONTEXT
    assert found.fits
    work = operations(SHAPE, 1, 0.4, 10, False)
    assert found.seconds_per_token == pytest.approx(work / (989e12 * UTILISATION))
    quarter = estimate(gpu, "bf16-mixed", SHAPE, options, 512, 0.4, 10)  # a quarter of the tokens
    assert quarter.seconds_per_token == pytest.approx(2 * found.seconds_per_token)
    assert f"assumed: {UTILISATION:.0%} of the 989 TFLOP/s" in found.assumptions
    wide = estimate(gpu, "32-true", SHAPE, options, 2048, 0.4, 10)
    assert wide.seconds_per_token == pytest.approx(found.seconds_per_token * 989 / 67)


def test_precision_on_a_gpu_is_what_suits_it_unless_it_is_given():
    assert precision_on(find_gpu("rtx4090"), "auto", "auto") == "bf16-mixed"
    assert precision_on(find_gpu("t4"), "auto", "auto") == "16-mixed"
    assert precision_on(find_gpu("t4"), None, "float32") == "32-true"
    assert precision_on(find_gpu("t4"), 32, "auto") == "32-true"


def test_an_unknown_gpu_is_an_error_that_names_the_nearest():
    with pytest.raises(UserError, match=r"--gpu a100: known are h200, .*; did you mean a100-"):
        find_gpu("a100")
