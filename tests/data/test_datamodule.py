import itertools
import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer.states import TrainerFn

from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.data.loader import BatchLoader
from toy_tokenizers import CHATML, byte_tokenizer

ROWS = [{"prompt": "p" * (i % 7), "completion": f"{i:02d}" + "c" * (i * 5 % 11)} for i in range(22)]
VAL = [{"prompt": "v", "completion": f"{i:02d}"} for i in range(3)]


@pytest.fixture
def data(jsonl, tmp_path):
    """Return a function that makes a DataModule over a few rows."""
    train, val = jsonl("train.jsonl", ROWS), jsonl("val.jsonl", VAL)

    def make(**options):
        given = {"train": train, "val": val, "tokenizer": byte_tokenizer(), "batch_size": 4}
        return SFTDataModule(**{**given, "cache_dir": str(tmp_path / "cache"), **options})

    return make


class Recorder(L.LightningModule):
    """Writes down the tokens it is trained on."""

    def __init__(self, touch_loader_early=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.touch_loader_early = touch_loader_early
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["input_ids"].tolist()))
        return self.weight * batch["input_ids"].sum()

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        self.seen.append(batch["input_ids"].tolist())

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        if self.touch_loader_early:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(L.Callback):
    """Saves once, at the nth call of a hook, and stops there as a killed process would."""

    def __init__(self, hook, nth, path):
        self.calls, self.nth, self.path = itertools.count(1), nth, path
        setattr(self, hook, self.count)

    def count(self, trainer, *args):
        if not trainer.sanity_checking and next(self.calls) == self.nth:
            trainer.save_checkpoint(self.path)
            raise Killed


class Killed(Exception):  # noqa: N818
    pass


def fit(data, module=None, ckpt_path=None, callbacks=(), **options):
    module = module or Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"max_epochs": 3, **options},
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module


