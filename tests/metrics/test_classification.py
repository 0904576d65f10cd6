from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from edgeattn.errors import InputError
from edgeattn.metrics import Label
from edgeattn.metrics.classification import Classification


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), samples=st.integers(1, 40), classes=st.integers(3, 9), cut=st.integers(0, 40))
def test_top_k_is_scikit_learns_however_the_batches_are_cut(seed: int, samples: int, classes: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.arange(samples * classes)).reshape(samples, classes).astype(np.float32)
    labels = [int(label) for label in rng.integers(0, classes, samples)]
    metric = Classification()
    for rows in (slice(cut), slice(cut, None)):
        metric.add(scores[rows], labels[rows])
    ours = metric.result()
    for k in (1, 5):
        if k < classes:
            theirs = top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
            assert ours.pop(f"top{k}") == pytest.approx(theirs, rel=1e-15)
    assert not ours


def test_of_equal_scores_the_first_class_is_the_answer() -> None:
    metric = Classification()
    metric.add(np.zeros((2, 3), np.float16), [0, 1])
    assert metric.result() == {"top1": 0.5}
    assert metric.answers(np.zeros((2, 3))) == [0, 0]


@pytest.mark.parametrize(("label", "said"), [(2, "label 2, but"), (-1, "label -1"), (np.zeros(3, int), "no class")])
def test_what_is_no_class_of_the_model_is_refused(label: Label, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Classification().add(np.zeros((1, 2)), [label])
