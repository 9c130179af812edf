"""What transformers' users ask of any model, by the names they know; the same in all three frameworks."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .keywords import saving_keywords
from .publishing import push_folder


class ModelNames:
    """Base of every model: its configuration and its parts under transformers' names."""

    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    config: Any
    _base: Any
    save_pretrained: Any

    @classmethod
    def can_generate(cls) -> bool:
        """Whether it writes text: no."""
        return False

    @property
    def base_model(self) -> Any:
        """The model without its head."""
        return self._base()

    @property
    def base_model_prefix(self) -> str:
        """The attribute that holds `base_model`, and what its parameters' names begin with."""
        return self.config.base_model_prefix

    @property
    def name_or_path(self) -> str:
        """Where it was loaded from, as the caller said it."""
        return self.config.name_or_path

    @name_or_path.setter
    def name_or_path(self, value: object) -> None:
        self.config.name_or_path = value

    @property
    def num_labels(self) -> int:
        """Number of labels of the configuration, which takes no other than its own."""
        return self.config.num_labels

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        self.config.num_labels = value

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether `gradient_checkpointing_enable` holds."""
        return self._stack().gradient_checkpointing not in (None, False)

    def _stack(self) -> Any:
        """What holds the layers: the encoder, or the model without its head where that has none."""
        base = self._base()
        return getattr(base, "encoder", base)

    def get_input_embeddings(self) -> Any:
        """What makes tokens of pixels."""
        return self._base().embeddings.patch_embeddings

    def get_output_embeddings(self) -> Any:
        """What predicts visual tokens; None of a model that does not."""
        return getattr(self, "lm_head", None)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Assign `config.attn_implementation`, "sdpa" or "eager"."""
        self.config.attn_implementation = attn_implementation

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "5GB", **options: Any) -> str:
        """Upload what save_pretrained writes to a model on the hub, which is made if needed, in one commit.

        A model that has no card gets one, README.md.

        Args:
            repo_id: "user/model", or the model's name alone for the user of the token.
            max_shard_size: as that of save_pretrained.
            **options: `commit_message`, `commit_description`, `private`, `token`, `revision`, `create_pr` and `tags`;
                transformers' others change nothing or are refused.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: it cannot be saved or uploaded; the reason is named.
            InputError: an option that nobody knows, or that cannot be honoured.
        """
        options = saving_keywords(options, "push_to_hub")
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return push_folder(folder, repo_id, **options)

    def _push(self, folder: str | os.PathLike[str], options: dict[str, Any]) -> None:
        """Upload a folder just saved, under its own name if `options` has no `repo_id`."""
        push_folder(folder, **{"repo_id": Path(folder).resolve().name, **options})
