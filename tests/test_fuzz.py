"""Readers of files from elsewhere: whatever the bytes, a result or one clear line; never more."""

import json
import shutil
from contextlib import suppress

import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from peft_lightning import LoRA, PromptTuning, load_adapter, save_adapter
from peft_lightning.adapters import Adapter
from peft_lightning.adapters.folder import read_adapter
from peft_lightning.adapters.inspect import inspect_adapter
from peft_lightning.base_model import load_base_model
from peft_lightning.data.files.sources import find_source
from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import RowError
from peft_lightning.data.rows.format_detection import resolve_format
from peft_lightning.data.rows.row_parser import RowParser
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.files import SUMS_FILE, require_undamaged
from tiny import tiny_model
from tiny_run import byte_tokenizer

pytestmark = pytest.mark.slow
EXAMPLES = 150
CLEAR = (ValueError, FileNotFoundError, KeyError)

# the same examples in every run: a failure is one of the commit's
bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**9, -1, 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../../x", "(", "LORA", "\ud800", "/etc/passwd"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
DATA = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\n", b"\r", b"\0", b"\xff", b"9" * 5000]
COLUMNS = ["prompt", "completion", "messages", "role", "content", "conversations", "from", "value"]
DATA += [f'"{name}"'.encode() for name in [*COLUMNS, "text", "tools", "user", "assistant"]]
DATA += [
    b"prompt,completion\n",
    b"a,b\n",
    b'"\\ud800"',
    b"NaN",
    b"1e999",
    b"\xef\xbb\xbf",
    b"[" * 3000,
]
pieces = st.lists(st.sampled_from(DATA) | st.binary(max_size=4), max_size=12).map(b"".join)
SUMS = [b"ab" * 32 + b"  ", b"../../x", b"a", b"/dev/zero", b"\n", b"adapter_config.json"]
shards = (
    st.dictionaries(
        st.text(max_size=3), st.sampled_from(["a.safetensors", "../../x.safetensors", "a/b", ""])
    )
    | values
)
indices = st.dictionaries(st.sampled_from(["weight_map", "metadata"]), shards) | values
records = st.dictionaries(st.sampled_from([*COLUMNS, "text", "tools", "instruction"]), values)


def outcome(read, *given):
    """Call a reader; return its result, or the error if it is a clear one."""
    try:
        result = read(*given)
    except CLEAR as error:
        result = error
    if isinstance(result, CLEAR):
        assert 0 < len(str(result).strip()) < 20_000, repr(result)[:200]
    return result


@st.composite
def mutated(draw, content):
    """Return ``content`` with some bytes replaced, cut out or put in."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # most of a file of tensors is values, which all are right: aim at its header
        place = draw(st.integers(0, min(len(content), 2000)))
        width = draw(st.integers(0, 8))
        content[place : place + width] = draw(st.binary(max_size=8))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


class Model:
    """A model that hypothesis does not print with each failure."""

    def __init__(self, model):
        self.model = model


@pytest.fixture(
    scope="module", params=[LoRA(r=2), PromptTuning(num_virtual_tokens=2)], ids=["lora", "prompt"]
)
def whole(request, tmp_path_factory):
    """The folder of an adapter, and the base that it fits."""
    model = tiny_model("llama")
    request.param.attach(model)
    folder = tmp_path_factory.mktemp("whole") / "x"
    save_adapter(request.param, model, folder)
    request.param.detach(model)
    return folder, Model(model)


@pytest.fixture
def folder(whole, tmp_path):
    """Its copy, without checksums: one from elsewhere."""
    copy = shutil.copytree(whole[0], tmp_path / "x")
    (copy / SUMS_FILE).unlink()
    return copy


def use(folder, model):
    """Read an adapter in every way, and take it out of the model again."""
    model = model.model
    outcome(inspect_adapter, folder)
    outcome(read_adapter, folder)
    adapter = outcome(load_adapter, model, folder)
    if isinstance(adapter, Adapter):
        adapter.detach(model)


@bounded
@given(data=st.data())
@pytest.mark.parametrize("name", ["adapter_config.json", "peft_lightning.json"])
def test_an_adapters_options_may_be_anything(name, folder, whole, data):
    content = json.loads((whole[0] / name).read_text())
    keys = st.sampled_from([*content, "new_tokens", "peft_type", "format_version"])
    content |= data.draw(st.dictionaries(keys, values, max_size=3))
    (folder / name).write_text(json.dumps(content))
    use(folder, whole[1])


@bounded
@given(content=pieces)
@pytest.mark.parametrize("name", ["adapter_config.json", "peft_lightning.json"])
def test_an_adapters_json_may_be_any_bytes(name, folder, whole, content):
    (folder / name).write_bytes(content)
    use(folder, whole[1])


@bounded
@given(data=st.data())
def test_an_adapters_tensors_may_be_any_bytes(folder, whole, data):
    original = (whole[0] / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(data.draw(mutated(original)))
    use(folder, whole[1])


@bounded
@given(data=st.data())
def test_an_adapters_tensors_may_have_any_name_shape_and_values(folder, whole, data):
    tensors = load_file(whole[0] / "adapter_model.safetensors")
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors.pop(name)
    shape = data.draw(st.sampled_from([(), (0,), (1,), (2, 0), (1, 2, 3), tuple(tensor.shape)]))
    value = data.draw(st.sampled_from([0.0, float("nan"), float("inf")]))
    kinds = [torch.float32, torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool]
    other = data.draw(st.sampled_from([name, "../x", "", "lora_A.weight", f"{name}.x"]))
    tensors[other] = torch.full(shape, value).to(data.draw(st.sampled_from(kinds)))
    save_file(tensors, folder / "adapter_model.safetensors")
    use(folder, whole[1])


@bounded
@given(content=pieces | st.lists(st.sampled_from(SUMS)).map(b"".join))
def test_checksums_may_be_any_bytes(folder, content):
    (folder / SUMS_FILE).write_bytes(content)
    outcome(require_undamaged, folder)
    outcome(read_adapter, folder)


@pytest.fixture(scope="module")
def row_tokenizer():
    return RowTokenizer(byte_tokenizer())


def read_rows(path, row_tokenizer):
    """Read a data file as training does, up to the tokens; bad rows are reasons."""
    source = find_source(str(path))
    resolved, rows = resolve_format(source.records(), RowOptions(), source.name)
    parser, good = RowParser(resolved, RowOptions()), []
    for record, where in rows:
        assert where.startswith(str(path))
        if not isinstance(record, RowError):
            with suppress(RowError):
                good.append(parser.row(record))
    row_tokenizer.tokenize(good)


@bounded
@given(content=pieces)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_data_file_may_be_any_bytes(suffix, tmp_path, row_tokenizer, content):
    (tmp_path / f"x.{suffix}").write_bytes(content)
    outcome(read_rows, tmp_path / f"x.{suffix}", row_tokenizer)


@bounded
@given(data=st.data())
def test_a_parquet_file_may_be_any_bytes(tmp_path, row_tokenizer, data):
    table = pyarrow.table({"prompt": ["a"] * 50, "completion": ["b"] * 50})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    content = data.draw(mutated((tmp_path / "x.parquet").read_bytes()))
    (tmp_path / "x.parquet").write_bytes(content)
    outcome(read_rows, tmp_path / "x.parquet", row_tokenizer)


@bounded
@given(rows=st.lists(records, min_size=1, max_size=3))
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_row_may_hold_anything(suffix, tmp_path, row_tokenizer, rows):
    text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
    (tmp_path / f"x.{suffix}").write_text(text)
    outcome(read_rows, tmp_path / f"x.{suffix}", row_tokenizer)


@settings(bounded, max_examples=60)
@given(content=pieces | indices.map(lambda index: json.dumps(index).encode()))
def test_the_index_of_a_bases_shards_may_be_any_bytes(base, tmp_path, content):
    shutil.copy(base / "config.json", tmp_path)
    shutil.copy(base / "model.safetensors", tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    outcome(load_base_model, str(tmp_path))
