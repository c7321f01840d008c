"""Shallow models in one round trip: linear and square layers under leveled CKKS, approximate.

``docs/spec/leveled.md`` states the meaning, the parameters and the error bound.
"""

from secure_quant.he.leveled.model import LeveledLayer, LeveledModel, PublicLeveled
from secure_quant.he.leveled.plan import LeveledPlan, plan

__all__ = ["LeveledLayer", "LeveledModel", "LeveledPlan", "PublicLeveled", "plan"]
