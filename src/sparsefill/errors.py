"""The exceptions that sparsefill raises on purpose.

    SparsefillError
    ├── InputError (ValueError)               a value, file or model that cannot be used
    │   ├── ShapeError                        a tensor does not fit the others
    │   ├── PatternError                      a pattern's parameters are impossible
    │   └── ProfileError                      a profile is malformed or of another model
    └── UnsupportedError (NotImplementedError) this backend, dtype or device cannot serve

Every message says what was expected, what came, and what to do about it.
"""


class SparsefillError(Exception):
    """Base of every error that sparsefill raises on purpose."""


class InputError(SparsefillError, ValueError):
    """A value, file or model name cannot be used as given."""


class ShapeError(InputError):
    """A tensor's shape or dtype does not fit the other tensors."""


class PatternError(InputError):
    """A pattern was given parameters that no head can have."""


class ProfileError(InputError):
    """A profile is malformed or belongs to another architecture."""


class UnsupportedError(SparsefillError, NotImplementedError):
    """The call is well formed, but this backend, dtype or device cannot serve it."""
