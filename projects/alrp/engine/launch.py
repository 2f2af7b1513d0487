"""Starts the processes of a command and ends all of them when one fails or the user stops it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Callable, Iterator
from urllib.parse import urlsplit
import torch.distributed as dist
import torch.multiprocessing
from torch.multiprocessing import ProcessRaisedException, _prctl_pr_set_pdeathsig

from detectron2.engine.launch import DEFAULT_TIMEOUT, _distributed_worker

from ..errors import UserError
from .failures import Failure, explain, is_of_another, one_message
from .machines import Machines, are_linked

# Seconds for processes to end by themselves when another has failed, and after being asked to.
_GRACE = 3.0
# The same for the one that failed, while others have told only that it does not answer.
_TIME_FOR_CAUSE = 10.0
# To reach machine 0, if it waits for this machine.
_TIME_TO_MEET = 5.0
# Seconds between two looks at what failed.
_PERIOD = 0.5
# Exit status of a process that got Ctrl-C or SIGTERM.
_INTERRUPTED = 130


class ProcessFailure(Exception):
    """One of several processes failed for a known reason, ``failure``; all have ended."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Terminated(KeyboardInterrupt):
    """SIGTERM, as job schedulers send it before they kill."""


def launch(main: Callable, args) -> None:
    """Run ``main(args)`` in every process of this machine.

    A single process is this one. The first failure ends all others within seconds, those on other
    machines too, whose commands repeat its message.

    Args:
        main: function at the top level of a module.
        args: of ``argument_parser``.

    Raises:
        UserError: if :func:`world_size` or :func:`process_group_url` refuses the options.
        ProcessFailure: if one of several processes failed for a known reason, or any process of
            another machine.
        ProcessRaisedException: if one of several failed otherwise; with its traceback.
    """
    num_processes = world_size(args)
    with one_message(), _sigterm_raises():
        if num_processes <= 1:
            main(args)
            return
        url = process_group_url(args)
        outcomes = multiprocessing.get_context("spawn").SimpleQueue()
        earlier = multiprocessing.active_children()
        machines = Machines(url, args.machine_rank, args.num_machines)
        failed = True
        try:
            context = torch.multiprocessing.start_processes(
                _run, (main, args, url, outcomes), nprocs=args.num_gpus, join=False
            )
            failed = _wait_for_a_failure(context.processes, outcomes, machines)
            if failed:
                _raise_cause(context.processes, outcomes, machines)
        except BaseException as error:
            machines.tell(_for_other_machines(error))
            raise
        finally:
            _end([p for p in multiprocessing.active_children() if p not in earlier])
            machines.leave(failed=failed)


@contextmanager
def refusal_is_told(args) -> Iterator[None]:
    """What is refused in the block ends the commands of other machines that wait for this one.

    Nobody hears of a refusal on machine 0, which would keep the store.
    """
    try:
        yield
    except Exception as error:
        failure = explain(error) or Failure(type(error).__name__)
        if args.machine_rank > 0 and are_linked(args.dist_url, args.num_machines):
            machines = Machines(args.dist_url, args.machine_rank, args.num_machines)
            if machines.have_met(_TIME_TO_MEET):
                machines.tell(failure)
                machines.leave(failed=True)
        raise


def world_size(args) -> int:
    """Number of processes on all machines; ``--num-gpus 0`` is one process, without a group.

    Raises:
        UserError: for several machines with ``--num-gpus 0``: each would train for itself.
    """
    if args.num_machines > 1 and args.num_gpus < 1:
        raise UserError(
            f"--num-machines is {args.num_machines}, but --num-gpus is {args.num_gpus}, so that "
            "each machine would run for itself; set --num-gpus to the number of processes of each "
            "machine, 1 or more, also without a GPU."
        )
    return max(args.num_gpus, 1) * args.num_machines


def _run(local_rank: int, main: Callable, args, url: str, outcomes) -> None:
    """What a process does; its failure goes to the queue ``outcomes``."""
    # If the command is killed. PyTorch asks for SIGINT, which nobody hears who waits for a GPU.
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    if are_linked(url, args.num_machines):
        # As under PyTorch's own launcher: process 0 does not keep the store, see Machines.
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    try:
        with one_message(), _sigterm_raises():
            _distributed_worker(
                local_rank,
                main,
                world_size(args),
                args.num_gpus,
                args.machine_rank,
                url,
                (args,),
                DEFAULT_TIMEOUT,
            )
        dist.destroy_process_group()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception as error:
        outcomes.put((local_rank, explain(error), traceback.format_exc()))
        sys.exit(1)


