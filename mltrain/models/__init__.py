"""Built-in PyTorch models for tabular data. A model is one factory: ``build(schema, **args) -> torch.nn.Module``."""

from mltrain.models.tabular_mlp import TabularMLP, tabular_mlp

__all__ = ["TabularMLP", "tabular_mlp"]
