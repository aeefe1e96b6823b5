"""This package reads messages, links, hits and conversions, and returns them as lists, CSV exports and statistics. It also
maintains the counts from which the statistics are computed. It writes no other rows.
"""
