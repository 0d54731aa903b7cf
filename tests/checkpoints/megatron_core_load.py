"""Loads checkpoints into Megatron-core's own BertModel and saves its logits. A process of its own:

    python megatron_core_load.py FOLDER

FOLDER has `one` and `two`, of one and of two tensor ranks; `two` is run over two processes.
"""

import pathlib
import sys

import torch
from megatron.core import parallel_state
from megatron_core_run import make_model, save_logits, use_the_cpu


def run(rank, folder, tensor_size):
    use_the_cpu(folder / f"store_{tensor_size}", rank, tensor_size)
    source = folder / ("one", "two")[tensor_size - 1]
    saved = torch.load(
        source / "release" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt", weights_only=False
    )
    model = make_model()
    model.load_state_dict(saved["model"], strict=True)
    save_logits(folder / f"logits_{tensor_size}_{rank}.npz", model)
    if rank == 0:
        sharded = model.sharded_state_dict()
        names = sorted({tensor.key for tensor in sharded.values() if hasattr(tensor, "key")})
        (folder / f"names_{tensor_size}.txt").write_text("\n".join(names))
    parallel_state.destroy_model_parallel()


def main():
    folder = pathlib.Path(sys.argv[1])
    for tensor_size in (1, 2):
        torch.multiprocessing.spawn(run, (folder, tensor_size), nprocs=tensor_size)


if __name__ == "__main__":
    main()
