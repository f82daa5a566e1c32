"""Classes of words: those that stand in the same places are alike (Brown et al. 1992, Computational
Linguistics 18(4)).
"""

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

FREQUENT = 256  # neighbours by which words are compared


def classes_of(neighbours: Tensor, vocabulary: int, classes: int) -> Tensor:
    """Class of every token, `(V,)`: k-means of which frequent tokens stand before it and after it.

    Args:
        neighbours: `(N, 2)` ids that stand next to each other in the texts.
    """
    counts = torch.bincount(neighbours.flatten(), minlength=vocabulary)
    frequent = counts.argsort(descending=True, stable=True)[: min(FREQUENT, vocabulary)]
    column_of = torch.full((vocabulary,), len(frequent)).scatter(0, frequent, torch.arange(len(frequent)))
    found = torch.zeros(2, vocabulary, len(frequent) + 1)
    first, second = neighbours.T
    ones = torch.ones(len(neighbours))
    found[0].index_put_((second, column_of[first]), ones, accumulate=True)
    found[1].index_put_((first, column_of[second]), ones, accumulate=True)
    found = torch.cat([found[0], found[1]], 1)
    # square roots of frequencies: their Euclidean distance is that of distributions (Hellinger)
    points = (found / found.sum(1, keepdim=True).clamp(min=1)).sqrt()
    _, labels = kmeans2(points.double().numpy(), classes, minit="++", rng=0, missing="warn")
    return torch.from_numpy(labels).long()
