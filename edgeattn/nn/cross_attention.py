"""Multi-head attention from one sequence or map of tokens to another.

Source: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, section 3.2. Constructor words are those
of timm's attention; `kdim` and `vdim` those of `torch.nn.MultiheadAttention`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.errors import UsageError


class CrossAttention(nn.Module):
    """Queries of one sequence, keys and values of another: `y = proj(softmax(q k^T / sqrt(d)) v)`.

    Args:
        dim: features of the queries and of the output.
        num_heads: heads H; the size of each is d = dim / H.
        kdim: features of the sequence that the keys are made of; `dim` where not given.
        vdim: features of the one that the values are made of; `kdim` where not given.
        qkv_bias: whether the three layers have a bias.

    Raises:
        UsageError: `num_heads` does not divide `dim`.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, kdim: int | None = None, vdim: int | None = None, *, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise UsageError(f"{num_heads} heads do not divide {dim} features: choose a num_heads that divides dim")
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k = nn.Linear(kdim or dim, dim, bias=qkv_bias)
        self.v = nn.Linear(vdim or kdim or dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, key: Tensor, value: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """Map `x` (B, N, dim), with `key` (B, M, kdim) and `value` (B, M, vdim), to (B, N, dim).

        `value` is `key` where not given. `attn_mask`, broadcastable to (B, H, N, M), is added to the scores, or, of
        truth values, says which keys a query may see.
        """
        given = key if value is None else value
        q, k, v = (
            tokens.reshape(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)  # (B, H, N or M, d)
            for tokens in (self.q(x), self.k(key), self.v(given))
        )
        out: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        y: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return y
