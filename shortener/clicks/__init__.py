"""The click: who made a hit, the redirect, and the record of it."""
