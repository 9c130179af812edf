"""The configuration of a model, under the keys of the published config.json: what all families share.

`keys` knows which there are, `checks` what they may be, `assignment` which may change, `files` how they are read and
written; `base` is the class that each family's inherits.
"""

from .assignment import Snapshot
from .base import Head, PreTrainedConfig, check_config, to_pair
from .checks import ACTIVATIONS, ATTENTION_IMPLEMENTATIONS, DTYPES, PROBLEM_TYPES, label_index
from .files import config_from_dict, config_in, read_config
from .keys import keys_of

__all__ = [
    "ACTIVATIONS", "ATTENTION_IMPLEMENTATIONS", "DTYPES", "PROBLEM_TYPES",
    "Head", "PreTrainedConfig", "Snapshot",
    "check_config", "config_from_dict", "config_in", "keys_of", "label_index", "read_config", "to_pair",
]  # fmt: skip
