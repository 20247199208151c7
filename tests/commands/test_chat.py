"""The chat of the command line, driven through its standard input."""

import warm_python
from cli_driver import ENVIRONMENT
from peft_lightning.commands.generate import generate


def talk(lines, *options):
    command = ["-m", "peft_lightning", "chat", *options, "--max_new_tokens", "6"]
    return warm_python.run(command, env=ENVIRONMENT, input="\n".join(lines) + "\n")


def test_answers_are_generates_and_the_conversation_is_remembered(base, lora_folder, capsys):
    lines = ["hello", "hello", "/reset", "hello", "/adapter a", "/reset", "hello", "/adapter x"]
    done = talk([*lines, "/what", "/quit", "no"], "--base_model", str(base), "--adapter",
                f"a={lora_folder}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line.strip() for line in done.stdout.split("\n") if line]
    generate(ckpt_path=str(lora_folder), prompt="hello", max_new_tokens=6)
    want = capsys.readouterr().out.strip()
    assert said[0] == said[2] == said[3] == want  # the first adapter answers from the start
    assert len(said) == 4
    assert "adapters: base, a; now a" in done.stderr
    assert "there is no adapter 'x'; there are base, a" in done.stderr
    assert done.stderr.count("the conversations are forgotten") == 2
    assert done.stderr.count("/reset ") == 2  # at the start, and for what is no command


def test_a_conversation_that_is_too_long_says_so_and_goes_on(base):
    done = talk(["hello", "long " * 400, "/base", "hello"], "--base_model", str(base))
    assert done.returncode == 0, done.stderr
    assert "exceeds the model's" in done.stderr
    assert "/reset starts anew" in done.stderr
    assert len([line for line in done.stdout.split("\n") if line]) == 2


def test_without_a_chat_template_the_command_generate_is_named(base, tmp_path):
    import shutil

    plain = tmp_path / "plain"
    shutil.copytree(base, plain)
    (plain / "chat_template.jinja").unlink()
    done = talk(["hello"], "--base_model", str(plain))
    assert done.returncode == 2
    assert "a chat needs a chat template" in done.stderr
    assert "Traceback" not in done.stderr
