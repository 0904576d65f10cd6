# mypy: warn-return-any=False
"""Hard attention as people write it, and what only looks like it; imported by the conformance tests alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgeattn.ops.base import Case

N, C, K = 5, 6, 3
ITEMS = ((2, N, C),)
PATCHES = ((2, N, C, 3, 2),)
Pick = Callable[[Tensor, Tensor], Tensor]


class Scored(nn.Module):
    """Items scored by a linear layer, and a function of items and scores (B, N) that picks."""

    def __init__(self, pick: Pick) -> None:
        super().__init__()
        self.pick, self.fc = pick, nn.Linear(C, 1)

    def forward(self, x: Tensor) -> Tensor:
        items = x.mean((3, 4)) if x.ndim == 5 else x
        return self.pick(x, self.fc(items).squeeze(-1))


def best(scores: Tensor, largest: bool = True, sorted: bool = True) -> Tensor:
    """The places of the K best."""
    return scores.topk(K, dim=1, largest=largest, sorted=sorted)[1]


def spread(places: Tensor, x: Tensor) -> Tensor:
    """Places (B, K) for every number of an item."""
    return places.view(*places.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])


def gather(x: Tensor, scores: Tensor) -> Tensor:
    """As most token pruning is written."""
    return x.gather(1, spread(best(scores), x))


def repeated(x: Tensor, scores: Tensor) -> Tensor:
    """With `repeat` for `expand`."""
    return x.gather(1, best(scores).unsqueeze(-1).repeat(1, 1, x.shape[-1]))


def indexed(x: Tensor, scores: Tensor) -> Tensor:
    """Advanced indexing."""
    return x[torch.arange(x.shape[0])[:, None], best(scores)]


def merged(x: Tensor, scores: Tensor) -> Tensor:
    """Samples and items merged, as `index_select` wants them."""
    b, n, c = x.shape
    places = best(scores) + torch.arange(b)[:, None] * n
    return x.reshape(b * n, c).index_select(0, places.view(-1)).view(b, K, c)


def merged_rows(x: Tensor, scores: Tensor) -> Tensor:
    """Samples and items merged, indexed by a matrix."""
    b, n, c = x.shape
    return x.reshape(b * n, c)[best(scores) + torch.arange(b)[:, None] * n]


def argmax(x: Tensor, scores: Tensor) -> Tensor:
    """The best item, its axis gone."""
    return x[torch.arange(x.shape[0]), scores.argmax(dim=1)]


def argmax_kept(x: Tensor, scores: Tensor) -> Tensor:
    """The best item, its axis kept."""
    return x.gather(1, spread(scores.argmax(dim=1, keepdim=True), x))


def maximum(x: Tensor, scores: Tensor) -> Tensor:
    """The place that `max` returns."""
    return x.gather(1, scores.max(dim=1)[1][:, None, None].expand(-1, -1, x.shape[2]))[:, 0]


def channels_first(x: Tensor, scores: Tensor) -> Tensor:
    """Items (B, C, N)."""
    return x.transpose(1, 2).relu().gather(2, best(scores)[:, None].expand(-1, x.shape[2], -1))


def with_values(x: Tensor, scores: Tensor) -> Tensor:
    """The chosen items weighed by their scores: the choice is used twice."""
    values, places = scores.topk(K, dim=1)
    return x.gather(1, spread(places, x)) * values.sigmoid()[..., None]


def columns(x: Tensor, scores: Tensor) -> Tensor:
    """Scores (B, N, 1), chosen along axis 1."""
    places = (scores[..., None] * 2).topk(K, dim=1)[1]
    return x.gather(1, places.expand(-1, -1, x.shape[2]))


def partial(x: Tensor, scores: Tensor) -> Tensor:
    """Some numbers of each item only."""
    return x.gather(1, best(scores).unsqueeze(-1).expand(-1, -1, C - 1))


def lowest(x: Tensor, scores: Tensor) -> Tensor:
    """The lowest scores."""
    return x.gather(1, spread(best(scores, largest=False), x))


def next_one(x: Tensor, scores: Tensor) -> Tensor:
    """The item after each chosen one."""
    return x.gather(1, spread((best(scores) + 1) % N, x))


def first_sample(x: Tensor, scores: Tensor) -> Tensor:
    """What the first sample chooses, for all."""
    return x[:, best(scores)[0]]


def fewer(x: Tensor, scores: Tensor) -> Tensor:
    """Scores for all items but the last."""
    return x.gather(1, spread(best(scores[:, :-1]), x))


def neighbours(x: Tensor, scores: Tensor) -> Tensor:
    """Each item's nearest ones: many choices for a sample."""
    places = (x @ x.transpose(1, 2)).topk(K, dim=2)[1].flatten(1)
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, C)) * scores[:, :1, None]


def token_of_largest_id(x: Tensor, scores: Tensor) -> Tensor:
    """CLIP's pooling: the token whose id is the largest."""
    return x[torch.arange(x.shape[0]), (scores * 100).int().argmax(dim=-1)]


def detector(x: Tensor, scores: Tensor) -> Tensor:
    """Boxes and features of the best proposals."""
    places = best(scores)
    boxes = x[..., :4].sigmoid().gather(1, places.unsqueeze(-1).expand(-1, -1, 4))
    return torch.cat([x.gather(1, spread(places, x)), boxes], -1)


def boxes_only(x: Tensor, scores: Tensor) -> Tensor:
    """Boxes of the best proposals."""
    return x[..., :4].sigmoid().gather(1, best(scores).unsqueeze(-1).expand(-1, -1, 4))


def own_maximum(x: Tensor, scores: Tensor) -> Tensor:
    """Class scores chosen by their best class."""
    return x.gather(1, spread(best(x.amax(-1)), x)) * scores[:, :1, None]


FOUND = ("HardAttention",)


def _case(pick: Pick, shapes: tuple[tuple[int, ...], ...] = ITEMS, **words: str) -> Case:
    name = pick.__name__.replace("_", "-")
    return Case(name, lambda: Scored(pick), shapes, () if words else FOUND, words.get("missed", ""))


def _left(pick: Pick) -> Case:
    return Case(pick.__name__.replace("_", "-"), lambda: Scored(pick), ITEMS)


CASES = (
    _case(gather),
    Case("patches", lambda: Scored(gather), PATCHES, FOUND),
    Case("one-sample", lambda: Scored(gather), ((1, N, C),), FOUND),
    Case("one-sample-indexed", lambda: Scored(indexed), ((1, N, C),), FOUND),
    _case(repeated),
    _case(indexed),
    _case(merged),
    _case(merged_rows),
    _case(argmax),
    _case(argmax_kept),
    _case(maximum),
    _case(channels_first),
    _case(with_values),
    _case(columns),
    _case(partial, missed="expected whole items"),
    _case(lowest, missed="takes the lowest scores"),
    _case(next_one, missed="not known to be the choice itself"),
    _case(fewer, missed="expected one score for each item"),
    _case(neighbours, missed="is not known to be the choice itself"),
    _case(token_of_largest_id, missed="expected floating-point"),
    _case(detector, missed="a detector's pre-selection"),
    _case(own_maximum, missed="by their own maximum"),
    _left(boxes_only),
    _left(first_sample),
)
