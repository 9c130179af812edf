"""Foreign checkpoints into the canonical folder and back, each format a table over shared machinery.

import conversion
report = conversion.convert("ViT-B_16.npz", "vit-base", labels="imagenet-1k")
"""

from .engine import FORMATS, TARGETS, Report, convert, open_source

__all__ = ["FORMATS", "TARGETS", "Report", "convert", "open_source"]
