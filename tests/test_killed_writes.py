"""Killed before any change to the disk, a command leaves the old result or the new one."""

import json
import shutil
from pathlib import Path

import pytest

import killing
import warm_python
from cli_driver import ENVIRONMENT
from peft_lightning import LoRA, load_base_model, save_adapter
from test_cli import DATA, MODEL, TRAINER

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(bool(killing.unable()), reason=killing.unable())

# the least changes that the command must have been seen to make
LEAST = {
    "combine": 20,
    "merge": 25,
    "export": 10,
    "generate": 10,
    "predict": 6,
    "checkpoint": 40,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base, rows):
    """A folder with an adapter, rows and a config."""
    folder = tmp_path_factory.mktemp("killed") / "user"
    folder.mkdir()
    model = load_base_model(str(base))
    adapter = LoRA(r=4, init_lora_weights=False)
    adapter.attach(model)
    save_adapter(adapter, model, folder / "a")
    (folder / "rows.jsonl").write_text("".join(rows.read_text().splitlines(True)[:12]))
    text = MODEL.replace("BASE", str(base)) + ", adapter: {class_path: LoRA, init_args: {r: 4}}}"
    text += DATA.replace("TRAINER", TRAINER + ", logger: false")
    (folder / "run.yaml").write_text(text.replace("train:", "predict: rows.jsonl, train:"))
    return folder


def test_the_number_of_killed_writes_in_the_docs_is_the_least_that_is_seen():
    text = (HERE.parent / "docs/reliability.md").read_text()
    assert f"| {sum(LEAST.values())} or more |" in text


def drive(case, folder, base):
    """Return the digests of the old result, what each killed run left, and the files at the end."""
    done = warm_python.run(
        [HERE / "drivers" / "crash_driver.py", case, folder, base],
        env={**ENVIRONMENT, "PYTHONPATH": f"{HERE}:{HERE}/drivers:{HERE.parent}"},
        timeout=500,
    )
    log = folder.parent / f"{case}.log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"killed')]
    found = [(line["killed"], line["left"]) for line in lines]
    return found[0][1], found[1:-1], set(found[-1][1])


@pytest.mark.parametrize("case", [c for c in LEAST if c != "checkpoint"])
def test_a_command_killed_at_any_write_leaves_the_old_result_or_the_new_one(
    case, folder, base, tmp_path
):
    own = shutil.copytree(folder, tmp_path / "user")
    before = {p.name for p in own.iterdir()}
    old, runs, files = drive(case, own, base)
    new = runs[-1][1]
    assert old != new
    assert len(runs) > LEAST[case]
    for killed, left in runs:
        assert left in (old, new), killed
    outputs = {"out", "a.gguf", "a.Modelfile", "predictions.jsonl"}
    if case == "predict":  # beside what a run leaves
        outputs |= {"checkpoints", "config.yaml", "logs", "run.json", "run.lock", "summary.json"}
        outputs |= {"history.jsonl", "report.html", "report.json"}
    assert files <= before | outputs  # no litter after a run that was left alone


def test_a_save_killed_at_any_write_leaves_whole_checkpoints_and_a_whole_summary(
    folder, base, tmp_path
):
    own = shutil.copytree(folder, tmp_path / "user")
    old, runs, files = drive("checkpoint", own, base)
    new = runs[-1][1]
    assert len(runs) > LEAST["checkpoint"]

    def part(left, name):
        return {k.removeprefix(name): v for k, v in left.items() if k.startswith(name)}

    last, previous = "checkpoints/last.ckpt/", "checkpoints/previous.ckpt/"
    assert part(new, previous) == part(old, last) != part(new, last)
    seen = set()
    for killed, left in runs:
        states = [
            next((i for i, s in enumerate((old, new)) if part(left, p) == part(s, p)), None)
            for p in (last, previous, "summary.json")
        ]
        assert None not in states, (killed, left)
        assert part(left, "checkpoints/best.ckpt/") == part(old, "checkpoints/best.ckpt/")
        seen.add(tuple(states))
    assert {(0, 0, 0), (1, 1, 1)} < seen
    assert files == {"best.ckpt", "last.ckpt", "previous.ckpt"}  # no litter after the last one
