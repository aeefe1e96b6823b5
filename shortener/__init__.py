"""A self-hosted link shortener and click tracker for SMS."""

__version__ = "0.3.0"