CASES = {
    "middle of the first epoch": ("on_train_batch_end", 2, {}, {}, False),
    "middle of the second epoch": ("on_train_batch_end", 9, {}, {}, False),
    "last batch of the first epoch": ("on_train_batch_end", 6, {}, {}, False),
    "last batch of the second epoch": ("on_train_batch_end", 12, {}, {}, False),
    "end of the first epoch": ("on_train_epoch_end", 1, {}, {}, False),
    "end of the second epoch": ("on_train_epoch_end", 2, {}, {}, False),
    "end of validation": ("on_validation_end", 2, {}, {}, False),
    "validation within an epoch": ("on_validation_end", 3, {}, {"val_check_interval": 2}, False),
    "a batch under way": ("on_train_batch_start", 9, {}, {}, False),
    "accumulation": ("on_train_batch_end", 8, {}, {"accumulate_grad_batches": 2}, False),
    "workers": ("on_train_batch_end", 9, {"num_workers": 2}, {}, False),
    "workers, last batch": ("on_train_batch_end", 6, {"num_workers": 2}, {}, False),
    "token budget": ("on_train_batch_end", 11, {"tokens_per_batch": 50}, {}, False),
    "padded": ("on_train_batch_end", 8, {"layout": "padded"}, {}, False),
    "fraction of an epoch": ("on_train_batch_end", 6, {}, {"limit_train_batches": 4}, False),
    "its last batch": ("on_train_batch_end", 8, {}, {"limit_train_batches": 4}, False),
    "its epoch's end": ("on_train_epoch_end", 2, {}, {"limit_train_batches": 4}, False),
    "steps": ("on_train_batch_end", 8, {}, {"max_steps": 15, "max_epochs": -1}, False),
    "steps, last batch": ("on_train_batch_end", 6, {}, {"max_steps": 15, "max_epochs": -1}, False),
    "steps, epoch's end": ("on_train_epoch_end", 1, {}, {"max_steps": 15, "max_epochs": -1}, False),
    "steps, second epoch's end": (
        "on_train_epoch_end",
        2,
        {"num_workers": 2},
        {"max_steps": 15, "max_epochs": -1},
        True,
    ),
    "steps, validation": ("on_validation_end", 1, {}, {"max_steps": 15, "max_epochs": -1}, False),
    "loader made early": ("on_train_batch_end", 9, {}, {}, True),
    "loader made early, last batch": ("on_train_batch_end", 6, {}, {}, True),
    "loader made early, workers": ("on_train_batch_end", 9, {"num_workers": 2}, {}, True),
    "no validation": ("on_train_epoch_end", 2, {"val": None, "val_fraction": 0.0}, {}, False),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_with_the_very_batches_it_would_have_had(data, tmp_path, case):
    hook, nth, data_options, options, early = CASES[case]
    whole = fit(data(**data_options), Recorder(early), **options).seen
    path = tmp_path / "killed.ckpt"
    before = Recorder(early)
    with pytest.raises(Killed):
        fit(data(**data_options), before, callbacks=[SaveAt(hook, nth, path)], **options)
    after = fit(data(**data_options), Recorder(early), ckpt_path=path, **options).seen
    assert 0 < len(before.seen) < len(whole)
    assert before.seen + after == whole
    assert len({str(batch) for _, batch in whole}) > len(whole) // 2  # epochs differ


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    ("first", "longer"),
    [
        ({"max_epochs": 1}, {"max_epochs": 3}),
        ({"max_epochs": 1}, {"max_epochs": -1, "max_steps": 15}),
        ({"max_epochs": -1, "max_steps": 12}, {"max_epochs": -1, "max_steps": 15}),
        ({"max_epochs": -1, "max_steps": 12}, {"max_epochs": 3}),
    ],
)
def test_a_finished_run_can_be_made_longer(data, tmp_path, first, longer, early):
    whole = fit(data(), Recorder(early), **longer).seen
    before = Recorder(early)
    path = tmp_path / "finished.ckpt"
    with pytest.raises(Killed):
        fit(data(), before, callbacks=[SaveAt("on_train_end", 1, path)], **first)
    after = fit(data(), Recorder(early), ckpt_path=path, **longer).seen
    assert before.seen + after == whole


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_that_max_steps_cut_is_over_and_that_is_said(data, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("peft_lightning.data.resume.rank_zero_info", said.append)
    path, longer = tmp_path / "cut.ckpt", {"max_epochs": -1, "max_steps": 15}
    with pytest.raises(Killed):
        fit(data(), callbacks=[SaveAt("on_train_end", 1, path)], max_epochs=-1, max_steps=8)
    last_epoch = [batch for epoch, batch in fit(data(), max_epochs=3).seen if epoch == 2]
    after = fit(data(), ckpt_path=path, **longer).seen
    assert [batch for _, batch in after][:6] == last_epoch
    assert said[-1].startswith("epoch 1 was stopped at batch 2, which Lightning takes for its end")


@pytest.mark.filterwarnings("ignore")
def test_a_loader_that_is_made_before_the_state_is_restored_still_follows_it(
    data, tmp_path, monkeypatch
):
    """Sharded strategies restore after ``configure_optimizers``."""
    from lightning.pytorch.strategies import SingleDeviceStrategy

    monkeypatch.setattr(SingleDeviceStrategy, "restore_checkpoint_after_setup", True)
    test_a_killed_run_goes_on_with_the_very_batches_it_would_have_had(
        data, tmp_path, "loader made early"
    )


@pytest.fixture
def checkpoint(data, tmp_path):
    """Return a function that saves at a hook's nth call and returns the checkpoint's path."""

    def make(hook, nth, **options):
        path = tmp_path / f"{hook}{nth}.ckpt"
        with pytest.raises(Killed):
            fit(data(**options), callbacks=[SaveAt(hook, nth, path)])
        return path

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"tokens_per_batch": 60}, "tokens_per_batch was None, is 60"),
        ({"shuffle": False}, "shuffle was True, is False"),
        ({"layout": "padded"}, "layout was flat, is padded"),
    ],
)
def test_the_order_of_rows_may_change_at_an_epochs_end_only(data, checkpoint, change, message):
    with pytest.raises(ValueError, match=rf"\(batch 2 of 6\), .* cannot change: {message}\. A ch"):
        fit(data(**change), ckpt_path=checkpoint("on_train_batch_end", 8))
    for path in (checkpoint("on_train_epoch_end", 2), checkpoint("on_validation_end", 2)):
        expected = [step for step in fit(data(**change)).seen if step[0] == 2]
        assert fit(data(**change), ckpt_path=path).seen == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(
    "case",
    [name for name in CASES if "epoch" in name and "'s" not in name and "fraction" not in name]
    + ["workers", "steps, validation", "loader made early", "token budget"],
)
def test_an_epoch_goes_on_with_other_batches_of_the_same_rows(data, tmp_path, case, batch_size):
    hook, nth, data_options, options, early = CASES[case]
    options = {**options, "max_epochs": 3, "max_steps": -1}

    def tokens(seen):
        return [(epoch, token) for epoch, batch in seen for token in batch[0]]

    changed = {**data_options, "batch_size": batch_size}
    path = tmp_path / "killed.ckpt"
    before = Recorder(early)
    with pytest.raises(Killed):
        fit(data(**data_options), before, callbacks=[SaveAt(hook, nth, path)], **options)
    after = fit(data(**changed), Recorder(early), ckpt_path=path, **options).seen
    whole = fit(data(**data_options), Recorder(early), **options).seen
    assert tokens(before.seen + after) == tokens(whole)
    if case != "token budget":
        assert sum(epoch == 2 for epoch, _ in after) == math.ceil(22 / batch_size)


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_can_change_its_batches_twice(data, tmp_path):
    seen = []
    for part, batch_size in enumerate([4, 3, 2]):
        module, path = Recorder(), tmp_path / f"{part}.ckpt"
        options = {"ckpt_path": tmp_path / f"{part - 1}.ckpt"} if part else {}
        stop = [SaveAt("on_train_batch_end", 2, path)] if part < 2 else []
        if stop:
            with pytest.raises(Killed):
                fit(data(batch_size=batch_size), module, callbacks=stop, max_epochs=1, **options)
        else:
            fit(data(batch_size=batch_size), module, max_epochs=1, **options)
        seen += module.seen
    assert len(seen) == 2 + 2 + 4  # rows 0-7, 8-13, and 14-21 in twos
    whole = [token for _, batch in fit(data(), max_epochs=1).seen for token in batch[0]]
    assert [token for _, batch in seen for token in batch[0]] == whole


