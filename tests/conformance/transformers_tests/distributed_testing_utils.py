"""Stands in for a module that the sdist leaves out: starts the ranks of the FSDP and tensor-parallel mixins.

One process a GPU with nccl where CUDA is there, else processes on one CPU thread each with gloo.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _get_distributed_device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _get_distributed_backend() -> str:
    return "nccl" if _get_distributed_device_type() == "cuda" else "gloo"


def _get_rank_device(rank: int) -> torch.device:
    return torch.device("cuda", rank) if _get_distributed_device_type() == "cuda" else torch.device("cpu")


def _set_rank_device(rank: int) -> None:
    if _get_distributed_device_type() == "cuda":
        torch.cuda.set_device(rank)


def _start_rank_processes(function: Callable, args: tuple = (), nprocs: int = 1) -> None:
    mp.spawn(function, args=args, nprocs=nprocs, join=True)


def run_distributed(world_size: int) -> Callable:
    """Decorator: `function(rank, *args, **kwargs)` runs on `world_size` ranks of one process group."""

    def decorate(function: Callable) -> Callable:
        def start(*args: Any, **kwargs: Any) -> None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            _start_rank_processes(_run_rank, (function, world_size, port, args, kwargs), world_size)

        return start

    return decorate


def _run_rank(rank: int, function: Callable, world_size: int, port: int, args: tuple, kwargs: dict) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    _set_rank_device(rank)
    dist.init_process_group(_get_distributed_backend(), rank=rank, world_size=world_size)
    try:
        function(rank, *args, **kwargs)
        dist.barrier()
    finally:
        dist.destroy_process_group()
