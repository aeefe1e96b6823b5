"""Conversions that trackers report: their parameters are validated, and each conversion is recorded once, with its event."""