@pytest.mark.filterwarnings("ignore")
def test_a_part_of_an_epoch_keeps_its_batches(data, checkpoint):
    path = checkpoint("on_train_batch_end", 8)
    with pytest.raises(ValueError, match=r"is 2; limit_train_batches is set\. A checkpoint of"):
        fit(data(batch_size=2), ckpt_path=path, limit_train_batches=4)


@pytest.mark.filterwarnings("ignore")
def test_other_data_is_an_error_that_names_both(data, checkpoint, jsonl):
    path = checkpoint("on_train_batch_end", 8)
    other = jsonl("other.jsonl", [*ROWS[:-1], {"prompt": "x", "completion": "y"}])
    with pytest.raises(
        ValueError,
        match=r"with other data: hash \w{12} of \S+/train\.jsonl, now \w{12} of \S+/other\.jsonl"
        r" \(train 1 files 1 was .*allow_changed_data to true",
    ):
        fit(data(train=other), ckpt_path=path)
    with pytest.raises(ValueError, match="train 1 max_length was 1024, is 64"):
        fit(data(max_length=64), ckpt_path=path)
    with pytest.raises(ValueError, match="val 1 files 1 was"):
        fit(data(val=other), ckpt_path=path)
    seen = fit(data(train=other, allow_changed_data=True), ckpt_path=path).seen
    assert len(seen) == 4 + 6


@pytest.mark.filterwarnings("ignore")
def test_the_same_content_under_another_name_is_the_same_data(data, checkpoint, jsonl):
    path = checkpoint("on_train_batch_end", 8)
    assert len(fit(data(train=jsonl("moved.jsonl", ROWS)), ckpt_path=path).seen) == 4 + 6


def test_the_state_is_made_of_plain_values(data, tmp_path):
    module = data()
    assert module.state_dict() == {}
    module.setup("fit")
    next(iter(module.train_dataloader()))
    state = module.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert (state["epoch"], state["finished_batches"], state["batches_per_epoch"]) == (0, 1, 6)
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


def test_the_two_layouts_hold_the_same_rows(data):
    flat, padded = data(), data(layout="padded")
    for module in (flat, padded):
        module.setup("fit")
    for left, right in zip(flat.train_dataloader(), padded.train_dataloader(), strict=True):
        mask = right["attention_mask"].bool()
        assert right["input_ids"][mask].tolist() == left["input_ids"][0].tolist()
        assert right["labels"][mask].tolist() == left["labels"][0].tolist()
        assert mask.sum(1).tolist() == left["seq_lens"]


