"""Training, evaluation and prediction of Keras models that have a loss of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from ..errors import InputError
from ..inputs import check_class_weight

TENSORS = ("pixel_values", "bool_masked_pos", "labels", "noise")
"""Arguments of calls that hold a value an image or more; all others are flags."""
WEIGHTS = ("class_weight", "sample_weight")


class FittedModel(keras.Model):
    """A Keras model whose calls return a ModelOutput, and which trains with its own loss where none is compiled."""

    config: Any
    head: ClassVar[str | None]
    flags: tuple[tuple[str, Any], ...] = ()  # of the call that `fit`, `evaluate` or `predict` makes now

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """As keras.Model.compile; without a `loss` the model trains with its own."""
        self.loss = loss  # keras.Model would keep that of an earlier compile
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """As keras.Model.compile_from_config, which leaves a class with its own `compile` uncompiled."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    # === Calls with a dict of inputs, which may hold flags, and labels that weights are for ===

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.fit; `class_weight` and `sample_weight` weigh the model's own loss, too."""
        with self._arranged(x, y, kwargs) as (x, y):
            return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.evaluate."""
        with self._arranged(x, y, kwargs) as (x, y):
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.predict; flags in a dict of inputs, such as `output_attentions`, hold for all of it."""
        with self._arranged(x) as (x, _):
            return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.train_on_batch."""
        with self._arranged(x, y, kwargs) as (x, y):
            return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.test_on_batch."""
        with self._arranged(x, y, kwargs) as (x, y):
            return super().test_on_batch(x, y, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """As keras.Model.predict_on_batch."""
        with self._arranged(x) as (x, _):
            return super().predict_on_batch(x)

    @contextmanager
    def _arranged(self, x: Any, y: Any = None, options: Any = None) -> Iterator[tuple[Any, Any]]:
        flags: dict[str, Any] = {}
        if options and options.get("class_weight") is not None:
            check_class_weight(options["class_weight"], self.config.num_labels)
        if isinstance(x, dict):
            x, flags = split_flags(x)
            if y is None and any((options or {}).get(name) is not None for name in WEIGHTS):
                y = x.pop("labels", None)  # Keras weighs nothing else
                if y is None:
                    raise InputError("class_weight and sample_weight are for labels, and the inputs have none.")
        self.flags = tuple(sorted(flags.items()))
        try:
            yield x, y
        finally:
            self.flags = ()

    def make_train_function(self, force: bool = False) -> Any:
        return super().make_train_function(self._is_stale("train", force))

    def make_test_function(self, force: bool = False) -> Any:
        return super().make_test_function(self._is_stale("test", force))

    def make_predict_function(self, force: bool = False) -> Any:
        return super().make_predict_function(self._is_stale("predict", force))

    def _is_stale(self, function: str, force: bool) -> bool:
        """Whether a function that Keras keeps was traced under other values of the configuration, or other flags."""
        before, now = self._traced.get(function), hash((self.config, self.flags, getattr(self, "loss_function", None)))
        self._traced[function] = now
        return force or before not in (None, now)

    # === The model's own loss ===

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        if self.loss is not None:
            return super().compute_loss(x, self._target(x, y), self._main(y_pred), sample_weight, training)
        self._main(y_pred)
        if "loss" in y_pred and sample_weight is None:
            loss = y_pred["loss"]
        else:
            options = {} if sample_weight is None else {"sample_weight": sample_weight}
            loss = self.own_loss(self._target(x, y), y_pred, **options)
        for extra in self.losses:
            loss = loss + extra
        return loss / tf.distribute.get_strategy().num_replicas_in_sync  # Keras sums the replicas' gradients

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        return super().compute_metrics(x, self._target(x, y), self._main(y_pred), sample_weight)

    def own_loss(self, y: Any, y_pred: Any, **options: Any) -> tf.Tensor:
        """The loss where the call itself computed none, or where its images have weights."""
        if options and "loss" in y_pred:
            raise InputError(f"The loss of {type(self).__name__} has no weights for images.")
        raise InputError(f"{type(self).__name__} has no loss of its own for these inputs; pass a loss to compile.")

    def _target(self, x: Any, y: Any) -> Any:
        """What losses and metrics compare with: y, or the labels of a dict of inputs."""
        return x.get("labels") if y is None and isinstance(x, dict) else y

    def _main(self, y_pred: Any) -> Any:
        """The output that losses and metrics see."""
        if not isinstance(y_pred, dict):
            raise InputError("fit and evaluate need named outputs: load or build the model with return_dict=True.")
        return y_pred[self.config.heads[self.head].output]

    # === Data ===

    def prepare_tf_dataset(
        self,
        dataset: Sequence[dict[str, Any]],
        batch_size: int = 8,
        shuffle: bool = True,
        tokenizer: Any = None,
        collate_fn: Callable[..., dict[str, Any]] | None = None,
        collate_fn_args: dict[str, Any] | None = None,
        drop_remainder: bool | None = None,
        prefetch: bool = True,
    ) -> tf.data.Dataset:
        """Batches for `fit` of a `datasets.Dataset`, or of any sequence of dicts.

        Args:
            dataset: samples; what the model does not take is left out, and "label" is "labels".
            batch_size: images in a batch.
            shuffle: draw another order in each epoch.
            tokenizer: without effect: images are not padded.
            collate_fn: makes a dict of arrays of a list of samples; None stacks them.
            collate_fn_args: keywords of it.
            drop_remainder: leave the last batch out when it is smaller; None for as `shuffle` says.
            prefetch: make a batch ready while the one before is trained on.

        Returns:
            Inputs, a tensor where there are pixel_values alone, and the labels if there are any.

        Raises:
            InputError: no samples, or samples without pixel_values.
        """
        if getattr(dataset, "format", {"type": ""})["type"] is None:  # of datasets, which would give lists of numbers
            dataset = dataset.with_format("numpy")  # type: ignore[attr-defined]
        names = [name for name in TENSORS if name in inspect.signature(self.call).parameters]

        def batch(indices: Any) -> dict[str, np.ndarray]:
            samples = [dataset[int(index)] for index in indices]
            found = stacked(samples) if collate_fn is None else collate_fn(samples, **(collate_fn_args or {}))
            for name in ("label_ids", "label"):
                if name in found:
                    found["labels"] = found[name]
            return {name: np.asarray(found[name]) for name in names if name in found}

        count = len(dataset)
        example = batch(range(min(count, 1)))
        if "pixel_values" not in example:
            raise InputError(f"The dataset has {count} samples, and pixel_values are not in the first.")
        kinds = [(name, array.dtype, (None, *array.shape[1:])) for name, array in example.items()]

        def load(indices: tf.Tensor) -> Any:
            arrays = tf.numpy_function(lambda chosen: list(batch(chosen).values()), [indices], [k[1] for k in kinds])
            found = {name: tf.ensure_shape(a, shape) for (name, _, shape), a in zip(kinds, arrays, strict=True)}
            labels = found.pop("labels", None)
            inputs = found if len(found) > 1 else found["pixel_values"]
            return inputs if labels is None else (inputs, labels)

        indices = tf.data.Dataset.range(count)
        indices = indices.shuffle(count) if shuffle else indices
        batches = indices.batch(batch_size, shuffle if drop_remainder is None else drop_remainder).map(load)
        return batches.prefetch(tf.data.AUTOTUNE) if prefetch else batches


def split_flags(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the flags of a dict of inputs."""
    flags = {name: value for name, value in inputs.items() if value is None or isinstance(value, bool)}
    return {name: value for name, value in inputs.items() if name not in flags}, flags


def stacked(samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Samples of numbers and arrays as a dict of arrays; what is neither is left out."""
    found = {}
    for name, value in (samples[0] if samples else {}).items():
        if value is not None and not isinstance(value, str | bytes):
            array = np.stack([np.asarray(sample[name]) for sample in samples])
            if array.dtype.kind in "biuf" or array.dtype.name == "bfloat16":
                found[name] = array
    return found