def _wait_for_a_failure(processes: list, outcomes, machines: Machines) -> bool:
    """Whether a process failed; returns when the first has, or all here have ended."""
    running = list(processes)
    while running:
        wait([process.sentinel for process in running], timeout=_PERIOD)
        running = [process for process in running if process.is_alive()]
        # A process that has told its failure may hang when it ends, as others wait for it.
        if any(process.exitcode for process in processes) or not outcomes.empty():
            return True
        if machines.heard:
            return True
    return False


def _raise_cause(processes: list, outcomes, machines: Machines) -> None:
    """Raise what made the first process fail; the others, given the time, fail of its end."""
    if machines.heard:
        raise ProcessFailure(machines.heard)
    reports = _reports(processes, outcomes)
    reporting = {rank for rank, _, _ in reports}
    silent = [(i, p.exitcode) for i, p in enumerate(processes) if p.exitcode and i not in reporting]
    # NCCL aborts a process when another one is gone.
    not_aborted = [end for end in silent if end[1] != -signal.SIGABRT]
    causes = [report for report in reports if not is_of_another(report[1])]
    if not causes and not not_aborted:
        heard = machines.wait_for_news()  # what the other machine says of it
        if heard:
            raise ProcessFailure(heard)
    ends = not_aborted or ([] if causes else silent)
    if ends:
        raise ProcessFailure(Failure(_silent_end(*ends[0]), from_outside=True))
    rank, failure, text = (causes or reports)[0]
    if failure is not None:
        raise ProcessFailure(failure)
    message = f"\n\n-- Process {rank} terminated with the following error:\n{text}"
    raise ProcessRaisedException(message, rank, processes[rank].pid)


def _reports(processes: list, outcomes) -> list[tuple[int, Failure | None, str]]:
    """What processes tell of their failures, as far as they do so in time."""
    start, reports = time.monotonic(), []
    while True:
        running = [process.sentinel for process in processes if process.is_alive()]
        while not outcomes.empty():
            reports.append(outcomes.get())
        only_of_others = reports and all(is_of_another(failure) for _, failure, _ in reports)
        seconds = _TIME_FOR_CAUSE if only_of_others else _GRACE
        if not running or time.monotonic() - start > seconds:
            return reports
        wait(running, timeout=_PERIOD)


def _for_other_machines(error: BaseException) -> Failure:
    """What the commands of other machines say of a failure here."""
    if isinstance(error, ProcessFailure):
        return error.failure
    if isinstance(error, KeyboardInterrupt):
        return Failure("it was interrupted or terminated", from_outside=True)
    return Failure(str(error).strip().rpartition("\n")[2] or type(error).__name__)


def _silent_end(rank: int, exit_code: int) -> str:
    if exit_code == _INTERRUPTED:
        return f"process {rank} was interrupted or terminated"
    if exit_code > 0:
        return f"process {rank} ended with exit status {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"process {rank} was killed ({name}{'; out of memory?' if name == 'SIGKILL' else ''})"


def _end(processes: list) -> None:
    """End processes: by SIGTERM, so that their own worker processes end too, or else by SIGKILL."""
    try:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _GRACE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:  # also if the user cannot wait
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated` in the block, as Ctrl-C raises KeyboardInterrupt."""

    def stop(*_) -> None:
        _end_loader_workers()
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end_loader_workers() -> None:
    """End the worker processes of this one, which would print tracebacks of its sudden end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error of it
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def process_group_url(args) -> str:
    """Where the processes meet: ``--dist-url``, or for "auto" a free port of this machine.

    Raises:
        UserError: if they cannot meet there.
    """
    url = args.dist_url
    if url == "auto":
        if args.num_machines > 1:
            raise UserError(
                "several machines need --dist-url tcp://ADDRESS:PORT, the same on all of them, with"
                " the address of the machine that has --machine-rank 0 and a free port of it."
            )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{free.getsockname()[1]}"
    if not url.startswith(("file://", "env://")):
        _check_tcp_url(url, is_host=args.machine_rank == 0)
    return url


def _check_tcp_url(url: str, is_host: bool) -> None:
    expected = "expected tcp://ADDRESS:PORT with a port from 1 to 65535"
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:  # the port
        raise UserError(f"--dist-url {url}: {expected}, but: {error}.") from error
    if parts.scheme != "tcp" or not host:
        raise UserError(f"--dist-url {url} is no address; {expected}.")
    if not port:
        raise UserError(f"--dist-url {url} has no port; {expected}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except OSError as error:
        raise UserError(
            f"--dist-url {url}: the address {host} is unknown here ({error})."
        ) from error
    if not is_host:
        return
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            reason = f"this machine cannot listen at {host}: {os.strerror(error.errno)}"
            if error.errno == errno.EADDRINUSE:
                reason = f"port {port} is in use"
            raise UserError(
                f"--dist-url {url}: {reason}; name a free port of the machine with --machine-rank "
                "0, or with a single machine leave --dist-url out."
            ) from error
