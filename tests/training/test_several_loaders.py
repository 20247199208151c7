"""Several validation loaders have a loss each, and data modules and modules go with others."""

import lightning as L
import pytest
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from peft_lightning import CausalLMModule, LoRA, SFTDataModule
from peft_lightning.data.collate import flat_collate
from tiny_run import byte_tokenizer, fit, flat_batch, write_base

LENGTHS = {"short": [[5, 7], [6, 3]], "long": [[20, 21], [9, 30], [4, 40]]}


def loaders():
    batches = {
        name: [flat_batch(lens, seed=i) for i, lens in enumerate(of_loader)]
        for name, of_loader in LENGTHS.items()
    }
    return {name: DataLoader(b, batch_size=None) for name, b in batches.items()}


def made(base):
    L.seed_everything(0, verbose=False)
    return CausalLMModule(str(base), LoRA(r=2))


def validated(module, val, root, method="validate", **options):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=root, **options
    )
    getattr(trainer, method)(module, val, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (lambda found: list(found.values()), ["0", "1"]),
        (lambda found: CombinedLoader(found, "sequential"), ["short", "long"]),
        (dict, ["short", "long"]),
    ],
    ids=["a list", "a CombinedLoader", "a dict"],
)
@pytest.mark.parametrize("method", ["validate", "test"])
def test_each_loader_has_its_loss_and_all_have_one(base, tmp_path, shape, names, method):
    module, stage = made(base), {"validate": "val", "test": "test"}[method]
    metrics = validated(module, shape(loaders()), tmp_path, method)
    alone = [
        validated(module, loader, tmp_path, method)[f"{stage}/loss"]
        for loader in loaders().values()
    ]
    assert [metrics[f"{stage}/loss/{name}"] for name in names] == pytest.approx(alone)
    tokens = [  # the first of a row has nothing before it that predicts it
        sum(n - 1 for lens in of_loader for n in lens) for of_loader in LENGTHS.values()
    ]
    mean = sum(n * loss for n, loss in zip(tokens, alone, strict=True)) / sum(tokens)
    assert metrics[f"{stage}/loss"] == pytest.approx(mean)


def test_one_loader_in_a_list_has_no_name(base, tmp_path):
    metrics = validated(made(base), [next(iter(loaders().values()))], tmp_path)
    assert {name for name in metrics if "/loss" in name} == {"val/loss"}


def test_a_batch_that_names_its_source_keeps_it(base, tmp_path):
    given = [[{**flat_batch([5, 6]), "source": "mine"}], [flat_batch([7])]]
    metrics = validated(made(base), [DataLoader(b, batch_size=None) for b in given], tmp_path)
    assert {"val/loss/mine", "val/loss/1"} <= metrics.keys()


def test_the_loaders_of_a_fit_have_their_losses_too(base, tmp_path):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1,
        default_root_dir=tmp_path,
    )  # fmt: skip
    train = DataLoader([flat_batch([9, 8])], batch_size=None)
    trainer.fit(made(base), train, list(loaders().values()))
    assert {"val/loss", "val/loss/0", "val/loss/1"} <= trainer.callback_metrics.keys()


def test_two_sources_have_their_losses(base, rows, tmp_path):
    trainer = fit(base, rows, tmp_path / "a", max_epochs=1, data={"val": [str(rows), str(rows)]})
    assert {"val/loss", "val/loss/rows", "val/loss/rows_2"} <= trainer.callback_metrics.keys()


def test_a_collate_function_makes_the_batches(base, rows, tmp_path):
    def first_row(rows):
        return flat_collate(rows[:1])

    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(int((batch["position_ids"] == 0).sum()))

    options = {"collate_fn": first_row, "batch_size": 4}
    fit(base, rows, tmp_path / "a", max_epochs=1, data=options, callbacks=[Watch()])
    assert seen == [1] * 6


def test_a_data_module_goes_on_with_a_module_of_another_tokenizer(base, rows, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    other = write_base(tmp_path / "other")
    tokenizer.save_pretrained(other)
    data = SFTDataModule(train=str(rows), batch_size=4, cache_dir=str(tmp_path / "cache"))

    def tokens_of(folder):
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1,
            default_root_dir=tmp_path / "run",
        )  # fmt: skip
        module = CausalLMModule(str(folder), LoRA(r=2))
        trainer.fit(module, data)
        assert data.tokenizer is module.tokenizer
        return data.sizes["train"]["tokens"], data.data_hash

    first, second = tokens_of(base), tokens_of(other)
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert tokens_of(base) == first


def test_a_tokenizer_that_is_given_stays(base, rows, tmp_path):
    tokenizer = byte_tokenizer()
    data = SFTDataModule(train=str(rows), tokenizer=tokenizer, cache_dir=str(tmp_path / "cache"))
    for _ in range(2):
        data.row_tokenizer(CausalLMModule(str(base), LoRA(r=2)))
        assert data.tokenizer is tokenizer
