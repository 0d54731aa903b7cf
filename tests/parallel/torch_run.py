"""Checks that run on several processes: `torch_run.py FOLDER PROCESSES CHECK [CHECK ...]`.

One interpreter imports everything and is forked, once a process; under torchrun each process is an
interpreter of its own. Each process writes what its checks return to FOLDER/RANK.json, a dict by
check; arguments of a check follow a colon.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path

import torch
import torch_checks
import torch_state_checks


def main(folder: str, processes: int, checks: list[str]) -> int:
    """Run checks on processes, and return how many of these failed."""
    if "RANK" in os.environ:  # under torchrun
        return _run(Path(folder), int(os.environ["RANK"]), checks)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.set_num_threads(1)
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os._exit(_run(Path(folder), rank, checks))
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def _run(folder: Path, rank: int, checks: list[str]) -> int:
    results = {}
    try:
        for check in checks:
            name, *arguments = check.split(":")
            module = torch_checks if hasattr(torch_checks, name) else torch_state_checks
            results[check] = getattr(module, name)(folder, *arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        (folder / f"{rank}.json").write_text(json.dumps(results))
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
