"""Conversions that trackers report. This package validates the reports and records each conversion once, with its event."""
