"""What transformers' users ask of any model, by the names they know; the same in all three frameworks."""

from __future__ import annotations

from typing import Any


class ModelNames:
    """Base of every model: its configuration and its parts under transformers' names."""

    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    config: Any
    _base: Any

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

    @property
    def num_labels(self) -> int:
        """Number of labels of the configuration."""
        return self.config.num_labels

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
