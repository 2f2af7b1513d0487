"""Several machines: each hears within seconds what failed on another one."""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from urllib.parse import urlsplit
import torch.distributed as dist

from .failures import Failure

# Seconds between two looks at the store; for others to hear of a failure; for them to end well.
_PERIOD, _TIME_TO_HEAR, _TIME_TO_END = 0.5, 10.0, 60.0
_TIME_TO_START = timedelta(minutes=30)
_JOINED, _FAILURE, _LEFT = (f"alrp/{name}" for name in ("joined", "failure", "left"))


def are_linked(url: str, num_machines: int) -> bool:
    """Whether the commands tell each other of failures: several machines meet by ``tcp://``."""
    return num_machines > 1 and url.startswith("tcp://")


class Machines:
    """What the commands of a training on several machines tell each other.

    They use the store at which the processes of the group meet. The command of machine 0 keeps it,
    instead of process 0, with which a message would end. Unless :func:`are_linked`, nothing is told
    and nothing heard.

    Args:
        url: of :func:`process_group_url`.
        rank: of this machine.
        num_machines: number of commands.
    """

    def __init__(self, url: str, rank: int, num_machines: int) -> None:
        self._is_linked = are_linked(url, num_machines)
        self._rank, self._failure, self._left = rank, None, threading.Event()
        self._store: dist.TCPStore | None = None
        self._joined = threading.Event()
        if self._is_linked:
            parts = urlsplit(url)
            self._address = parts.hostname, parts.port
            if rank == 0:
                self._store = self._connect()  # before a process looks for it
            threading.Thread(target=self._listen, daemon=True).start()

    def have_met(self, seconds: float) -> bool:
        """Whether this machine reaches machine 0 within so many seconds."""
        return self._is_linked and self._joined.wait(seconds)

    @property
    def heard(self) -> Failure | None:
        """What failed first, if it was told."""
        return self._failure

    def wait_for_news(self) -> Failure | None:
        """As :attr:`heard`, after some seconds for a message that is under way."""
        deadline = time.monotonic() + _TIME_TO_HEAR
        while self._is_linked and not self._failure and time.monotonic() < deadline:
            time.sleep(_PERIOD)
        return self._failure

    def tell(self, failure: Failure) -> None:
        """Tell the others what failed here, unless another failure was told before."""
        if self._store is None:
            return
        message = f"machine {self._rank}: {failure.message}"
        document = json.dumps({"message": message, "from_outside": failure.from_outside})
        try:
            self._store.compare_set(_FAILURE, "", document)
        except dist.DistError:  # machine 0 is gone, as the others will see
            pass

    def leave(self, *, failed: bool) -> None:
        """Go; machine 0 last, when all others have heard of a failure or have ended."""
        if self._store is None:
            return
        seconds = _TIME_TO_HEAR if failed else _TIME_TO_END
        deadline = time.monotonic() + seconds
        self._left.set()
        try:
            left = self._store.add(_LEFT, 1)
            while self._rank == 0 and left < self._store.add(_JOINED, 0):
                if time.monotonic() > deadline:
                    break
                time.sleep(_PERIOD)
                left = self._store.add(_LEFT, 0)
        except dist.DistError:
            pass

    def _connect(self) -> dist.TCPStore:
        options = {"is_master": self._rank == 0, "timeout": _TIME_TO_START}
        store = dist.TCPStore(*self._address, wait_for_workers=False, **options)
        store.add(_JOINED, 1)
        return store

    def _listen(self) -> None:
        """Runs in a thread, as joining takes until machine 0 is there."""
        try:
            store = self._store = self._store or self._connect()
            self._joined.set()
            while not self._left.wait(_PERIOD):
                if store.check([_FAILURE]):
                    self._failure = Failure(**json.loads(store.get(_FAILURE)))
                    return
        except dist.DistError:
            if not self._left.is_set():
                self._failure = Failure("the connection to machine 0 was lost", from_outside=True)