def test_a_template_that_prints_todays_date_prints_that_of_the_option_and_it_is_said(
    data, monkeypatch
):
    said = []
    monkeypatch.setattr("peft_lightning.data.datamodule.rank_zero_info", said.append)
    template = "{{ strftime_now('%d.%m.%Y') }} " + CHATML
    for day, told in ((None, "2024-07-26"), ("2026-01-31", "2026-01-31")):
        options = {} if day is None else {"template_date": day}
        module = data(tokenizer=byte_tokenizer(template), **options)
        module.setup("fit")
        assert (
            f"the chat template prints today's date: in rows it is data.template_date, {told}"
            in said
        )
        first = next(iter(module.train_dataloader()))["input_ids"][0]
        year, month, number = told.split("-")
        assert module.tokenizer.decode(first).startswith(f"{number}.{month}.{year} <|im_start|>")
    said.clear()
    data(tokenizer=byte_tokenizer(CHATML)).setup("fit")
    assert not [line for line in said if "date" in line]


def test_without_val_rows_are_held_out_and_it_is_said(data, monkeypatch):
    said = []
    monkeypatch.setattr("peft_lightning.data.datamodule.rank_zero_info", said.append)
    module = data(val=None, val_fraction=0.2)
    module.setup("fit")
    assert module.sizes["train"]["rows"] == 18
    assert module.sizes["val"]["rows"] == 4
    assert [line for line in said if line.startswith("no data.val: 4 of 22 rows of ")]

    def rows(module, name):
        loader = getattr(module, f"{name}_dataloader")()
        return [
            part
            for batch in loader
            for part in map(str, batch["input_ids"][0].split(batch["seq_lens"]))
        ]

    train, val = rows(module, "train"), rows(module, "val")
    assert len({*train, *val}) == 22
    other = data(val=None, val_fraction=0.2, seed=5)
    other.setup("validate")
    assert rows(other, "val") == val  # whatever the seed


def test_at_least_one_row_of_a_fraction_is_held_out_and_one_stays(data, jsonl):
    module = data(train=jsonl("two.jsonl", ROWS[:2]), val=None, val_fraction=0.01)
    module.setup("fit")
    assert module.sizes["val"]["rows"] == module.sizes["train"]["rows"] == 1
    with pytest.raises(ValueError, match=r"one\.jsonl: 1 row\(s\) cannot be split"):
        data(train=jsonl("one.jsonl", ROWS[:1]), val=None, val_fraction=0.01).setup("fit")


@pytest.mark.parametrize(
    ("total", "held_out"), [(1, 0), (19, 0), (20, 1), (420, 21), (20_040, 1000)]
)
def test_without_val_and_fraction_5_percent_are_held_out_at_most_1000_and_none_of_few(
    data, jsonl, monkeypatch, total, held_out
):
    said = []
    monkeypatch.setattr("peft_lightning.data.datamodule.rank_zero_info", said.append)
    path = jsonl("some.jsonl", [{"text": "a"}] * total)
    module = data(train=path, val=None)
    module.setup("fit")
    sizes = {name: size["rows"] for name, size in module.sizes.items()}
    assert sizes == {"train": total - held_out} | ({"val": held_out} if held_out else {})
    (line,) = [line for line in said if line.startswith("no data.val")]
    number = f"{held_out:,}" if held_out else "none"
    assert f" {number} of {total:,} rows of {path} are held out" in line
    assert "data.val_fraction" in line


def test_few_rows_cannot_be_validated_on_and_the_error_says_what_to_give(data, jsonl):
    module = data(train=jsonl("few.jsonl", ROWS[:19]), val=None)
    with pytest.raises(ValueError, match=r"no data to validate on: .*none of 19 .*give data\.val"):
        module.setup("validate")


@pytest.mark.filterwarnings("ignore")
def test_the_rows_held_out_by_default_are_the_same_when_a_run_goes_on(data, jsonl, tmp_path):
    path, train = tmp_path / "killed.ckpt", jsonl("rows.jsonl", ROWS * 2)
    whole = fit(data(train=train, val=None)).seen
    before = Recorder()
    with pytest.raises(Killed):
        fit(data(train=train, val=None), before, callbacks=[SaveAt("on_train_batch_end", 14, path)])
    assert before.seen + fit(data(train=train, val=None, seed=0), ckpt_path=path).seen == whole
    with pytest.raises(ValueError, match=r"other data: .*val_fraction was auto, is 0\.05"):
        fit(data(train=train, val=None, val_fraction=0.05), ckpt_path=path)


def test_no_validation_is_possible(data, monkeypatch):
    said = []
    monkeypatch.setattr("peft_lightning.data.datamodule.rank_zero_info", said.append)
    module = data(val=None, val_fraction=0.0)
    module.setup("fit")
    assert module.val_dataloader() == []
    assert module.sizes["train"]["rows"] == 22
    assert not [line for line in said if "data.val" in line]  # it was asked for
    with pytest.raises(ValueError, match=r"no data to validate on: .*data\.val_fraction is 0"):
        data(val=None, val_fraction=0.0).setup("validate")


