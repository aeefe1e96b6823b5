"""This package validates the conversion reports of trackers, and records each conversion once, with its event."""
