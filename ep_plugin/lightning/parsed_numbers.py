"""Numbers of a command line or configuration, read and written as what they are."""

from numbers import Number
from typing import Any

import lightning as L
from jsonargparse.typing import register_type


class Trainer(L.Trainer):
    """Lightning's, with those limits that mean one thing as a whole number and another one as a fraction.

    `Optional[Union[int, float]]`, which Lightning says of them, may be `Optional[Union[float, int]]` in the end:
    Python's `typing` takes the two for equal and keeps the one that a process asked for first. "1" was then read as
    1.0, which is all batches, and not one of them.
    """

    def __init__(
        self,
        *args: Any,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            **kwargs,
        )


def _number(value: Any) -> Any:
    if not isinstance(value, Number):
        raise ValueError(f"expected a number, got {value!r}")
    return value


# torchvision's word for an angle or a size. Without this a copied configuration would not have them.
register_type(Number, serializer=_number, deserializer=_number, type_check=isinstance)
