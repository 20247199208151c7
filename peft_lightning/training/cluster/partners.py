"""Processes that train together: when one fails, its reason is the only one told, and all end."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

KEY = "peft_lightning/failed"
TOLD = "peft_lightning/told"
POLLING = 0.5  # seconds between two looks at the others
PATIENCE = 3.0  # seconds for the main thread to notice itself, which gloo's does at once
LOST = re.compile(  # what torch says where another process is gone
    r"Connection (closed by peer|reset by peer|refused)|Broken pipe|Socket (closed|Timeout)"
    r"|recvValue failed|sendBytes failed|failed to recv|NCCL (error|communicator)|remote process"
    r"|Application timeout caused pair closure|connectFullMesh failed|unhandled system error"
)


def tell_partners(line: str, status: int) -> None:
    """Tell the others why this process ends; they do not say that they have lost it."""
    store = _store()
    if store is None:
        return
    with suppress(Exception):  # of a store that is gone, with those that it would tell
        store.set(KEY, f"{status} {line}")
        if _rank() == 0 and _world() > 1:  # whose store it may be: the others look twice a second
            time.sleep(2 * POLLING)


def partner_failure(error: BaseException | None = None) -> int | None:
    """Return the status to end with because another process has failed; None if none has.

    A process that was killed could not say so: the first that has lost it says it then.

    Args:
        error: What this process met, if it did; it may be that the other is gone.
    """
    store = _store()
    if store is None:
        return None
    told = _told(store)
    is_lost = error is not None and LOST.search(str(error)) is not None
    if told is None and is_lost:
        time.sleep(POLLING)  # it ends, and may still say why
        told = _told(store)
    if told is not None:
        return int(told.split(" ", 1)[0])
    if not is_lost:
        return None
    is_first = True
    with suppress(Exception):
        is_first = store.add(TOLD, 1) == 1
    if is_first:
        line = "another process of this run has ended without a word, as one that is killed does"
        print(f"error: {line}; --ckpt_path last goes on", file=sys.stderr, flush=True)
    return 1


def name_of_process() -> str:
    """Return which process this is, where there are others: ``process 1 on n2: ``."""
    if _store() is None or _world() == 1 or _rank() == 0:
        return ""
    return f"process {_rank()} on {socket.gethostname()}: "


def watch_partners() -> None:
    """End this process if another has failed and it waits for that one: from a thread."""
    threading.Thread(target=_watch, name="partners", daemon=True).start()


def _watch() -> None:
    store = None
    while True:
        time.sleep(POLLING)
        if store is None:
            found = _store()
            if found is None:
                continue
            store = found
        told = _told(store)
        if told is None:
            continue
        time.sleep(PATIENCE)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(told.split(" ", 1)[0]))


def _told(store: Any) -> str | None:
    with suppress(Exception):
        if store.check([KEY]):
            return str(store.get(KEY).decode(errors="replace"))
    return None


def _distributed() -> Any:
    """Return torch.distributed if processes are joined by it."""
    module = sys.modules.get("torch.distributed")
    if module is None or not module.is_available() or not module.is_initialized():
        return None
    return module


def _store() -> Any:
    distributed = _distributed()
    if distributed is None or distributed.get_world_size() == 1:
        return None
    with suppress(Exception):
        return distributed.distributed_c10d._get_default_store()
    return None


def _rank() -> int:
    return int(_distributed().get_rank())


def _world() -> int:
    return int(_distributed().get_world_size())
