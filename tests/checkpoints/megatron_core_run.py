"""Saves Megatron-core's own BertModel in several ways, and its logits. A process of its own:

    python megatron_core_run.py FOLDER

Megatron-core starts processes while it saves, which import the main module again.
"""

import argparse
import contextlib
import pathlib
import sys

import numpy as np
import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.enums import ModelType
from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
from megatron.core.models.bert.bert_model import BertModel
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig

LAYERS, HIDDEN, HEADS, FEED_FORWARD = 3, 32, 4, 48
ROWS, POSITIONS = 256, 24  # as of two tensor ranks and 100 pieces
SPLIT = {  # by the ends of their names: the axis that two tensor ranks share
    ("word_embeddings.weight", "output_layer.bias"): 0,
    ("linear_qkv.weight", "linear_qkv.bias", "linear_fc1.weight", "linear_fc1.bias"): 0,
    ("linear_proj.weight", "linear_fc2.weight"): 1,
}


def use_the_cpu(store, rank=0, tensor_size=1):
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None
    tensor_parallel.random.CudaRNGStatesTracker.fork = lambda *_: contextlib.nullcontext()
    store = torch.distributed.FileStore(str(store), tensor_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=tensor_size)
    parallel_state.initialize_model_parallel(tensor_size, 1)


def make_model(binary_head=True, **options):
    """A model whose weights are far from their initial values, biases too."""
    config = TransformerConfig(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        ffn_hidden_size=FEED_FORWARD,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        attention_backend=AttnBackend.local,
        **options,
    )
    model = BertModel(
        config,
        num_tokentypes=2 if binary_head else 0,
        add_binary_head=binary_head,
        transformer_layer_spec=bert_layer_local_spec,
        vocab_size=ROWS,
        max_sequence_length=POSITIONS,
        parallel_output=False,
        share_embeddings_and_output_weights=True,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.15 * noise + (0.5 if parameter.ndim == 1 else 0.0))
    return model


def make_inputs():
    rng = np.random.default_rng(0)
    padding_mask = np.ones((2, 19), "int64")
    padding_mask[1, 11:] = 0
    return {
        "token_ids": rng.integers(0, 100, (2, 19)),
        "segment_ids": rng.integers(0, 2, (2, 19)),
        "padding_mask": padding_mask,
    }


def save_logits(path, model):
    inputs = make_inputs()
    ids, segments, mask = (torch.tensor(value) for value in inputs.values())
    with torch.no_grad():
        mlm, binary = model(ids, mask, segments if model.add_binary_head else None)
    if binary is not None:
        inputs["binary"] = binary.numpy()
    np.savez(path, mlm=mlm.numpy(), **inputs)


def arguments(**others):
    """As Megatron-LM has them, objects of its own classes among them."""
    return argparse.Namespace(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        norm_epsilon=1e-5,
        model_type=ModelType.encoder_or_decoder,
        attention_backend=AttnBackend.local,
        params_dtype=torch.float32,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        **others,
    )


def save_distributed(folder, sharded, **common):
    folder.mkdir(parents=True)
    state = {"model": sharded, "checkpoint_version": 3.0, "iteration": 5, **common}
    dist_checkpointing.save(state, str(folder))


def over_two_ranks(sharded):
    """The pieces that two tensor ranks and as many pipeline stages as layers would save."""
    pieces = {}
    for key, tensor in sharded.items():
        axis = next((axis for ends, axis in SPLIT.items() if key.endswith(ends)), None)
        if axis is None or not isinstance(tensor, ShardedTensor):
            pieces[key] = tensor
            continue
        stacked = tensor.prepend_axis_num
        layer = [(0, tensor.global_offset[0], LAYERS)] if stacked else []
        for rank, part in enumerate(tensor.data.chunk(2, axis)):
            pieces[f"{key}{rank}"] = ShardedTensor.from_rank_offsets(
                tensor.key,
                part.contiguous(),
                *layer,
                (axis + stacked, rank, 2),
                prepend_axis_num=stacked,
            )
    return pieces


def save_tensor_rank(rank, folder):
    """Have Megatron-core split what one process saved, and save this rank's part of it."""
    use_the_cpu(folder / "second_store", rank, 2)
    sharded = {"model": make_model().sharded_state_dict()}
    state = dist_checkpointing.load(sharded, str(folder / "run" / "iter_0000005"))
    saved = arguments()
    saved.tensor_model_parallel_size = 2
    path = folder / "ranks" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    content = {"model": state["model"], "args": saved, "checkpoint_version": 3.0, "iteration": 5}
    torch.save(content, path)


def main():
    folder = pathlib.Path(sys.argv[1])
    use_the_cpu(folder / "store")
    model = make_model()
    save_logits(folder / "logits.npz", model)
    state = model.state_dict()
    torch.save(state, folder / "bare.pt")
    torch.save({"model": state, "args": arguments(), "checkpoint_version": 3.0}, folder / "core.pt")
    stacked = model.sharded_state_dict()
    save_distributed(folder / "run" / "iter_0000005", stacked, args=arguments())
    (folder / "run" / "latest_checkpointed_iteration.txt").write_text("5")
    single = {"singleton_local_shards": True}
    save_distributed(folder / "numbered", model.sharded_state_dict(metadata=single))
    pieces = over_two_ranks(model.sharded_state_dict())
    split = arguments()
    split.tensor_model_parallel_size = 2
    save_distributed(folder / "pieces", pieces, args=split)
    wide = make_model(kv_channels=12, bias_activation_fusion=True)
    save_logits(folder / "wide_logits.npz", wide)
    others = arguments(kv_channels=12, bias_gelu_fusion=True)
    save_distributed(folder / "wide", wide.sharded_state_dict(), args=others)
    torch.multiprocessing.spawn(save_tensor_rank, (folder,), nprocs=2)


if __name__ == "__main__":
    main()
