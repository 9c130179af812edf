"""Training, framework-free: the recipe, the data, the schedule, the canonical training state and the run folder."""

from .recipe import OBJECTIVES, PRESETS, Recipe

__all__ = ["OBJECTIVES", "PRESETS", "Recipe"]
