"""Control without retraining: words, classifiers, any score of texts."""

from textdiff.control.classifier import Classifier, SequenceClassifier
from textdiff.control.control import Control, Placed, View
from textdiff.control.score import TextScore
from textdiff.control.steering import Shifted, Steered, least_length, refuse_short, steer
from textdiff.control.words import AtLeast, Avoid, Contain, WordAt

__all__ = [
    "AtLeast",
    "Avoid",
    "Classifier",
    "Contain",
    "Control",
    "Placed",
    "SequenceClassifier",
    "Shifted",
    "Steered",
    "TextScore",
    "View",
    "WordAt",
    "least_length",
    "refuse_short",
    "steer",
]
