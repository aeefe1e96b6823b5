"""The schema in steps. `HEAD` is the newest one, which this version of the code needs."""

HEAD = "0004"
