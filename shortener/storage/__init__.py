"""The tables, the two database engines, and the statements that differ between them."""
