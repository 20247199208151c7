"""Runs Python programs in forks of a process that has made the imports, which take 5 s each time.

``run`` and ``start`` stand for ``subprocess.run`` and ``subprocess.Popen`` of [sys.executable,
*args], where args are a script, "-m" and a module, or "-c" and code. A program has its own
environment, folder, standard streams, signals and end, as any process has. What depends on the
imports themselves (their order, a signal during them, what they cost) needs a fresh interpreter.

Usage, by ``start`` alone: python warm_python.py DESCRIPTOR, of a socket that brings the requests.
"""

import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
# the beginnings of the names of variables that torch, transformers and others read when they are
# imported: for other values there is another process to fork
READ_BY_IMPORTS = ("ATEN_", "GOMP_", "HF_", "KMP_", "MKL_", "OMP_", "ONEDNN_MAX_", "TORCH")
_servers: dict[tuple[tuple[str, str], ...], tuple[subprocess.Popen[bytes], socket.socket]] = {}


class Program:
    """A program that was started; ``returncode`` is None until it has been waited for.

    ``stdout`` and ``stderr`` are to be read where ``start`` was given subprocess.PIPE for them.
    """

    def __init__(self, args: list[str], status: IO[str], pipes: list[IO[str] | None]) -> None:
        self.args, self.returncode = args, None
        self._status = status
        self.stdout, self.stderr = pipes
        self.pid = int(status.readline())

    def wait(self, timeout: float) -> int:
        """Return the exit status, or -n after the signal n, within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end; return what is left to read of standard output and errors."""
        pipes = [pipe for pipe in (self.stdout, self.stderr) if pipe]
        with ThreadPoolExecutor(2) as threads:
            reading = {pipe: threads.submit(pipe.read) for pipe in pipes}
            try:
                self.wait(timeout)
            finally:
                self.kill()  # or the threads would read for ever
        texts = {pipe: text.result() for pipe, text in reading.items()}
        for pipe in pipes:
            pipe.close()
        return texts.get(self.stdout, ""), texts.get(self.stderr, "")

    def poll(self) -> int | None:
        """Return the exit status, or None while the program runs."""
        if self.returncode is None and (line := self._status.readline()):
            self.returncode = int(line)
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, its status is on its way
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    args: list[Any],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdin: IO[Any] | None = None,
    stdout: IO[Any] | int | None = None,
    stderr: IO[Any] | int | None = None,
) -> Program:
    """Start a program, of one thread if ``env`` is not given; other streams are /dev/null.

    ``stdout`` and ``stderr`` may be subprocess.PIPE, to be read as text.
    """
    args, env = (
        [str(arg) for arg in args],
        dict({**os.environ, "OMP_NUM_THREADS": "1"} if env is None else env),
    )
    request = {"args": args, "cwd": str(cwd or Path.cwd()), "env": env}
    read, write = os.pipe()
    pipes: list[IO[str] | None] = [None, None]
    with contextlib.ExitStack() as files:
        null = files.enter_context(open(os.devnull, "r+b"))
        streams = [(stdin or null).fileno()]
        for i, stream in enumerate((stdout, stderr)):
            if stream == subprocess.PIPE:
                end, begin = os.pipe()
                pipes[i], stream = open(end), files.enter_context(open(begin, "w"))  # noqa: SIM115
            streams.append((stream or null).fileno())
        socket.send_fds(_server(env), [json.dumps(request).encode()], [*streams, write])
    os.close(write)
    status = open(read)  # noqa: SIM115  (closed when the program has ended)
    program = Program(args, status, pipes)
    os.set_blocking(read, False)
    return program


def run(
    args: list[Any],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    input: str = "",
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with ``input`` as its standard input; return all that it printed."""
    with contextlib.ExitStack() as files:
        given, out, errors = (files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
        given.write(input)
        given.seek(0)
        program = start(args, cwd=cwd, env=env, stdin=given, stdout=out, stderr=errors)
        try:
            status = program.wait(timeout)
        finally:
            program.kill()
        for file in (out, errors):
            file.seek(0)
        return subprocess.CompletedProcess(program.args, status, out.read(), errors.read())


def _server(env: dict[str, str]) -> socket.socket:
    """Return the connection to the process that has imported under ``env``."""
    key = tuple(sorted((k, v) for k, v in env.items() if k.startswith(READ_BY_IMPORTS)))
    if key not in _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env={**env, "PYTHONPATH": str(ROOT)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        _servers[key] = process, ours
    return _servers[key][1]


@atexit.register
def _stop() -> None:
    for process, connection in _servers.values():
        connection.close()  # the server reads the end of its requests
        process.wait()


def _import_all() -> None:
    """Import what programs of this package import, and torch's parts that are imported late."""
    import importlib
    import pkgutil

    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import peft_lightning

    for module in pkgutil.walk_packages(peft_lightning.__path__, "peft_lightning."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request; return, in the fork, the request and the program's three streams."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what waits for a program
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 2**18, 4)
        if not message:
            os._exit(0)
        threads = len(os.listdir("/proc/self/task"))
        assert threads == 1, f"{threads} threads: a fork would have one of them"
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
    *streams, status = descriptors
    program = os.fork()
    if program:
        for stream in streams:
            os.close(stream)
        _, ended = os.waitpid(program, 0)
        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
        os._exit(0)
    # only now: a signal that comes while a process is forked is lost
    os.write(status, f"{os.getpid()}\n".encode())
    os.close(status)
    return json.loads(message), streams


def _become(request: dict[str, Any], streams: list[int], standard: list[str]) -> tuple[str, str]:
    """Make this process the one asked for; return the kind of its program, and the program."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
    for stream in streams:
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    kind, *rest = request["args"]
    if kind in ("-m", "-c"):
        program, *options = rest
        first, name = request["cwd"] if kind == "-m" else "", kind
    else:
        kind, program, options = "script", kind, rest
        first, name = str(Path(program).absolute().parent), program
    sys.argv = [name, *options]
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *own, *standard]
    return kind, program


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))
    here = socket.socket(fileno=int(sys.argv[1]))
    standard = [path for path in sys.path if path != str(ROOT)]
    _import_all()
    gc.collect()
    gc.freeze()
    kind, program = _become(*_serve(here), standard)
    del sys.modules["__main__"].__file__
    import runpy

    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(program, run_name="__main__")
