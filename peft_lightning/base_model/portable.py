"""``config.json`` and ``tokenizer_config.json`` in the forms of transformers 5 and of 4.x alike.

Version 5 keeps all rotary positions in ``rope_parameters``. Version 4 knows nothing of it and takes
its defaults without a word, and so does every program that reads ``rope_theta`` and
``rope_scaling``. Both forms are written here, the older one only where version 5 reads the very
parameters from it: its own classes say what each older key means in which architecture.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from peft_lightning.base_model.portable_tokenizer import portable_tokenizer_config
from peft_lightning.files import atomic_text

CONFIG, TOKENIZER_CONFIG, TOKENIZER = "config.json", "tokenizer_config.json", "tokenizer.json"
ROPE = "rope_parameters"
# names in 4.x of the base, of that of sliding layers, and of the share of a head that is rotated
_NAMES = (
    ("rope_theta", None, "partial_rotary_factor"),
    ("rotary_emb_base", None, "rotary_pct"),
    ("rope_theta", "rope_local_base_freq", "partial_rotary_factor"),
    ("global_rope_theta", "local_rope_theta", "partial_rotary_factor"),
)
_BLOCKS = ("layers_block_type", "layer_types")
_LAYERS = {"linear_attention": "mamba", "full_attention": "attention"}  # 5 -> 4.x
_EXPERTS = ("num_experts", "num_local_experts")

Config = dict[str, Any]


def make_portable(folder: Path) -> None:
    """Rewrite the two files in a model's folder, as far as they are there."""
    names = (CONFIG, TOKENIZER_CONFIG, TOKENIZER)
    there = [folder / name for name in names if (folder / name).is_file()]
    texts = {file.name: file.read_bytes() for file in there}
    for name, text in portable_files(texts).items():
        if text != texts[name]:
            atomic_text(folder / name, str(text))


def portable_files(texts: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
    """Return the files of a model's folder with the two replaced by their portable forms.

    Args:
        texts: Contents by file name; other files than the two are returned as they are.
    """
    found = dict(texts)
    for name in {CONFIG, TOKENIZER_CONFIG} & texts.keys():
        before = json.loads(texts[name])
        after = portable_config(before)
        if name == TOKENIZER_CONFIG:
            after = portable_tokenizer_config(before, json.loads(texts.get(TOKENIZER, "{}")))
        if after != before:
            found[name] = json.dumps(after, indent=2, ensure_ascii=False) + "\n"
    return found


def portable_config(config: Config) -> Config:
    """Return the content of ``config.json`` with the rotary parameters in both forms.

    Those of a part, such as ``text_config``, are written there, and dtypes and infinite numbers as
    4.x has them. The rotary parameters of a class that is not transformers' own are left alone.
    """
    found = {
        key: portable_config(value) if isinstance(value, dict) and "model_type" in value else value
        for key, value in _with_plain_floats(config).items()
    }
    if isinstance(found.get("dtype"), str):
        found["torch_dtype"] = found["dtype"]  # its name before 4.56
    if (name := found.get("model_type")) not in CONFIG_MAPPING:
        return found
    kind: type[PreTrainedConfig] = CONFIG_MAPPING[str(name)]
    aliases = kind.attribute_map.items()  # 4.x has the number of experts under another of its names
    experts = {a: found[own] for a, own in aliases if a in _EXPERTS and own in found}
    rope = _older_rope(kind, found) if isinstance(found.get(ROPE), dict) else {}
    return {**experts, **found, **rope, **_older_layers(kind, found)}


def _with_plain_floats(value: Any) -> Any:
    """Return JSON's ``Infinity`` for ``{"__float__": "Infinity"}``, which 5 alone reads."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _with_plain_floats(part) for key, part in value.items()}
    return [_with_plain_floats(part) for part in value] if isinstance(value, list) else value


def _older_layers(kind: type[PreTrainedConfig], config: Config) -> Config:
    """Return the kinds of layers of Granite 4, Zamba and others under the names of 4.x.

    Version 5 reads both names, and 4.x refuses the newer ones in those classes.
    """
    if _BLOCKS[0] not in {*kind.attribute_map, *kind.attribute_map.values()}:
        return {}
    lists = {key: config[key] for key in _BLOCKS if isinstance(config.get(key), list)}
    return {key: [_LAYERS.get(name, name) for name in names] for key, names in lists.items()}


def _older_rope(kind: type[PreTrainedConfig], config: Config) -> Config:
    """Return the older keys from which ``kind`` reads the same rotary parameters; {} if none."""
    full = config[ROPE].get("full_attention", config[ROPE]) or {}
    if any(isinstance(value, dict) for value in full.values()):  # one for each kind of layer
        return {}
    plain = {key: value for key, value in config.items() if key != ROPE}
    rope, other = config[ROPE], _with_other_thetas(config[ROPE])
    known, expected = _read(kind, {**plain, ROPE: rope}), _read(kind, {**plain, ROPE: other})
    partly: Config = {}
    for names in _NAMES:
        older = _older(rope, config, *names)
        changed = _read(kind, plain | _older(other, config, *names))
        if _read(kind, plain | older) == known and changed != known:
            if changed == expected:
                return older
            partly = partly or older  # OLMo 3: one of two equal bases is read from it
    return partly


def _older(rope: Config, config: Config, theta: str, local: str | None, share: str) -> Config:
    """Return rotary parameters under the given names of 4.x."""
    full = rope.get("full_attention", rope) or {}
    scaling = {k: v for k, v in full.items() if k not in {"rope_theta", "partial_rotary_factor"}}
    if "original_max_position_embeddings" in config:  # Phi-3 has it there, and three keys here
        scaling.pop("original_max_position_embeddings", None)
        scaling["type"] = scaling.pop("rope_type", None)
    is_plain = all(k in {"rope_type", "type"} and v == "default" for k, v in scaling.items())
    found: Config = {theta: full.get("rope_theta"), "rope_scaling": None if is_plain else scaling}
    if "partial_rotary_factor" in full:
        found[share] = full["partial_rotary_factor"]
    if local is not None:
        found[local] = (rope.get("sliding_attention") or {}).get("rope_theta")
    return found


def _with_other_thetas(rope: Config) -> Config:
    """Return the parameters with other bases: a class that only has the same default fails."""
    return {
        key: _with_other_thetas(value)
        if isinstance(value, dict)
        else 2 * value + 1
        if key == "rope_theta"
        else value
        for key, value in rope.items()
    }


def _read(kind: type[PreTrainedConfig], config: Config) -> Config | None:
    """Return the rotary parameters that ``kind`` reads from a file's content; None if it fails."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        rope = getattr(kind.from_dict(copy.deepcopy(config)), ROPE, None)
    except Exception:
        return None
    finally:
        logging.set_verbosity(level)
    return _without_types(rope) if isinstance(rope, dict) else None


def _without_types(rope: Config) -> Config:
    """Return the parameters without ``type``, the older name of ``rope_type``."""
    plain = {k: _without_types(v) if isinstance(v, dict) else v for k, v in rope.items()}
    return {k: v for k, v in plain.items() if k != "type"}
