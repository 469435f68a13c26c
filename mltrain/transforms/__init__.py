"""Fitted feature transforms, Arrow in and Arrow out, with no engine: build, loader and serving apply the same ones."""

from mltrain.transforms.columns import (
    Categorical,
    ClassLabel,
    Field,
    Hashed,
    IdList,
    Indicator,
    MultiLabel,
    Numeric,
    RegressionLabel,
    Vector,
    Weight,
)
from mltrain.transforms.fitted import FittedTransforms
from mltrain.transforms.vocabulary import Vocabulary

__all__ = [
    "Categorical",
    "ClassLabel",
    "Field",
    "FittedTransforms",
    "Hashed",
    "IdList",
    "Indicator",
    "MultiLabel",
    "Numeric",
    "RegressionLabel",
    "Vector",
    "Vocabulary",
    "Weight",
]
