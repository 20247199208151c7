"""GGUF files for llama.cpp: a LoRA to put on its base, or the merged model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import torch
from torch import Tensor

from peft_lightning.adapters.lora.arithmetic import require_plain_updates
from peft_lightning.adapters.lora.extra_modules import require_no_extra_modules
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.lora.state_dict_keys import factor_keys
from peft_lightning.adapters.state_dict import check_tensors_fit
from peft_lightning.export.gguf_layout import Layout
from peft_lightning.export.gguf_types import Q8_0, TYPES, fits_q8_0, kind_of, raw
from peft_lightning.export.merged_weights import MergedTensors, Piece
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress

OWN_KEY = "peft_lightning.format_version"  # by which our own files are known


def write_lora(
    file: Path, model: Any, adapter: LoRA, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Write an adapter as llama.cpp's ``--lora`` takes it.

    llama.cpp multiplies the update of every layer by one alpha over the layer's rank. The scales
    that a layer has besides (rsLoRA, alpha patterns) are multiplied into its B.

    Args:
        file: To write.
        model: The base, without values. The adapter is attached to it.
        adapter: Linear layers only.
        tensors: As its file names them.
        dtype: Of both matrices.

    Raises:
        UserError: If the architecture has no place for a layer, the adapter is more than a sum
            of updates, such as DoRA, or the tensors do not fit.
    """
    layout = Layout(model.config)
    tied = model.config.get_text_config().tie_word_embeddings
    require_plain_updates(adapter)
    adapter, tensors = adapter.resolved_for(model, tensors)
    adapter.attach(model, initialise=False)
    layers = adapter.layers(model)
    require_no_extra_modules(model, "a LoRA's GGUF file")
    own = {name: t for name, t in tensors.items() if not name.endswith(".base_layer.weight")}
    check_tensors_fit(adapter.state_dict(model), own)
    head = model.get_output_embeddings()
    if tied and any(layer is head for layer in layers.values()):
        raise UserError(
            "the adapter changes the output embedding, which is tied to the input embedding in "
            "this base and no tensor of its own in llama.cpp: export --type model"
        )
    alpha = float(adapter.lora_alpha)
    with _open(file, layout) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, layer in layers.items():
            a, b = (own[key] for key in factor_keys(name))
            b = layout.ordered(name, b.double() * (layer.scaling * layer.r / alpha))
            place = layout.tensor_name(f"{name}.weight")
            for part, values in (("lora_a", a), ("lora_b", b)):
                cast = values.to(dtype)
                if not cast.isfinite().all():
                    raise UserError(f"{name}.{part} has values that are not finite in {dtype}")
                data, kind = raw(cast)
                writer.add_tensor(f"{place}.{part}", data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def write_model(
    file: Path,
    merged: MergedTensors,
    name: str,
    add_vocabulary: Callable[[gguf.GGUFWriter], None],
    q8_0: bool = False,
) -> tuple[Layout, torch.dtype]:
    """Write a model with its tokenizer, one tensor at a time in memory.

    Matrices have the dtype of the merged tensors; vectors are float32, as llama.cpp asks.

    Args:
        file: To write.
        merged: The model.
        name: What the file calls the model.
        add_vocabulary: Adds the tokenizer.
        q8_0: Whether matrices are stored in 8 bits, with a scale for each 32 values of a row; those
            whose rows cannot be divided so, and embeddings of positions, in float16.

    Returns:
        The layout, and the dtype of most matrices.

    Raises:
        UserError: If the architecture or the tokenizer is not known here, or a layer cannot be
            merged.
    """
    model = merged.weights.model
    layout = Layout(model.config)
    places = _places(merged, layout)
    dtypes = [p.dtype for p in places.values() if len(p.source.shape) > 1]
    common = max(set(dtypes), key=dtypes.count)
    if strange := set(dtypes) - TYPES.keys():
        raise UserError(f"no GGUF file holds {strange.pop()}: give a --dtype")
    extra = layout.extra_tensors()
    with _open(file, layout) as writer:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if q8_0 else TYPES[common][1])
        layout.add_parameters(writer)
        add_vocabulary(writer)
        for place, tensor in extra.items():
            writer.add_tensor_info(place, tensor.shape, np.dtype("float32"), tensor.nbytes)
        kinds = {}
        for place, piece in places.items():
            shape = layout.shape(str(piece.name), piece.source.shape)
            kinds[place] = kind = Q8_0 if q8_0 and fits_q8_0(place, shape) else kind_of(piece, q8_0)
            block, size = gguf.GGML_QUANT_SIZES[kind]
            size = math.prod(shape) // block * size
            writer.add_tensor_info(place, shape, np.dtype("float16"), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in extra.values():
            writer.write_tensor_data(tensor.numpy())
        with Progress("writing the GGUF file", len(places), "tensors") as progress:
            for count, (place, piece) in enumerate(places.items(), start=1):
                assert piece.name is not None
                writer.write_tensor_data(_values(merged, layout, piece, kinds[place]))
                progress.update(count)
    return layout, common


def _places(merged: MergedTensors, layout: Layout) -> dict[str, Piece]:
    """Return the tensors that the model reads by their names in the file."""
    names, model = merged.weights.names(), merged.weights.model
    inputs, outputs = (
        f"{next(name for name, own in model.named_modules() if own is module)}.weight"
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    own = layout.architecture
    places = {}
    for piece in merged.pieces:
        if piece.name is None:
            continue
        tied = inputs in names.get(piece.key, ())
        if piece.name == outputs and not tied and own.needs_tied_head:
            raise UserError(
                f"llama.cpp has no {layout.config.model_type} with an output embedding of its own: "
                "merge the adapter, and serve the merged folder"
            )
        places[layout.tensor_name(inputs if tied else piece.name)] = piece
    if own.has_own_head:
        places.setdefault(layout.tensor_name(outputs), places[layout.tensor_name(inputs)])
    return places


def _values(
    merged: MergedTensors, layout: Layout, piece: Piece, kind: gguf.GGMLQuantizationType
) -> np.ndarray:
    """Return a tensor as the file holds it."""
    dtype = next((d for d, (own, _) in TYPES.items() if own == kind), torch.float32)
    values = layout.stored(str(piece.name), merged.read(replace(piece, dtype=dtype)))
    return gguf.quants.quantize(values.numpy(), kind) if kind == Q8_0 else raw(values)[0]


@contextmanager
def _open(file: Path, layout: Layout) -> Iterator[gguf.GGUFWriter]:
    writer = gguf.GGUFWriter(file, layout.name)
    writer.add_uint32(OWN_KEY, 1)  # near the file's beginning
    try:
        yield writer
    finally:
        writer.close()
