"""Loads checkpoints into Megatron-core's own BertModel and saves its logits. A process of its own:

    python megatron_core_load.py FOLDER

FOLDER has `one` and `two`, of one and of two tensor ranks; `two` is run over two processes. And
`segments` and `plain`, of masked language models, the second of which has no binary head.
"""

import pathlib
import sys

import torch
from megatron.core import parallel_state
from megatron_core_run import make_model, save_logits, use_the_cpu


def run(rank, folder, name, tensor_size):
    use_the_cpu(folder / f"store_{name}", rank, tensor_size)
    saved = torch.load(
        folder / name / "release" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt",
        weights_only=False,
    )
    model = make_model(binary_head=saved["args"].bert_binary_head)
    model.load_state_dict(saved["model"], strict=True)
    save_logits(folder / f"logits_{name}_{rank}.npz", model)
    if name == "one":
        sharded = model.sharded_state_dict()
        names = sorted({tensor.key for tensor in sharded.values() if hasattr(tensor, "key")})
        (folder / "names.txt").write_text("\n".join(names))
    parallel_state.destroy_model_parallel()


def main():
    folder = pathlib.Path(sys.argv[1])
    for name, tensor_size in {"one": 1, "two": 2, "segments": 1, "plain": 1}.items():
        torch.multiprocessing.spawn(run, (folder, name, tensor_size), nprocs=tensor_size)


if __name__ == "__main__":
    main()
