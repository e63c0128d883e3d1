"""Balanced sampling: how often each clip is drawn, so that rare classes are seen as often as common ones."""

import numpy as np
import pyarrow as pa


def balanced_shares(labels: pa.ChunkedArray) -> np.ndarray:
    """Chance of each clip at each draw, float64 (N,), with sum 1: the sum over its labels of 1 / clips with that label.

    As AST (Gong et al., arXiv 2104.01778) and its kin train on AudioSet. A clip without a label is drawn like the least likely.

    Args:
        labels: indices of each clip's labels, the index's column.
    """
    lists = labels.combine_chunks()
    values, parents = lists.flatten().to_numpy(), lists.value_parent_indices().to_numpy()
    counts = np.bincount(values, minlength=1)
    shares = np.bincount(parents, 1 / counts[values], minlength=len(lists))
    labelled = shares[shares > 0]
    shares[shares == 0] = labelled.min() if len(labelled) else 1.0
    return shares / shares.sum()
