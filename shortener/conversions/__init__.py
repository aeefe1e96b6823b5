"""This package validates the conversion reports of trackers. It records each conversion once, together with its event."""
