"""A plain PyTorch loop that pretrains the weights of a Keras Megatron BERT, fast on a CPU.

The forward pass is written out, so that PyTorch can compile it as a whole: matrix products in
bfloat16, everything else in float32. It is the backbone's, which the script that uses this checks
with the backbone itself.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

HALF = torch.bfloat16
CHUNK = 410  # masks whose logits are there at once: 50 MB with 30,522 pieces
_LAYER = (
    *(f"self_attention_layer_norm/{name}" for name in ("gamma", "beta")),
    *(
        f"self_attention/{part}/{name}"
        for part in ("query", "key", "value", "attention_output")
        for name in ("kernel", "bias")
    ),
    *(f"feedforward_layer_norm/{name}" for name in ("gamma", "beta")),
    *(
        f"feedforward_{part}_dense/{name}"
        for part in ("intermediate", "output")
        for name in ("kernel", "bias")
    ),
)


class Trainer:
    """Weights, optimizer and one step.

    Args:
        weights: float32 tensors by the path of the Keras variable.
        heads: attention heads.
        layers: transformer layers.
        compiled: whether to compile, which needs a C++ compiler.
    """

    def __init__(self, weights: dict[str, torch.Tensor], heads: int, layers: int, compiled=True):
        hidden = weights["final_layer_norm/gamma"].shape[0]
        generator = torch.Generator().manual_seed(1)
        head = torch.randn(hidden, 2, generator=generator) * 0.02
        weights = {**weights, "binary_head/kernel": head, "binary_head/bias": torch.zeros(2)}
        self.weights = {
            name: as_matrix(name, tensor).clone().requires_grad_()
            for name, tensor in weights.items()
        }
        self.heads, self.layers = heads, layers
        self.optimizers = make_optimizers(self.weights)
        self._encode = torch.compile(self._encoded, dynamic=False) if compiled else self._encoded
        self._chunk = torch.compile(chunk_of_loss, dynamic=True) if compiled else chunk_of_loss

    def step(self, batch, rate: float) -> dict[str, float]:
        """Train on a `sentence_pairs.Batch`; return both losses and the share of masks filled."""
        batch = type(batch)(*map(torch.from_numpy, batch))
        hidden, pooled = self._encode(batch.token_ids, batch.segment_ids, batch.positions)
        loss, right = VocabularyLoss.apply(
            hidden,
            self.weights["embeddings/token_embedding/embeddings"],
            self.weights["mlm_head/bias"],
            batch.labels,
            batch.weights / batch.weights.sum(),
            self._chunk,
        )
        order = pooled @ self.weights["binary_head/kernel"] + self.weights["binary_head/bias"]
        ordered = (batch.order >= 0).sum()
        order_loss = F.cross_entropy(order, batch.order, reduction="sum") / ordered.clamp(min=1)
        (loss + order_loss).backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": float(loss), "accuracy": float(right), "order_loss": float(order_loss)}

    def save(self, path: Path, progress: dict) -> None:
        """Write everything that going on needs."""
        weights = {name: tensor.detach() for name, tensor in self.weights.items()}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"weights": weights, "optimizers": optimizers, **progress}
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> dict:
        """Read what `save` wrote; return its progress."""
        state = torch.load(path, weights_only=True)
        with torch.no_grad():
            for name, tensor in state.pop("weights").items():
                self.weights[name].copy_(tensor)
        for optimizer, saved in zip(self.optimizers, state.pop("optimizers"), strict=True):
            optimizer.load_state_dict(saved)
        return state

    def _encoded(self, token_ids, segment_ids, positions):
        """Return the masked-LM head's states (masks, hidden) and the pooled ones."""
        w = self.weights
        x = F.embedding(token_ids, w["embeddings/token_embedding/embeddings"])
        x = x + F.embedding(segment_ids, w["embeddings/segment_embedding/embeddings"])
        x = x + w["embeddings/position_embedding/embeddings"][: token_ids.shape[1]]
        mask = torch.where(token_ids == 0, -1e9, 0.0)[:, None, None, :]
        for index in range(self.layers):
            weights = [w[f"transformer_layer_{index}/{name}"] for name in _LAYER]
            x = transformer_layer(x, mask, self.heads, *weights)
        x = normalized(x, w["final_layer_norm/gamma"], w["final_layer_norm/beta"])
        pooled = torch.tanh(dense(x[:, 0], w["pooled_dense/kernel"], w["pooled_dense/bias"]))
        x = x.flatten(0, 1)[positions]
        x = F.gelu(dense(x, w["mlm_head/dense/kernel"], w["mlm_head/dense/bias"]))
        x = normalized(x, w["mlm_head/layer_norm/gamma"], w["mlm_head/layer_norm/beta"])
        return x, pooled.float()


