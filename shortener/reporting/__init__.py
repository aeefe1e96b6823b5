"""Reports: the status of a message, lists and their CSV, the counts, and the statistics made from them.

This package only reads messages, links, hits and conversions. It writes the counts, to which it adds the count deltas.
"""
