"""Classes of words: those that stand in the same places are alike (Brown et al. 1992, Computational
Linguistics 18(4)).
"""

import warnings

import torch
from torch import Tensor

FREQUENT = 256  # neighbours by which words are compared


def classes_of(neighbours: Tensor, vocabulary: int, classes: int) -> Tensor:
    """Class of every token, `(V,)`: k-means of which frequent tokens stand before it and after it.

    It starts at frequent tokens that stand in other places than those before them, without chance; a
    class can be left empty.

    Args:
        neighbours: `(N, 2)` ids that stand next to each other in the texts.
    """
    from scipy.cluster.vq import kmeans2

    with torch.device("cpu"):  # Lightning builds models on the device that they will train on
        first, second = neighbours.cpu().T
        often = torch.bincount(neighbours.cpu().flatten(), minlength=vocabulary)
        frequent = often.argsort(descending=True, stable=True)[: min(FREQUENT, vocabulary)]
        place = torch.full((vocabulary,), len(frequent))
        place = place.scatter(0, frequent, torch.arange(len(frequent)))
        before, after = torch.zeros(2, vocabulary, len(frequent) + 1)
        ones = torch.ones(len(first))
        before.index_put_((second, place[first]), ones, accumulate=True)
        after.index_put_((first, place[second]), ones, accumulate=True)
        counts = torch.cat([before, after], 1)
        # square roots of frequencies: their Euclidean distance is that of distributions (Hellinger)
        points = (counts / counts.sum(1, keepdim=True).clamp(min=1)).sqrt()
        seeds = [int(frequent[0])]
        far = (points - points[seeds[0]]).square().sum(1)
        for _ in range(classes - 1):
            seeds.append(int((far * often).argmax()))
            far = torch.minimum(far, (points - points[seeds[-1]]).square().sum(1))
        points = points.double().numpy()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "One of the clusters is empty")
            _, labels = kmeans2(points, points[seeds], minit="matrix")
        return torch.from_numpy(labels).long()
