"""A token cache that is damaged in any way is found, said, and never trained on."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

import warm_python
from peft_lightning.data import cache, tokenized_dataset
from peft_lightning.data.cache import load_or_tokenize
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.data.files.sources import find_source
from peft_lightning.data.loader import BatchLoader
from peft_lightning.data.options import RowOptions, TokenOptions
from peft_lightning.data.token_writer import TokenWriter
from peft_lightning.data.tokenized_dataset import FILES
from peft_lightning.data.tokens.tokenization import RowTokenizer, TokenizedRow
from peft_lightning.messages import RunError
from toy_tokenizers import byte_tokenizer

ROWS = [{"prompt": "p" * n, "completion": "c" * n} for n in range(1, 8)]
OTHERS = [{"prompt": "q" * n, "completion": "d" * n} for n in range(1, 8)]  # of equal sizes
NAMES = [*(f"{name}.npy" for name in FILES), "meta.json", "SHA256SUMS"]


@pytest.fixture
def make(tmp_path):
    """Return a function that tokenizes a file; what it is told is in ``make.said``."""

    def make(path, **options):
        make.said = []
        tokenizer = RowTokenizer(byte_tokenizer(), None, TokenOptions(**options))
        return load_or_tokenize(
            find_source(path), tokenizer, RowOptions(), tmp_path / "cache", make.said.append
        )

    return make


def contents(dataset):
    return [{k: v.tolist() for k, v in dataset[i].items()} for i in range(len(dataset))]


def flip(file: Path, at: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def require_made_anew(make, path, damaged, expected):
    dataset = make(path)
    assert contents(dataset) == expected
    line = f"{path}: its rows are tokenized anew, as their cache is damaged: {damaged}: not a comp"
    assert make.said[0].startswith(line)
    assert "\n" not in make.said[0]
    make(path)
    assert len(make.said) == 2  # format and counts: it is whole


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_in_any_file_is_found_before_training(make, jsonl, name):
    path = jsonl("x.jsonl", ROWS)
    dataset = make(path)
    expected, file = contents(dataset), dataset.folder / name
    size, draw = file.stat().st_size, random.Random(name)
    for at in [0, size // 2, *(draw.randrange(size) for _ in range(4))]:
        if name == "SHA256SUMS" and file.read_bytes()[at : at + 1] == b"\n":
            continue  # some of its flips are a line's end, too
        flip(file, at, draw.randrange(8))
        require_made_anew(make, path, dataset.folder, expected)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in NAMES
        for damage in ("shorter", "longer", "empty", "missing")
        if (name, damage) != ("SHA256SUMS", "longer")  # more lines say nothing else of the files
    ],
)
def test_a_file_of_another_length_is_found_before_training(make, jsonl, name, damage):
    path = jsonl("x.jsonl", ROWS)
    dataset = make(path)
    expected, file = contents(dataset), dataset.folder / name
    content = file.read_bytes()
    match damage:
        case "shorter":
            file.write_bytes(content[:-40])
        case "longer":
            file.write_bytes(content + b"\1")
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
    require_made_anew(make, path, dataset.folder, expected)


@pytest.mark.parametrize("name", NAMES)
def test_files_of_two_caches_that_were_exchanged_are_found(make, jsonl, name):
    """But for those that are the same in both."""
    paths = [jsonl("x.jsonl", ROWS), jsonl("y.jsonl", OTHERS)]
    one, other = (make(path) for path in paths)
    expected = [contents(one), contents(other)]
    files = [dataset.folder / name for dataset in (one, other)]
    before = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(before), strict=True):
        file.write_bytes(content)
    for path, dataset, rows in zip(paths, (one, other), expected, strict=True):
        if before[0] == before[1]:
            assert contents(make(path)) == rows
        else:
            require_made_anew(make, path, dataset.folder, rows)


def test_whole_caches_that_were_exchanged_are_found(make, jsonl, tmp_path):
    paths = [jsonl("x.jsonl", ROWS), jsonl("y.jsonl", OTHERS)]
    one, other = (make(path) for path in paths)
    expected = [contents(one), contents(other)]
    shutil.move(one.folder, tmp_path / "moved")
    shutil.move(other.folder, one.folder)
    shutil.move(tmp_path / "moved", other.folder)
    for path, dataset, rows in zip(paths, (one, other), expected, strict=True):
        require_made_anew(make, path, dataset.folder, rows)


@pytest.mark.parametrize("name", ["input_ids.npy", "loss_weights.npy"])
def test_rows_of_a_large_cache_are_checked_when_they_are_read(make, jsonl, name, monkeypatch):
    monkeypatch.setattr(tokenized_dataset, "CHECKED_AT_START", 100)
    path = jsonl("x.jsonl", ROWS)
    dataset = make(path)
    expected = contents(dataset)
    flip(dataset.folder / name, -4)  # in the last row
    dataset = make(path)
    assert len(make.said) == 2
    assert [dataset[i]["input_ids"].tolist() for i in range(6)]
    with pytest.raises(RunError, match=r"is damaged: the tokens of its row 6 are not what was wri"):
        dataset[6]
    require_made_anew(make, path, dataset.folder, expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_row_that_is_damaged_while_a_run_reads_it_ends_the_run_in_one_line(
    make, jsonl, num_workers
):
    dataset = make(jsonl("x.jsonl", ROWS))
    flip(dataset.folder / "input_ids.npy", -4)
    loader = BatchLoader(
        dataset, lambda epoch: [np.arange(7)], 1, lambda rows: rows, num_workers=num_workers
    )
    with pytest.raises(RunError) as error:
        list(loader)
    assert str(error.value).startswith(f"{dataset.folder} is damaged: the tokens of its row 6 are")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_never_written(tmp_path, weight):
    ids = np.arange(3, dtype=np.int32)
    writer = TokenWriter(tmp_path)
    writer.append([TokenizedRow(ids, np.array([0, 0.5, 1], dtype=np.float32))], [0])
    with pytest.raises(ValueError, match="weight in the loss of records 2 to 2 is not finite and"):
        writer.append([TokenizedRow(ids, np.array([0, 1, weight], dtype=np.float32))], [1])


class Sums(L.LightningModule):
    """Trains one weight on the tokens' sums, and notes the batches."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros((), dtype=torch.float64)), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["input_ids"].tolist())
        return (self.weight - batch["input_ids"].sum()) ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Killed(Exception):  # noqa: N818
    pass


