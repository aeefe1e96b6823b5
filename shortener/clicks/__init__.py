"""Clicks: the redirect, the classification of hits, and their records."""
