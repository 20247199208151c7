"""A forked program is what a fresh interpreter would make of it."""

import os
import signal
import subprocess
import sys

import pytest

import warm_python

SHOW = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("MINE"), sys.stdin.read(),
                  sys.path[0], __name__, "torch" in sys.modules]))
print("to errors", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("kind", ["script", "-c", "-m"])
def test_a_program_has_its_own_arguments_folder_environment_and_streams(kind, tmp_path):
    (tmp_path / "shown.py").write_text(SHOW)
    program = {"script": [tmp_path / "shown.py"], "-c": ["-c", SHOW], "-m": ["-m", "shown"]}[kind]
    given = {"cwd": tmp_path, "env": {**os.environ, "MINE": "x"}}
    found = warm_python.run([*program, "a", "b c"], input="typed", **given)
    fresh = subprocess.run(
        [sys.executable, *map(str, program), "a", "b c"],
        input="typed",
        capture_output=True,
        text=True,
        **given,
    )
    assert found.returncode == fresh.returncode == 3
    assert found.stdout == fresh.stdout.replace("false]", "true]")
    assert found.stderr == fresh.stderr == "to errors\n"


def test_an_exception_ends_it_with_a_traceback_and_status_1():
    found = warm_python.run(["-c", "1 / 0"])
    assert found.returncode == 1
    assert found.stderr.startswith("Traceback")
    assert found.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_is_stopped_by_signals_from_its_first_moment_on(number):
    program = warm_python.start(["-c", "import time; time.sleep(600)"])
    program.send_signal(number)
    # 1: of a KeyboardInterrupt, where Lightning's imports keep the interpreter from the signal
    assert program.wait(60) in ((-number, 1) if number == signal.SIGINT else (-number,))


def test_a_signal_to_one_that_has_just_ended_is_no_error():
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    read, write = os.pipe()
    os.write(write, f"{ended.pid}\n".encode())
    program = warm_python.Program(["true"], open(read), [None, None])  # noqa: SIM115
    os.set_blocking(read, False)
    program.send_signal(signal.SIGTERM)
    assert program.returncode is None
    os.write(write, b"0\n")
    os.close(write)
    assert program.wait(60) == 0


def test_its_streams_can_be_read_while_it_runs_and_to_their_end():
    code = "import sys; print('first', flush=True); sys.stdin.read(); print('y' * 200_000)"
    code += "; print('z' * 200_000, file=sys.stderr)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = warm_python.start(["-c", code], **pipes)
    assert program.stdout.readline() == "first\n"
    assert program.communicate(60) == ("y" * 200_000 + "\n", "z" * 200_000 + "\n")
    assert program.returncode == 0


def test_programs_run_beside_each_other_and_know_nothing_of_each_other(tmp_path):
    wait = (
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)\n"
    )
    places = tmp_path / "a", tmp_path / "b"
    programs = [warm_python.start(["-c", wait, *order]) for order in (places, places[::-1])]
    assert [program.wait(60) for program in programs] == [0, 0]
    warm_python.run(["-c", "import torch; torch.mine = 1"])
    assert warm_python.run(["-c", "import torch; torch.mine"]).returncode == 1
