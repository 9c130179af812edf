"""Out of Python: a checkpoint as a file or folder that another runtime runs, compared with its model before it appears.

    import vit
    vit.export("vit-base", "vit-base.onnx").difference     # from the model, over random and real images

A format is a row of `FORMATS` and a file here with two functions, `write` and `load`; the framework that it is native
to makes what is written (vit/pt/export.py and those beside it). Inputs and outputs are called the same in all of them.
"""

from .engine import Report, export, verify
from .formats import FORMATS, Artifact, Format, Job, load

__all__ = ["FORMATS", "Artifact", "Format", "Job", "Report", "export", "load", "verify"]
