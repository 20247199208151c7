"""The experiments of examples/experiments: their definitions, exact in any batches, resumed."""

import json
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from exactness import RATE, sgd
from peft_lightning import LoRA, UserError, save_adapter
from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.schedules import Constant
from processes import in_processes, outcome
from rounding import BACKWARD, rounding_error
from tiny_run import byte_tokenizer, fit, write_base, write_rows

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples.experiments.distillation import Distillation
from examples.experiments.dpo import DPO, PreferenceData
from examples.experiments.label_smoothing import LabelSmoothing
from examples.experiments.multi_task import MultiTask

TASKS = {"chat": 0.5, "code": 3.0}
NUMBER = 10  # rows of each file
CUTS = {  # options of the data, and batches of an optimizer step
    "one batch": ({"batch_size": 10}, 1),
    "2 batches": ({"batch_size": 5}, 2),
    "4 batches, padded": ({"batch_size": 3, "layout": "padded"}, 4),
    "rows alone, shuffled": ({"batch_size": 1, "shuffle": True}, 10),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two models with one tokenizer: GPT-2, which computes in float64, and a teacher of it."""
    folder = tmp_path_factory.mktemp("bases")
    write_base(folder / "student", "gpt2")
    teacher = AutoModelForCausalLM.from_pretrained(write_base(folder / "teacher", "gpt2"))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.05
    teacher.save_pretrained(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows of two tasks, and pairs of answers."""
    folder = tmp_path_factory.mktemp("files")
    chat = write_rows(folder / "chat.jsonl", NUMBER)
    write_rows(folder / "code.jsonl", NUMBER, seed=1)
    pairs = []
    for i, line in enumerate(chat.read_text().splitlines()):
        row = json.loads(line)
        pair = {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": "no " * (i % 3 + 1),
        }
        pairs.append(json.dumps(pair))
    (folder / "pairs.jsonl").write_text("\n".join(pairs) + "\n")
    return folder


def experiments(bases, files):
    """Return by name the class, its options, the rows, the data module and its options."""
    both = [str(files / f"{name}.jsonl") for name in TASKS]
    teacher = {"teacher": str(bases / "teacher"), "temperature": 3.0, "share": 0.7}
    chat, pairs = files / "chat.jsonl", files / "pairs.jsonl"
    return {
        "label_smoothing": (LabelSmoothing, {"smoothing": 0.3}, chat, None, {}),
        "distillation": (Distillation, teacher, chat, None, {}),
        "multi_task": (MultiTask, {"task_weights": TASKS}, both, None, {"name_sources": True}),
        "dpo": (DPO, {"beta": 0.4}, pairs, PreferenceData, {}),
    }


# ---- the definitions ---------------------------------------------------------------------------


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def of_answer(model, prompt, answer, teacher=None):
    """Return the logits before each token of an answer and its end, those tokens, the teacher's."""
    tokenizer = byte_tokenizer()
    start = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    first = len(tokenizer(start)["input_ids"])
    ids = torch.tensor([tokenizer(f"{start}{answer}<|im_end|>")["input_ids"]])
    logits = [m(ids).logits[0, first - 1 : -1] for m in (model, teacher) if m is not None]
    return logits[0], ids[0, first:], logits[-1]


def smoothed(model, bases, files):
    total, count = 0.0, 0
    for row in rows_of(files / "chat.jsonl"):
        logits, ids, _ = of_answer(model, row["prompt"], row["completion"])
        log_p = logits.log_softmax(-1)
        total = total - 0.7 * log_p.gather(1, ids[:, None]).sum() - 0.3 * log_p.mean(-1).sum()
        count += len(ids)
    return total / count


def distilled(model, bases, files):
    teacher = AutoModelForCausalLM.from_pretrained(bases / "teacher").double()
    total, count = 0.0, 0
    for row in rows_of(files / "chat.jsonl"):
        logits, ids, theirs = of_answer(model, row["prompt"], row["completion"], teacher)
        nll = -logits.log_softmax(-1).gather(1, ids[:, None]).sum()
        p, q = (theirs.detach() / 3.0).softmax(-1), (logits / 3.0).softmax(-1)
        total = total + 0.3 * nll + 0.7 * 9.0 * (p * (p / q).log()).sum()
        count += len(ids)
    return total / count


def weighted(model, bases, files):
    total, count = 0.0, 0.0
    for name, weight in TASKS.items():
        for row in rows_of(files / f"{name}.jsonl"):
            logits, ids, _ = of_answer(model, row["prompt"], row["completion"])
            total = total - weight * logits.log_softmax(-1).gather(1, ids[:, None]).sum()
            count += weight * len(ids)
    return total / count


def preferred(model, bases, files):
    base = AutoModelForCausalLM.from_pretrained(bases / "student").double()
    losses = []
    for row in rows_of(files / "pairs.jsonl"):
        gain = {}
        for side in ("chosen", "rejected"):
            logits, ids, of_base = of_answer(model, row["prompt"], row[side], base)
            ratio = logits.log_softmax(-1) - of_base.detach().log_softmax(-1)
            gain[side] = ratio.gather(1, ids[:, None]).sum()
        losses.append((1 + (-0.4 * (gain["chosen"] - gain["rejected"])).exp()).log())
    return torch.stack(losses).mean()


DEFINITIONS = {
    "label_smoothing": smoothed,
    "distillation": distilled,
    "multi_task": weighted,
    "dpo": preferred,
}


@pytest.fixture(scope="module", params=DEFINITIONS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def defined(name, bases, files):
    """The loss by definition, and the adapter after a step down its gradient."""
    L.seed_everything(0, verbose=False)
    model = AutoModelForCausalLM.from_pretrained(bases / "student")
    (adapter := LoRA(r=2, init_lora_weights=False)).attach(model)
    loss = DEFINITIONS[name](model.double(), bases, files)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter -= RATE * parameter.grad
    return loss.item(), adapter.state_dict(model)


def assert_same(ours, theirs):
    assert ours.keys() >= theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-8, atol=1e-11)


class InFloat64(Callback):
    """Lets the teacher compute as the student does in these tests."""

    def on_train_start(self, trainer, pl_module):
        if hasattr(pl_module, "teacher"):
            pl_module.teacher.model.double()


def run(name, bases, files, root, data=None, module=None, callbacks=(), **options):
    kind, given, rows, data_class, of_data = experiments(bases, files)[name]
    return fit(
        bases / "student",
        rows,
        root,
        module_class=kind,
        module={**given, **(module or {})},
        data={"val_fraction": 0, **of_data, **(data or {})},
        callbacks=[*callbacks],
        **({} if data_class is None else {"data_class": data_class}),
        **{"adapter": LoRA(r=2, init_lora_weights=False), **options},
    )


@pytest.mark.parametrize("cut", CUTS)
def test_a_step_is_that_of_the_definition_in_any_batches(
    name, cut, defined, bases, files, tmp_path
):
    data, batches = CUTS[cut]
    batches *= 2 if name == "multi_task" else 1  # it has twice the rows
    trainer = run(
        name,
        bases,
        files,
        tmp_path / "run",
        callbacks=[InFloat64()],
        data={"shuffle": False, **data},
        module={"optimizer": sgd, "lr_schedule": Constant()},
        precision="64-true",
        max_epochs=1,
        accumulate_grad_batches=batches,
        enable_checkpointing=False,
    )
    loss, theirs = defined
    assert trainer.global_step == 1
    if batches == 1:
        assert trainer.callback_metrics["train/loss"].item() == pytest.approx(loss, rel=1e-6)
    assert_same(trainer.lightning_module.state_dict(), theirs)


@pytest.fixture(scope="module")
def of_two_processes(bases, files, tmp_path_factory):
    """A folder of runs of two processes: each experiment in batches of 2 and 3 steps of each."""
    folder, runs = tmp_path_factory.mktemp("two"), {}
    for name, (kind, module, rows, data_class, data) in experiments(bases, files).items():
        runs[name] = {
            "base": str(bases / "student"),
            "rows": rows if isinstance(rows, list) else str(rows),
            "module_class": f"{kind.__module__}.{kind.__name__}",
            "module": module,
            "data": {"batch_size": 2, "shuffle": False, **data},
            "trainer": {"accumulate_grad_batches": 5 if name == "multi_task" else 3},
            "callbacks": ["test_experiments.InFloat64"],
        }
        if data_class is not None:
            runs[name]["data_class"] = f"{data_class.__module__}.{data_class.__name__}"
    in_processes(2, folder, runs)
    return folder


def test_two_processes_make_the_same_step(name, defined, of_two_processes):
    assert outcome(of_two_processes, name)["error"] is None
    assert_same(load_file(of_two_processes / name / "weights.safetensors"), defined[1])


# ---- resumed, and what is saved ----------------------------------------------------------------


class Crash(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 4:
            raise RuntimeError("a crash")


def test_a_run_that_goes_on_ends_with_the_very_bits(name, bases, files, tmp_path):
    options = {"data": {"batch_size": 3, "val_fraction": 0.2}, "max_epochs": 2}
    options["adapter"] = LoRA(r=2, lora_dropout=0.1)
    whole = run(name, bases, files, tmp_path / "whole", **options)
    callbacks = [Crash(), AdapterCheckpoint(every_n_steps=1)]
    with pytest.raises(RuntimeError, match="a crash"):
        run(name, bases, files, tmp_path / "cut", callbacks=callbacks, **options)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    again = run(name, bases, files, tmp_path / "cut", ckpt_path=str(last), **options)
    assert again.global_step == whole.global_step > 4
    ends = [trainer.lightning_module.state_dict() for trainer in (whole, again)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert again.callback_metrics["val/loss"] == whole.callback_metrics["val/loss"]
    saved = {key for file in last.glob("*.safetensors") for key in load_file(file)}
    assert all("lora_" in key or key.startswith("preferred.") for key in saved)


def batch_of(trainer):
    batch = next(iter(trainer.datamodule.train_dataloader()))
    return batch[0] if isinstance(batch, tuple) else batch


def test_validation_keeps_the_plain_loss_and_the_teacher_stays_as_it_was(bases, files, tmp_path):
    before = load_file(bases / "teacher" / "model.safetensors")
    for kind in ("label_smoothing", "distillation", "multi_task"):
        trainer = run(kind, bases, files, tmp_path / kind, max_steps=2)
        module, batch = trainer.lightning_module, batch_of(trainer)
        plain = super(type(module), module).nll(batch)
        torch.testing.assert_close(module.eval().nll(batch), plain, rtol=0, atol=0)
        assert (module.train().nll(batch)[0] - plain[0]).abs() > 0.1
        if kind == "distillation":
            teacher = module.teacher.model
            assert not any(p.requires_grad for p in teacher.parameters())
            assert all(m is not teacher for m in module.modules())
            assert all(torch.equal(teacher.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize("init", [True, "pissa"])
def test_dpo_begins_without_a_preference_where_the_adapter_begins_as_the_base(
    init, bases, files, tmp_path
):
    adapter = LoRA(r=2, init_lora_weights=init)
    trainer = run("dpo", bases, files, tmp_path / "run", adapter=adapter, max_steps=1)
    module = trainer.lightning_module
    adapter.detach(module.model)
    adapter.attach(module.model)
    loss, pairs = module.nll(batch_of(trainer))
    assert (loss / pairs).item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-4)


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "module", "data", "message"),
    [
        ("multi_task", {}, {"name_sources": False}, "set data.name_sources to true"),
        ("multi_task", {"task_weights": {"chat": 1.0}}, {}, r"task_weights must name \['code'\]"),
        ("dpo", {}, {"max_length": 20}, r"raise max_length"),
        ("distillation", {"share": 2.0}, {}, r"share in \[0, 1\], got 3.0 and 2.0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(
    kind, module, data, message, bases, files, tmp_path
):
    with pytest.raises(ValueError, match=message):
        run(kind, bases, files, tmp_path / "run", module=module, data=data, max_steps=1)


def test_dpo_refuses_tokens_that_the_base_does_not_know(bases):
    with pytest.raises(UserError, match="new_tokens, which the base has no embeddings of"):
        DPO(str(bases / "student"), LoRA(r=2, new_tokens=["<a>"]))


def test_a_teacher_with_another_tokenizer_is_refused(bases, files, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<other>"])
    AutoModelForCausalLM.from_pretrained(bases / "teacher").save_pretrained(tmp_path / "t")
    tokenizer.save_pretrained(tmp_path / "t")
    options = {"module": {"teacher": str(tmp_path / "t")}, "max_steps": 1}
    with pytest.raises(UserError, match="has another tokenizer than the base"):
        run("distillation", bases, files, tmp_path / "run", **options)


# ---- TRL ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_loss_and_gradients_are_those_of_trls_dpo_trainer(bases, files, tmp_path):
    trl = pytest.importorskip("trl")
    peft = pytest.importorskip("peft")
    from datasets import Dataset

    options = {"data": {"batch_size": NUMBER, "shuffle": False}, "max_steps": 1}
    module = run("dpo", bases, files, tmp_path / "run", **options).lightning_module
    save_adapter(module.adapter, module.model, tmp_path / "adapter")
    loss, pairs = module.nll(batch_of(module.trainer))
    module.zero_grad()
    (loss / pairs).backward()

    turns = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    rows = [
        {**row, "prompt": turns.format(row["prompt"])} for row in rows_of(files / "pairs.jsonl")
    ]
    args = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), beta=0.4, report_to=[], use_cpu=True, bf16=False,
        per_device_train_batch_size=NUMBER, gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    config = peft.LoraConfig.from_pretrained(tmp_path / "adapter")
    config.inference_mode = False
    trainer = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(bases / "student"),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=byte_tokenizer(),
        peft_config=config,
    )
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    peft.set_peft_model_state_dict(trainer.model, weights)
    batch = next(iter(torch.utils.data.DataLoader(
        trainer.train_dataset, batch_size=NUMBER, collate_fn=trainer.data_collator
    )))  # fmt: skip
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    torch.testing.assert_close(loss / pairs, theirs, rtol=1e-5, atol=1e-6)
    grads = {
        n.replace(".default", ""): p.grad
        for n, p in trainer.model.named_parameters()
        if "lora_" in n
    }
    for name, tensor in module.adapter.tensors(module.model).items():
        error = rounding_error(torch.float32, products=BACKWARD)
        assert (tensor.grad - grads[name]).norm() < error * grads[name].norm(), name
