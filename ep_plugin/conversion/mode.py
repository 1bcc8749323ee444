"""A module's mode (training or evaluation) while its forward is traced."""


class Mode(int):
    """A module's `training`: a number, so that functional dropout can be told that it follows it."""

    asked = False

    def __bool__(self) -> bool:
        Mode.asked = True
        return int(self) != 0

    def __repr__(self) -> str:
        return f"Mode({int(self)})"
