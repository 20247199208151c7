"""The files of a model's folder in the forms of transformers 4.x and 5."""

import contextlib
import json

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoTokenizer,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    Olmo3Config,
    Phi3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from peft_lightning.base_model.portable import make_portable, portable_config
from peft_lightning.base_model.portable_tokenizer import portable_tokenizer_config
from tiny_gguf import digit_tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def saved(config):
    return json.loads(config.to_json_string())


def holds(content, part):
    """Whether ``content`` has all of ``part``, in nested dictionaries too."""
    if isinstance(part, dict) and isinstance(content, dict):
        return all(key in content and holds(content[key], value) for key, value in part.items())
    return content == part


@pytest.mark.parametrize(
    ("config", "older"),
    [
        (
            LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
            {"rope_theta": 5e5, "rope_scaling": None},
        ),
        (
            LlamaConfig(rope_parameters={**LLAMA3, "rope_theta": 5e5}),
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        ),
        (
            GPTNeoXConfig(rope_parameters={"rope_theta": 5e4, "partial_rotary_factor": 0.5}),
            {"rotary_emb_base": 5e4, "rotary_pct": 0.5, "rope_scaling": None},
        ),
        (
            Gemma3TextConfig(
                rope_parameters={
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
                }
            ),
            {
                "rope_theta": 2e6,
                "rope_local_base_freq": 2e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        (
            Phi3Config(
                original_max_position_embeddings=64,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 5e4,
                    "short_factor": [1.0] * 48,
                    "long_factor": [2.0] * 48,
                },
            ),
            {  # 4.x refuses other keys in rope_scaling than these three
                "rope_theta": 5e4,
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0] * 48,
                    "long_factor": [2.0] * 48,
                },
            },
        ),
        (LlamaConfig(dtype="bfloat16"), {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        (Olmo3Config(), {"rope_theta": 5e5, "rope_scaling": None}),
        (Qwen3MoeConfig(num_experts=4), {"num_experts": 4, "num_local_experts": 4}),
        (
            GraniteMoeHybridConfig(
                num_hidden_layers=2,
                layer_types=["linear_attention", "full_attention"],
                time_step_limit=[0.0, 1.0],
            ),
            {"layer_types": ["mamba", "attention"]},
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_the_older_keys_hold_the_rotary_parameters_as_4x_names_them(config, older):
    assert holds(portable_config(saved(config)), {**saved(config), **older})


def test_transformers_5_reads_the_same_config_from_both_forms_by_each_of_its_rules():
    found = {}
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        kind = CONFIG_MAPPING[model_type]
        aliases = {"num_experts", "layers_block_type", "layer_types"} & kind.attribute_map.keys()
        found.setdefault((kind.convert_rope_params_to_dict, *sorted(aliases)), kind)
    written = 0
    for kind in found.values():
        with contextlib.suppress(StrictDataclassError):  # the defaults of some cannot be read
            plain = saved(kind())
            expected = kind.from_dict(plain).to_dict()
            both = portable_config(plain)
            written += both != plain
            assert holds(kind.from_dict(both).to_dict(), expected), kind
    assert written >= 10


def test_parameters_that_differ_by_layer_are_left_out_where_4x_has_no_key_for_them():
    rope = {
        kind: {"rope_type": "default", "rope_theta": theta}
        for kind, theta in [("full_attention", 1e4), ("sliding_attention", 2e4)]
    }
    both = portable_config(saved(Olmo3Config(rope_parameters=rope)))
    assert "rope_theta" not in both
    assert both["rope_parameters"] == rope


def test_infinite_numbers_are_written_as_4x_reads_them():
    both = portable_config(
        {"model_type": "bamba", "time_step_limit": [0.0, {"__float__": "Infinity"}]}
    )
    assert both["time_step_limit"] == [0.0, float("inf")]


def test_a_tokenizer_is_saved_under_names_of_4x_and_read_as_it_was(tmp_path):
    tokenizer = digit_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>"]})
    tokenizer.save_pretrained(tmp_path)
    make_portable(tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert content["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert content["additional_special_tokens"] == ["<tool>"]
    assert "extra_special_tokens" not in content  # 4.x expects a dict there
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.extra_special_tokens == ["<tool>"]
    assert read("1 <tool>2")["input_ids"] == tokenizer("1 <tool>2")["input_ids"]


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (True, True)])
def test_whether_bos_and_eos_are_added_is_in_the_config_of_classes_that_read_it_there_in_4x(
    kind, bos, eos, tmp_path
):
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "<bos>", "<eos>", "▁", "a"])}
    backend = {"tokenizer_object": digit_tokenizer().backend_tokenizer, "bos_token": "<pad>"}
    given = backend if kind.startswith("Pre") else {"vocab": vocabulary, "merges": []}
    tokenizer = getattr(transformers, kind)(**given, add_bos_token=bos, add_eos_token=eos)
    tokenizer.save_pretrained(tmp_path)
    make_portable(tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    keys = [content.get("add_bos_token"), content.get("add_eos_token")]
    assert keys == ([None, None] if kind.startswith("Pre") else [bos, eos])
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert type(read).__name__ == kind or kind.startswith("Pre")
    assert read("a a")["input_ids"] == tokenizer("a a")["input_ids"]


def test_other_tokens_around_a_text_leave_the_tokenizers_config_alone(tmp_path):
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": {"content": "<s>"}}
    step = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]"}}]}
    steps = {"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, step]}}
    assert portable_tokenizer_config(config, steps) == config
    step["single"][0]["SpecialToken"]["id"] = "<s>"
    found = portable_tokenizer_config(config, steps)
    assert (found["add_bos_token"], found["add_eos_token"]) == (True, False)
    assert (
        portable_tokenizer_config({**config, "add_bos_token": False}, steps)["add_bos_token"]
        is False
    )
    assert "add_bos_token" not in portable_tokenizer_config(
        config, {"post_processor": {"type": "Bert"}}
    )
