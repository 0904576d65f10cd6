from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.nn import ECA
from tests.nn.oracles import close, prepared, run, sigmoid


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(*[st.sampled_from([1, 2, 3, 5, 7])] * 4), kernel=st.sampled_from([1, 3, 5]))
def test_eca_is_its_formula(shape: tuple[int, ...], kernel: int) -> None:
    module, weights = prepared(ECA(kernel_size=kernel))
    x = np.random.default_rng(0).normal(size=shape)
    padded = np.pad(x.mean((2, 3)), ((0, 0), (kernel // 2, kernel // 2)))
    z = sum(weights["conv.weight"][0, 0, tap] * padded[:, tap : tap + shape[1]] for tap in range(kernel))
    assert close(run(module, x), x * sigmoid(np.asarray(z))[:, :, None, None])


@pytest.mark.parametrize(("channels", "kernel"), [(1, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)])
def test_the_kernel_grows_with_the_channels_as_in_the_paper(channels: int, kernel: int) -> None:
    assert ECA(channels).conv.kernel_size == (kernel,)


def test_parameters_are_named_as_in_timm_so_that_its_checkpoints_load() -> None:
    assert list(ECA(16).state_dict()) == ["conv.weight"]
