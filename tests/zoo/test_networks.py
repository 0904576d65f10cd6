"""What makes each network what its paper says, where the parts alone do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeattn import zoo
from edgeattn.nn import CBAM
from edgeattn.zoo.blocks import ResidualBlock, picked
from edgeattn.zoo.boxes import pairwise_iou
from edgeattn.zoo.data.scenes import scene
from edgeattn.zoo.dynamic_capacity import DynamicCapacityNetwork, entropy_gradient
from edgeattn.zoo.recurrent_attention import RecurrentAttention, _window
from edgeattn.zoo.residual_attention import AttentionStage
from edgeattn.zoo.se_faster_rcnn import SEFasterRCNN, _shifted
from edgeattn.zoo.unet import UNet


def test_a_gate_acts_before_the_shortcut_is_added() -> None:
    block = ResidualBlock(4, 4, attention=CBAM).eval()
    gate = next(module for module in block.modules() if isinstance(module, CBAM))
    nn.init.constant_(gate.spatial.conv.bn.bias, -1e4)  # every gate is 0: only the shortcut is left
    x = torch.rand(2, 4, 5, 7)
    assert torch.equal(block(x), x)


def test_an_open_mask_doubles_the_trunk_and_a_closed_one_leaves_it() -> None:
    stage = AttentionStage(4).eval()
    x = torch.rand(2, 4, 9, 7)
    last = stage.mask[1]
    nn.init.zeros_(last.weight)
    for bias, factor in ((1e4, 2), (-1e4, 1)):
        nn.init.constant_(last.bias, bias)
        assert torch.equal(stage(x), factor * stage.trunk(x))


def test_saliency_is_the_gradient_of_the_entropy() -> None:
    weight = torch.randn(5, 7, dtype=torch.float64)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    p = (x @ weight.T).softmax(1)
    (truth,) = torch.autograd.grad(-(p * p.log()).sum(), x)
    assert torch.allclose(entropy_gradient(x.detach() @ weight.T, weight), truth, atol=1e-12)


def test_only_the_chosen_patches_reach_the_fine_network() -> None:
    model = DynamicCapacityNetwork(k=2).eval()
    seen = []
    model.fine.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    model(torch.rand(3, 1, 48, 48))
    assert seen == [(6, 1, 24, 24)]


def test_picked_takes_items_in_the_order_of_the_index() -> None:
    items = torch.arange(12.0).reshape(2, 3, 2)
    assert picked(items, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_a_glimpse_stays_inside_the_image() -> None:
    matrix = _window(torch.tensor([[5.0, -5.0], [0.1, 0.0]]), 1 / 3)
    assert torch.allclose(matrix[:, :, 2], torch.tensor([[2 / 3, -2 / 3], [0.1, 0.0]]))
    assert torch.equal(matrix[0, :, :2], torch.eye(2) / 3)


def test_training_tries_places_and_inference_does_not() -> None:
    model = RecurrentAttention().eval()
    x = torch.rand(2, 1, 48, 48)
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model._look(x, 0.3)[0], model._look(x, 0.3)[0])


def test_a_closed_gate_hides_the_skip() -> None:
    model = UNet(attention="gate").eval()
    for gate in model.gates:
        nn.init.constant_(gate.psi.bias, -1e4)
    seen = []
    model.up[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(torch.rand(1, 3, 16, 16))
    assert torch.equal(seen[0][:, :8], torch.zeros(1, 8, 16, 16))


def test_features_of_a_box_are_those_at_its_place() -> None:
    model = SEFasterRCNN(width=1, bins=2)
    looked = []
    model.look.register_forward_pre_hook(lambda module, inputs: looked.append(inputs[0]))
    x = torch.zeros(1, 3, 64, 64)
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)  # each cell holds its column: 4 pixels each
    model._look_at(ramp, torch.tensor([[[8.0, 8.0, 24.0, 24.0]]]), x)
    # Bin centres at x = 12 and 20 pixels are columns 2.5 and 4.5.
    assert looked[0].flatten().tolist() == pytest.approx([2.5, 4.5, 2.5, 4.5])


def test_shifts_move_and_grow_a_box() -> None:
    box = torch.tensor([[[0.0, 0.0, 10.0, 20.0]]])
    shift = torch.tensor([[[0.5, 0.0, 0.0, 0.0]]])
    assert _shifted(box, torch.zeros(1, 1, 4)).tolist() == box.tolist()
    assert _shifted(box, shift).tolist() == [[[5, 0, 15, 20]]]


def test_suppression_outside_the_graph_gives_what_the_graph_gives() -> None:
    x = torch.from_numpy(np.stack([scene("test", number)[0] for number in range(12)])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        inside, (boxes, scores) = zoo.factory("cbam_yolo")()(x), zoo.factory("cbam_yolo_raw")()(x)
    best, classes = scores.max(2)
    for number, rows in enumerate(inside):
        kept: list[int] = []
        for i in best[number].argsort(descending=True)[:32].tolist():
            rivals = [j for j in kept if classes[number, j] == classes[number, i]]
            if not rivals or pairwise_iou(boxes[number, [i]], boxes[number, rivals]).max() <= 0.5:
                kept.append(i)
        found = rows[rows[:, 4] > 0]
        assert torch.equal(found[:, :4], boxes[number, kept])
        assert torch.equal(found[:, 4], best[number, kept])
        assert found[:, 5].tolist() == classes[number, kept].tolist()
