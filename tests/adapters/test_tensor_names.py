"""Names of tensors in files: what is certain without the model, and what only with it."""

import pytest
import torch
from torch import nn

from peft_lightning.adapters.tensor_names import layer_of, layers_in_model, peft_names, with_layers
from peft_lightning.messages import UserError

P = "base_model.model."


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.a.lora_A.weight", "model.a.lora_A.weight"),
        ("base_model.model.model.a.lora_A.weight", "model.a.lora_A.weight"),
        ("module.base_model.model.module.model.a.lora_B.weight", "model.a.lora_B.weight"),
        ("_orig_mod.base_model.model._orig_mod.a.lora_B.bias", "a.lora_B.bias"),
        ("model.base_model.model.model.a.lora_A.weight", "model.a.lora_A.weight"),
        ("base_model.model.base_model.model.model.a.lora_A.x.weight", "model.a.lora_A.weight"),
        ("model.a.lora_embedding_A.x", "model.a.lora_embedding_A"),
        ("a.lora_magnitude_vector.x.weight", "a.lora_magnitude_vector"),
        ("a.lora_magnitude_vector.weight", "a.lora_magnitude_vector"),
        ("head.modules_to_save.x.weight", "head.weight"),
        ("mlp.modules_to_save.x.up.weight", "mlp.up.weight"),
        ("e.token_adapter.trainable_tokens_delta.x", "e.token_adapter.trainable_tokens_delta"),
        ("a.module.b.lora_A.weight", "a.module.b.lora_A.weight"),  # within a model it is its own
        ("a.base_layer.bias", "a.base_layer.bias"),
    ],
)
def test_what_programs_wrap_around_a_model_is_no_part_of_a_name(name, expected):
    assert peft_names([name]) == {name: P + expected}


def test_a_soft_prompt_has_no_prefix():
    assert peft_names(["prompt_embeddings"]) == {"prompt_embeddings": "prompt_embeddings"}


def test_two_names_of_one_tensor_are_refused():
    with pytest.raises(UserError, match=r"the same tensor in two ways: a.lora_A.weight, module.a"):
        peft_names(["a.lora_A.weight", "module.a.lora_A.weight"])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("a.b.lora_A.weight", "a.b"),
        ("a.b.lora_magnitude_vector", "a.b"),
        ("a.b.base_layer.bias", "a.b"),
        ("a.b.weight", "a.b"),
        ("e.token_adapter.trainable_tokens_delta", "e"),
    ],
)
def test_a_tensor_belongs_to_the_layer_before_its_part(name, layer):
    assert layer_of(P + name) == layer


def tree(*names: str) -> nn.Module:
    """Return a module with linear layers of these names."""
    root = nn.Module()
    for name in names:
        at = root
        for part in name.split(".")[:-1]:
            if not hasattr(at, part):
                at.add_module(part, nn.Module())
            at = getattr(at, part)
        at.add_module(name.rpartition(".")[2], nn.Linear(1, 1))
    return root


def read(model: nn.Module, *layers: str) -> dict[str, str]:
    return layers_in_model(model, {f"{P}{name}.lora_A.weight": torch.zeros(1) for name in layers})


CAUSAL = tree("model.layers.0.q", "model.layers.1.q", "lm_head")
OF_IMAGES = tree("model.language_model.layers.0.q", "model.vision.layers.0.q", "lm_head")


@pytest.mark.parametrize(
    ("model", "layers", "expected"),
    [
        (CAUSAL, ["layers.0.q", "layers.1.q"], ["model.layers.0.q", "model.layers.1.q"]),
        (CAUSAL, ["language_model.model.layers.0.q"], ["model.layers.0.q"]),
        (CAUSAL, ["language_model.layers.0.q"], ["model.layers.0.q"]),
        (CAUSAL, ["language_model.lm_head"], ["lm_head"]),
        (CAUSAL, ["model.language_model.layers.1.q", "lm_head"], ["model.layers.1.q", "lm_head"]),
        (OF_IMAGES, ["model.layers.0.q"], ["model.language_model.layers.0.q"]),
        (OF_IMAGES, ["language_model.model.layers.0.q"], ["model.language_model.layers.0.q"]),
    ],
)  # fmt: skip
def test_layers_with_another_beginning_are_found_where_there_is_one_way(model, layers, expected):
    assert read(model, *layers) == dict(zip(layers, expected, strict=True))


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (CAUSAL, ["model.layers.0.q"]),  # the model's own
        (CAUSAL, ["layers.0.q", "layers.7.q"]),  # one is not there
        (CAUSAL, ["language_model.layers.0.q", "vision.layers.0.q"]),
        (CAUSAL, ["layers.0.q", "model.layers.0.q"]),  # two would be one
        (tree("layers.0.q", "model.layers.0.q"), ["language_model.layers.0.q"]),  # two ways
    ],
)
def test_names_are_left_alone_where_there_is_no_or_more_than_one_way(model, layers):
    assert read(model, *layers) == {}


def test_tensors_get_the_layers_new_names():
    tensors = {f"{P}layers.0.q.lora_A.weight": torch.ones(1), f"{P}lm_head.weight": torch.ones(2)}
    new = with_layers(tensors, {"layers.0.q": "model.layers.0.q", "lm_head": "lm_head"})
    assert list(new) == [f"{P}model.layers.0.q.lora_A.weight", f"{P}lm_head.weight"]
