"""Assigning to a configuration: what may be, under which names, and the values of one moment."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError, quoted
from .keys import NEUTRAL, check_keys, fields_of, keys_of


class Assignable:
    """A configuration some of whose keys may be assigned; compared and hashed by value."""

    assignable: ClassVar[frozenset[str]]
    extra: Any
    num_labels: Any
    id2label: Any
    replace: Any

    _hash: ClassVar[Any] = None  # known until the next assignment
    _snapshot: ClassVar[Any] = None
    _in_use: ClassVar[Any] = False

    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(other) is type(self) and all(getattr(self, n) == getattr(other, n) for n in keys_of(type(self)))
        )

    def __hash__(self) -> int:
        # Of every value that can change what a model computes; names and unknown keys are left to __eq__.
        if self._hash is None:
            values = (getattr(self, name) for name in keys_of(type(self)))
            hashed = hash(tuple(value for value in values if not isinstance(value, Mapping | list)))
            object.__setattr__(self, "_hash", hashed)
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_hash", "_snapshot", "_in_use")}

    def __setattr__(self, name: str, value: Any) -> None:
        cls = type(self)
        if name.startswith("_") or isinstance(getattr(cls, name, None), property):  # no key of config.json
            object.__setattr__(self, name, value)
            return
        if name not in self.__dict__ and name in keys_of(cls):  # the constructor, whose __post_init__ checks
            object.__setattr__(self, name, value)
            return
        if name in fields_of(cls) and name not in self.assignable:
            raise ConfigError(
                f"{name} is part of what a model is made of, and cannot be assigned: config.replace({name}=...) gives "
                "a changed copy, to build or load a model with."
            )
        if name not in fields_of(cls):
            changed = {"extra": {**self.extra, name: value}}
        elif name in ("num_labels", "id2label", "label2id"):
            changed = self._renamed(name, value)
        else:
            changed = {name: getattr(self.replace(**{name: value}), name)}
        self.__dict__.update(changed, _hash=None, _snapshot=None)

    def __getattr__(self, name: str) -> Any:  # of what is no field
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        if name in NEUTRAL and "extra" in self.__dict__:
            return NEUTRAL[name]
        if name.startswith("_"):  # Python's own questions, which come often
            raise AttributeError(name)
        near = difflib.get_close_matches(name, (*keys_of(type(self)), *extra), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise AttributeError(f"{type(self).__name__} has no attribute {quoted(name)}{hint}")

    def _renamed(self, name: str, value: Any) -> dict[str, Any]:
        """The label keys after one of them was assigned: other names for the same number of labels."""
        if name == "label2id" and isinstance(value, Mapping) and len(value) < self.num_labels:
            # Two labels may have one name, as in ImageNet: then id2label stays.
            renamed = self.replace(id2label=self.id2label, label2id=value)
        else:
            renamed = self.replace(**{name: value})
        if renamed.num_labels != self.num_labels:
            raise ConfigError(
                f"{name} has {renamed.num_labels} labels, but there are {self.num_labels}. Another number needs "
                f"another head: config.replace({name}=...), or from_pretrained(..., {name}=...)."
            )
        return {key: getattr(renamed, key) for key in ("num_labels", "id2label", "label2id")}

    def update(self, values: Mapping[str, Any]) -> None:
        """Assign several keys; what shapes a model, too, until a model has this configuration.

        Raises:
            ConfigError: an impossible value, or another shape than that of a model that is there.
        """
        fixed = {*fields_of(type(self)) - self.assignable, "num_labels"}
        shapes = {name: value for name, value in values.items() if name in fixed}
        before = dict(self.__dict__)
        try:
            if shapes:
                changed = self.replace(**shapes)
                if not self._in_use:
                    self.__dict__.update(vars(changed), _hash=None, _snapshot=None)
                elif changed == self:
                    values = {name: value for name, value in values.items() if name not in shapes}
            for name, value in values.items():
                if self._in_use or name not in shapes:
                    setattr(self, name, value)
        except ConfigError:  # all of them, or none
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def update_from_string(self, update_str: str) -> None:
        """`update` with "key=value,key=value"; each value is read as one of the kind that its key has.

        Raises:
            ConfigError: an unknown key, no "key=value", or an impossible value.
        """
        values: dict[str, Any] = {}
        for part in update_str.split(","):
            name, sign, text = (each.strip() for each in part.partition("="))
            if not sign:
                raise ConfigError(f"{quoted(part)} is no key=value.")
            check_keys(type(self), [name])
            if isinstance(getattr(self, name), bool) and text.lower() in ("1", "y", "yes", "0", "n", "no"):
                text = "true" if text.lower() in ("1", "y", "yes") else "false"
            try:
                values[name] = json.loads(text.lower() if text.lower() in ("true", "false") else text)
            except ValueError:
                values[name] = text
        self.update(values)

    def mark_in_use(self) -> None:
        """Say that a model has this configuration: from then on `update` takes no other shape."""
        object.__setattr__(self, "_in_use", True)

    def check_assignable(self, other: object) -> None:
        """Check that a model of this configuration may have another instead.

        Raises:
            ConfigError: it is none, or shapes another model; the first difference is named.
        """
        if type(other) is not type(self):
            raise ConfigError(f"config is a {type(other).__name__}; expected a {type(self).__name__}.")
        for name in keys_of(type(self)):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs and (name == "num_labels" or name not in (*self.assignable, "dtype")):
                raise ConfigError(
                    f"The model has {name} {quoted(ours)}, and the configuration assigned to it {quoted(theirs)}: "
                    "build or load a model with that configuration."
                )

    def snapshot(self) -> Snapshot:
        """Its values as they are now, the same object until one changes."""
        if self._snapshot is None:
            object.__setattr__(self, "_snapshot", Snapshot(copy.copy(self)))
        return self._snapshot


@dataclass(frozen=True)
class Snapshot:
    """The values of a configuration, as those who keep something for them need it: hashable, and never assigned to."""

    config: Assignable

    def restored(self) -> Any:
        """A configuration of its own with these values, in use by a model, whose copy is what it is made for."""
        restored = copy.copy(self.config)
        restored.__dict__.update(_snapshot=self, _in_use=True)
        return restored