def as_matrix(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Lay out an attention kernel, (hidden, heads, size) or back, as the matrix that it is."""
    if tensor.ndim < 3:
        return tensor
    return tensor.flatten(0, 1) if "attention_output" in name else tensor.flatten(1)


def make_optimizers(weights: dict[str, torch.Tensor]) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices, with steps as large as AdamW's, and AdamW for the rest.

    Muon (https://kellerjordan.github.io/posts/muon) learns as much of about half the text.
    """
    matrices = {n for n in weights if n.startswith("transformer_layer_") and n.endswith("kernel")}
    plain = ("bias", "gamma", "beta")
    rest = [(name.endswith(plain), w) for name, w in weights.items() if name not in matrices]
    groups = [
        {"params": [w for is_plain, w in rest if is_plain is exempt], "weight_decay": decay}
        for exempt, decay in ((False, 0.01), (True, 0.0))
    ]
    return [
        torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True),
        torch.optim.Muon(
            [weights[name] for name in sorted(matrices)],
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        ),
    ]


def transformer_layer(
    x, mask, heads, g1, b1, qk, qb, kk, kb, vk, vb, ok, ob, g2, b2, uk, ub, dk, db
):
    """Megatron's layer (arXiv 1909.08053, figure 7, right), without dropout."""
    batch, sequence, hidden = x.shape
    normed = normalized(x, g1, b1)
    biases = torch.cat([bias.flatten() for bias in (qb, kb, vb)])
    qkv = dense(normed, torch.cat([qk, kk, vk], 1), biases)
    query, key, value = qkv.view(batch, sequence, 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(hidden // heads) + mask
    context = (torch.softmax(scores, -1).to(HALF) @ value).transpose(1, 2).flatten(2)
    x = x + dense(context, ok, ob).float()
    fed = F.gelu(dense(normalized(x, g2, b2), uk, ub))
    return x + dense(fed, dk, db).float()


def dense(x, kernel, bias):
    """Multiply in bfloat16."""
    return x.to(HALF) @ kernel.to(HALF) + bias.to(HALF)


def normalized(x, gamma, beta):
    """Normalize in float32, over the last axis."""
    return F.layer_norm(x.float(), x.shape[-1:], gamma, beta, 1e-5)


class VocabularyLoss(torch.autograd.Function):
    """Weighted sum of cross entropies over the vocabulary, a chunk of logits at a time.

    The gradient is made in the forward pass, as the logits are not kept.
    """

    @staticmethod
    def forward(ctx, hidden, table, bias, labels, weights, chunk):
        """Return the loss, and the weights of the tokens that were guessed, summed."""
        hidden, rows = hidden.to(HALF), table.to(HALF)
        gradients = torch.empty_like(hidden), torch.zeros_like(table), torch.zeros_like(bias)
        loss, right = torch.zeros(()), torch.zeros(())
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            logits = hidden[part] @ rows.t()
            *of_part, part_loss, part_right = chunk(logits, bias, labels[part], weights[part])
            gradients[0][part] = of_part[0] @ rows
            gradients[1].add_(of_part[0].t() @ hidden[part])
            gradients[2].add_(of_part[1])
            loss += part_loss
            right += part_right
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx, gradient, _):
        """Scale what the forward pass has made."""
        hidden, table, bias = (saved * gradient for saved in ctx.saved_tensors)
        return hidden.float(), table, bias, None, None, None


def chunk_of_loss(logits, bias, labels, weights):
    """Return the gradients of logits and bias, and of these masks the loss and what was guessed."""
    logits = logits.float() + bias
    highest = logits.amax(-1, keepdim=True)
    powers = torch.exp(logits - highest)
    total = powers.sum(-1, keepdim=True)
    right = logits.gather(1, labels[:, None])
    loss = ((highest + total.log() - right)[:, 0] * weights).sum()
    gradient = powers * (weights[:, None] / total)
    is_label = torch.arange(logits.shape[1])[None] == labels[:, None]
    gradient = torch.where(is_label, gradient - weights[:, None], gradient)
    guessed = ((right >= highest)[:, 0] * weights).sum()
    return gradient.to(HALF), gradient.sum(0), loss, guessed
