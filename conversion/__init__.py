"""Foreign checkpoints into the canonical folder and back, each format a table over shared machinery.

import conversion
report = conversion.convert("ViT-B_16.npz", "vit-base", labels="imagenet-1k")
conversion.inspect("vit-base").variant    # "B/16 at 224"
conversion.verify("vit-base").passed      # the same numbers in every installed framework
"""

from .engine import FORMATS, Report, convert, open_source
from .equality import Verification, verify
from .inspection import Inspection, inspect
from .target import TARGETS

__all__ = ["FORMATS", "TARGETS", "Inspection", "Report", "Verification", "convert", "inspect", "open_source", "verify"]