class SaveAndStop(L.Callback):
    """Saves within the second epoch, and stops there as a killed process would."""

    def __init__(self, file):
        self.file = file

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.file)
            raise Killed


def train(path, folder, save_to=None, **options):
    data = SFTDataModule(
        path,
        tokenizer=byte_tokenizer(),
        batch_size=2,
        val_fraction=0,
        cache_dir=str(folder / "cache"),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=3,
        limit_val_batches=0,
        callbacks=[SaveAndStop(save_to)] if save_to else [],
    )
    module = Sums()
    with pytest.raises(Killed) if save_to else contextlib.nullcontext():
        trainer.fit(module, data, **options)
    return module, data


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_resumed_over_a_damaged_cache_bit_for_bit(jsonl, tmp_path, monkeypatch):
    path, said = jsonl("x.jsonl", ROWS), []
    monkeypatch.setattr("peft_lightning.data.datamodule.rank_zero_info", said.append)
    whole, _ = train(path, tmp_path)
    before, data = train(path, tmp_path, save_to=tmp_path / "at.ckpt")
    (dataset,) = data.tokenized_datasets
    flip(dataset.folder / "loss_weights.npy", -1)
    said.clear()
    after, resumed = train(path, tmp_path, ckpt_path=tmp_path / "at.ckpt")
    assert before.seen + after.seen == whole.seen
    assert after.weight == whole.weight
    assert resumed.data_hash == data.data_hash
    assert sum("tokenized anew, as their cache is damaged" in line for line in said) == 1


@pytest.mark.filterwarnings("ignore")
def test_data_that_give_other_tokens_are_another_hash_and_no_resume(jsonl, tmp_path):
    """As if a template printed the day."""
    path = jsonl("x.jsonl", ROWS)
    _, data = train(path, tmp_path, save_to=tmp_path / "at.ckpt")
    shutil.rmtree(tmp_path / "cache")
    original = cache.RowTokenizer.tokenize

    def tomorrow(self, rows):
        found = original(self, rows)
        for (row,) in found:
            row.input_ids[0] += 1
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.RowTokenizer, "tokenize", tomorrow)
        with pytest.raises(ValueError, match=r"\(the same files and options now give other"):
            train(path, tmp_path, ckpt_path=tmp_path / "at.ckpt")
        shutil.rmtree(tmp_path / "cache")
        _, other = train(path, tmp_path)
    shutil.rmtree(tmp_path / "cache")
    _, same = train(path, tmp_path)
    assert other.data_hash != data.data_hash == same.data_hash


FORMAT = """
from my_package import helper
def row(record):
    import lazy
    return [(record["prompt"] + lazy.X, 0), (helper.answer(record["completion"]), 1)]
"""
RUN = """
import json, sys
from peft_lightning.data.datamodule import SFTDataModule
sys.path.insert(0, sys.argv[2])
from toy_tokenizers import byte_tokenizer
tokenizer = byte_tokenizer()
data = SFTDataModule(sys.argv[1], format="my_format.row", tokenizer=tokenizer, val_fraction=0,
                     cache_dir="cache", shuffle=False)
data.setup("fit")
(batch,) = data.train_dataloader()
print(json.dumps([tokenizer.decode(batch["input_ids"][0]), data.data_hash]))
"""


def test_a_run_after_a_helper_of_the_format_has_changed_reads_no_old_tokens(jsonl, tmp_path):
    path = jsonl("x.jsonl", [{"prompt": "p", "completion": "c"}])
    (tmp_path / "my_package").mkdir()
    files = {
        "my_format.py": FORMAT,
        "my_package/__init__.py": "",
        "my_package/helper.py": "from .inner import answer\n",
        "my_package/inner.py": "def answer(text): return text + 'OLD'\n",
        "lazy.py": "X = 'old'\n",
        "run.py": RUN,
    }

    def run(**changes):
        for name, text in {**files, **changes}.items():
            (tmp_path / name).write_text(text)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        shutil.rmtree(tmp_path / "my_package/__pycache__", ignore_errors=True)
        out = warm_python.run([tmp_path / "run.py", path, Path(__file__).parent], cwd=tmp_path)
        assert out.returncode == 0, out.stderr
        return json.loads(out.stdout.splitlines()[-1])

    text, key = run()
    assert text.startswith("poldcOLD")
    other, other_key = run(**{"my_package/inner.py": "def answer(text): return text + 'NEW'\n"})
    assert other.startswith("poldcNEW")
    assert run(**{"lazy.py": "X = 'new'\n"})[0].startswith("pnewcOLD")
    assert run() == [text, key]
    assert key != other_key
