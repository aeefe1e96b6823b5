"""Storage: the tables, the two database engines (SQLite and PostgreSQL), and the statements that differ between them."""
