from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.maps.hooks import Seen, matching, seen_in
from edgeattn.model import Model
from edgeattn.nn import SqueezeExcite


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.mha(x, x, x, need_weights=False)[0]
        return made


def test_weights_of_multi_head_attention_are_those_that_it_returns_itself() -> None:
    module = TwoHeads().eval()
    x = torch.rand(1, 5, 8)
    (seen,) = seen_in(Model(module), {"x": x.numpy()})
    with torch.no_grad():
        truth = module.mha(x, x, x, average_attn_weights=False)[1]
    assert seen.module == "mha"
    assert np.allclose(seen.array.reshape(2, 5, 5), truth[0].numpy(), atol=1e-6)
    assert torch.backends.mha.get_fastpath_enabled()


def test_weights_of_scaled_dot_product_attention_are_seen_inside_it() -> None:
    class Attends(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k)

    q, k = torch.rand(1, 2, 3, 4), torch.rand(1, 2, 5, 4)
    (seen,) = seen_in(Model(Attends()), {"q": q.numpy(), "k": k.numpy()})
    assert np.allclose(seen.array, (q @ k.transpose(2, 3) / 2).softmax(-1).numpy(), atol=1e-6)


def test_a_gate_is_seen_in_its_module_and_results_stay() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), SqueezeExcite(8), nn.Sigmoid()).eval()
    x = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        before = module(x)
        gate, last = seen_in(Model(module), {"input": x.numpy()})
        mapped = module[0](x)
        inner = module[1]
        truth = inner.gate(inner.fc2(inner.act(inner.fc1(mapped.mean((2, 3), keepdim=True)))))
        assert torch.equal(module(x), before)
    assert (gate.module, last.module) == ("1.gate", "2")
    assert np.allclose(gate.array, truth.numpy(), atol=1e-6)


def test_of_several_gates_in_one_module_the_nearest_is_the_map() -> None:
    seen = [Seen("", "sigmoid", np.array([[value, value]])) for value in (0.9, np.nan, 0.2, 0.5)]
    taken = [matching(seen, "ChannelGate", "", np.full((1, 2), value)) for value in (0.21, 0.52, np.inf)]
    assert [float(found[0, 0]) for found in taken if found is not None] == [0.2, 0.5, 0.9]


def test_a_residual_gate_is_one_more_than_what_pytorch_makes() -> None:
    seen = [Seen("", "sigmoid", np.array([[0.25]]))]
    found = matching(seen, "ChannelGate", "", np.array([[1.25]]))
    assert found is not None
    assert found.item() == 1.25
    assert not seen


def test_maps_are_taken_in_order_in_their_module_and_layout() -> None:
    def softmax(module: str, value: float, *shape: int, axis: int = -1) -> Seen:
        return Seen(module, "_softmax", np.full(shape, value), axis % len(shape))

    seen = [softmax("a", 1, 2, 3, 4), softmax("b.inner", 2, 2, 4, 3, axis=1), softmax("b.inner", 3, 1, 2, 3, 4)]
    like = np.zeros((1, 2, 3, 4))
    first, second = (matching(seen, "SoftmaxAttention", "b", like) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.shape, first.max(), second.max()) == (like.shape, 2, 3)
    assert matching(seen, "SoftmaxAttention", "b", like) is None
    assert matching(seen, "ChannelGate", "c", like) is None
    assert len(seen) == 1
