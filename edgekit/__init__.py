"""From a researcher's checkpoint to a small, fast, verified model in somebody's app."""

__version__ = "0.1.0"
