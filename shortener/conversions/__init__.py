"""Conversions: what trackers report back. Their parameters are checked, and each is recorded once, with its event."""