def test_sizes_count_rows_tokens_and_tokens_in_the_loss(data):
    module = data()
    module.setup("fit")
    assert module.sizes["val"] == {
        "rows": 3,
        "tokens": 3 * 4,
        "loss_tokens": 3 * 3,
        "longest_row": 4,
    }


def test_several_sources_with_weights_are_one_epoch(data, jsonl):
    paths = {jsonl("a.jsonl", ROWS[:4]): 2.0, jsonl("b.jsonl", ROWS[4:14]): 0.5}
    module = data(train=paths, batch_size=100)
    module.setup("fit")
    (batch,) = module.train_dataloader()
    assert len(batch["seq_lens"]) == 4 * 2 + 5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [4, 3])
@pytest.mark.parametrize(("hook", "nth"), [("on_train_batch_end", 9), ("on_train_epoch_end", 1)])
def test_a_killed_run_over_shares_goes_on_with_the_rows_it_would_have_had(
    data, jsonl, tmp_path, hook, nth, size
):
    paths = {jsonl("a.jsonl", ROWS[:12]): 0.3, jsonl("b.jsonl", ROWS[12:]): 0.7}
    options, path, before = {"train": paths}, tmp_path / "killed.ckpt", Recorder()

    def tokens(seen):
        return [(epoch, token) for epoch, batch in seen for token in batch[0]]

    whole = fit(data(**options)).seen
    assert len(whole) == 3 * 10  # 12 and 28 rows an epoch
    with pytest.raises(Killed):
        fit(data(**options), before, callbacks=[SaveAt(hook, nth, path)])
    after = fit(data(**options, batch_size=size), ckpt_path=path).seen
    assert tokens(before.seen + after) == tokens(whole)
    first, second = paths
    with pytest.raises(ValueError, match=r"other data: .*train 1 weight was 0\.3, is 0\.5"):
        fit(data(train={first: 0.5, second: 0.5}), ckpt_path=path)


def test_an_epoch_and_a_step_are_described_at_the_start(data, jsonl, monkeypatch):
    said = []
    monkeypatch.setattr("peft_lightning.data.datamodule.rank_zero_info", said.append)
    data(train={jsonl("a.jsonl", ROWS[:4]): 1, jsonl("b.jsonl", ROWS[4:6]): 2}).setup("fit")
    assert any(line.startswith("training source ") for line in said)
    assert said[-1].startswith("an epoch: 8 rows, ")
    assert said[-1].endswith("data.batch_size is 4 rows; data.tokens_per_batch fills instead")
    said.clear()
    data(tokens_per_batch=64).setup("fit")
    assert "data.tokens_per_batch 64 is filled to " in said[-1]
    assert not any(line.startswith("training source ") for line in said)


def test_evaluation_batches_are_of_one_source_each_if_several_are_given(data, jsonl):
    chat, code = jsonl("chat.jsonl", ROWS[:5]), jsonl("code.jsonl", ROWS[5:7])
    module = data(val={"chat": chat, "code": code}, test=[chat, code, chat])
    module.setup("fit")
    module.setup("test")
    batches = list(module.val_dataloader())
    assert [(b["source"], len(b["seq_lens"])) for b in batches] == [
        ("chat", 4),
        ("code", 2),
        ("chat", 1),
    ]
    assert {b["source"] for b in module.test_dataloader()} == {"chat", "code", "chat_2"}
    assert all("source" not in batch for batch in module.train_dataloader())
    plain = data(val=chat)
    plain.setup("fit")
    assert all("source" not in batch for batch in plain.val_dataloader())


def test_training_batches_name_the_sources_of_their_rows_if_asked(data, jsonl):
    paths = [
        jsonl(f"{name}.jsonl", [{"prompt": "p", "completion": name} for _ in range(9)])
        for name in "abc"
    ]
    made = data(train=paths, batch_size=2, name_sources=True)
    made.setup("fit")
    seen = []
    for batch in made.train_dataloader():
        rows = batch["input_ids"][0].split(batch["seq_lens"])
        labels = batch["labels"][0].split(batch["seq_lens"])
        for name, row, label in zip(batch["sources"], rows, labels, strict=True):
            assert made.tokenizer.decode(row[label != -100])[0] == name
            seen.append(name)
    assert sorted(seen) == sorted("abc" * 9)
    made = data(train=paths)
    made.setup("fit")
    assert "sources" not in next(iter(made.train_dataloader()))


