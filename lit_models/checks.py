"""Checks of arguments, each with the message that the person who gave the value needs."""


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raise a ValueError that names the argument if ``value`` is below ``minimum``."""
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_probability(name: str, value: float) -> None:
    """Raise a ValueError that names the argument unless ``0 <= value < 1``."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
