"""Messages of the send pipeline: validation, URL detection, rewriting with short links, and delivery reports."""
