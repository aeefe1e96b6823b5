"""Messages of the send pipeline: validation of requests, URL detection, rewriting with short links, and delivery reports."""