def test_max_rows_are_read_of_each_source_and_of_the_rows_to_generate_from(data, jsonl):
    module = data(max_rows=2, predict=jsonl("p.jsonl", ROWS[:5]))
    module.setup("fit")
    module.setup("predict")
    assert {name: size["rows"] for name, size in module.sizes.items()} == {"train": 2, "val": 2}
    assert len(module.predict_records) == 2


def test_prompts_are_padded_on_the_left_and_know_their_records(data, jsonl):
    tokenizer = byte_tokenizer(CHATML)
    rows = jsonl("p.jsonl", [{"prompt": "a"}, {"prompt": "bcd"}, {"prompt": "e"}])
    module = data(predict=rows, tokenizer=tokenizer, batch_size=2)
    module.setup("predict")
    first, second = module.predict_dataloader()
    assert first["index"] == [0, 1]
    assert second["index"] == [2]
    assert [module.predict_records[i]["prompt"] for i in first["index"]] == ["a", "bcd"]
    texts = tokenizer.batch_decode(first["input_ids"])
    assert texts == [
        "<pad><pad><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nbcd<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert first["attention_mask"].sum(1).tolist() == [20, 22]


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_tests_and_predicts(data, jsonl):
    path = jsonl("x.jsonl", ROWS[:6])
    module = data(test=path, predict=path)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    recorder = Recorder()
    trainer.test(recorder, module, verbose=False)
    assert len(recorder.seen) == 2
    batches = trainer.predict(recorder, module)
    assert [b["index"] for b in batches] == [[0, 1, 2, 3], [4, 5]]


def test_missing_data_is_said_with_the_key_to_set(data):
    for stage, key in [("test", "test"), (TrainerFn.TESTING, "test"), ("predict", "predict")]:
        with pytest.raises(ValueError, match=f"no data to .*: give data.{key} a file"):
            data().setup(stage)
    with pytest.raises(ValueError, match=r"no data to train on: give data\.train a file"):
        data(train=None).setup("fit")


def test_a_missing_tokenizer_is_said(data):
    with pytest.raises(ValueError, match=r"no tokenizer: give data\.tokenizer a hub id"):
        data(tokenizer=None).setup("fit")


def test_the_tokenizer_follows_the_base_model(data, tmp_path):
    byte_tokenizer(CHATML).save_pretrained(tmp_path / "model")

    class Module(Recorder):
        def load_tokenizer(self):
            return byte_tokenizer(CHATML)

    module = data(tokenizer=None)
    fit(module, Module(), max_epochs=1)
    assert module.tokenizer.chat_template == CHATML
    given = data(tokenizer=str(tmp_path / "model"))
    given.setup("fit")
    assert given.tokenizer.chat_template == CHATML
    assert given.data_hash == module.data_hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "packed"}, "layout must be flat or padded, got 'packed'"),
        (
            {"on_bad_row": "skipp"},
            "on_bad_row must be error or skip, got 'skipp'; did you mean skip",
        ),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1\.0"),
        ({"mix": "share"}, r"data\.mix is share, but data\.train has no numbers"),
        ({"max_rows": 0}, "max_rows must be at least 1, got 0"),
        ({"train": {"a.jsonl": "x"}}, r"must be above 0, got a\.jsonl: 'x'"),
        ({"train": {"a.jsonl": 0.0}}, "the number of a source of data.train must be above 0"),
    ],
)
def test_an_option_out_of_range_is_named(data, options, message):
    with pytest.raises(ValueError, match=message):
        data(**options)


def test_every_option_is_documented():
    documented = SFTDataModule.__doc__.split("Args:")[1].split("Attributes:")[0]
    for name in SFTDataModule.__init__.__annotations__:
        assert name == "return" or f"\n        {name}: " in documented


def test_lightning_leaves_the_loader_as_it_is(data):
    """It wraps and re-creates a DataLoader, and then the order is not ours."""
    module = data()
    module.setup("fit")
    loader = module.train_dataloader()
    trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
    assert isinstance(trainer.fit_loop, _FitLoop)
    connector = trainer._data_connector
    trainer._accelerator_connector.is_distributed  # noqa: B018
    assert connector._prepare_dataloader(loader, shuffle=True, mode=None) is loader
    assert isinstance(loader, BatchLoader)
