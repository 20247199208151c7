"""AdapterCheckpoint that the disk has damaged, through the command line."""

import json
import shutil

import pytest

from cli_driver import drive, saved_step
from test_checkpoint import last
from test_cli import DATA, MODEL, TRAINER


@pytest.fixture(scope="module")
def user(tmp_path_factory, base, rows):
    """A folder with rows, a config, and a run of 3 steps that saved each of them."""
    folder = tmp_path_factory.mktemp("damage")
    model = MODEL.replace("BASE", str(base)) + ", adapter: {class_path: LoRA, init_args: {r: 2}}}"
    checkpoints = "peft_lightning.training.checkpoint.AdapterCheckpoint"
    saves = f"{{class_path: {checkpoints}, init_args: {{every_n_steps: 1}}}}"
    trainer = TRAINER.replace("max_steps: 1", "max_steps: 3") + f", callbacks: [{saves}]"
    (folder / "run.yaml").write_text(model + DATA.replace("TRAINER", trainer))
    (folder / "rows.jsonl").write_text(rows.read_text())
    [(status, _, errors)] = drive(folder, [["fit", "--config", "run.yaml"]])
    assert status == 0, errors
    return folder


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def copy(user, tmp_path, name):
    """Copy the run into a folder of its own, which ``--trainer.default_root_dir`` takes."""
    shutil.copytree(user / "runs/run", tmp_path / name)
    return tmp_path / name


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_a_damaged_last_is_said_and_the_newest_whole_one_used(user, tmp_path):
    damages = {
        "adapter_model.safetensors": flip_a_bit,
        "trainer_state.pt": cut,
        "adapter_config.json": lambda file: file.unlink(),
    }
    command = ["fit", "--config", "run.yaml", "--trainer.max_steps", "4", "--ckpt_path", "last"]
    lines = []
    for name, damage in damages.items():
        root = copy(user, tmp_path, name)
        damage(last(root) / name)
        lines.append([*command, "--trainer.default_root_dir", str(root)])
    for name, (status, _, errors) in zip(damages, drive(user, lines), strict=True):
        assert status == 0, errors
        assert f"last.ckpt is damaged: {name}" in errors
        used = f"{tmp_path / name}/checkpoints/best.ckpt, of step 3"
        assert f"newest whole checkpoint of this run is used: {used}" in errors
        assert saved_step(last(tmp_path / name)) == 4


def test_where_all_are_damaged_the_error_names_each(user, tmp_path):
    root = copy(user, tmp_path, "run")
    for name in ("last", "previous", "best"):
        flip_a_bit(root / f"checkpoints/{name}.ckpt/adapter_model.safetensors")
    options = ["--config", "run.yaml", "--trainer.default_root_dir", str(root), "--ckpt_path"]
    [(status, _, errors)] = drive(user, [["fit", *options, "last"]])
    assert status == 2
    assert errors.count("\n") == 1
    assert all(f"{name}.ckpt is damaged" in errors for name in ("last", "previous", "best"))


def test_damage_is_an_error_in_one_line_wherever_a_checkpoint_is_read(user, tmp_path, base):
    root = copy(user, tmp_path, "run")
    best = root / "checkpoints/best.ckpt"
    flip_a_bit(best / "adapter_model.safetensors")
    prompt = ["--prompt", "a", "--max_new_tokens", "1"]
    run = ["--config", "run.yaml", "--trainer.default_root_dir", str(root)]
    lines = [
        ["generate", "--ckpt_path", str(best), *prompt],
        ["merge", str(best), str(tmp_path / "merged")],
        ["export", str(best), str(tmp_path / "x.gguf")],
        ["combine", str(tmp_path / "both"), str(best)],
        ["resize", str(best), str(tmp_path / "small"), "--rank", "1"],
        ["validate", *run, "--ckpt_path", "best"],
        ["fit", *run, "--ckpt_path", "best"],
    ]
    for line, (status, _, errors) in zip(lines, drive(user, lines), strict=True):
        assert status == 2, (line, errors)
        assert "best.ckpt is damaged: adapter_model.safetensors is not what was" in errors
        assert errors.count("\n") == 1
    assert not any((tmp_path / name).exists() for name in ("merged", "x.gguf", "both", "small"))


def test_a_state_that_cannot_be_read_is_an_error_also_without_checksums(user, tmp_path):
    root = copy(user, tmp_path, "run")
    (last(root) / "SHA256SUMS").unlink()
    cut(last(root) / "trainer_state.pt")
    options = ["--config", "run.yaml", "--trainer.default_root_dir", str(root)]
    [(status, _, errors)] = drive(user, [["fit", *options, "--ckpt_path", "last"]])
    assert status == 2, errors
    assert "trainer_state.pt cannot be read, it may be damaged" in errors.splitlines()[-1]
    facts = json.loads((last(root) / "peft_lightning.json").read_text())
    assert facts["step"] == 3
