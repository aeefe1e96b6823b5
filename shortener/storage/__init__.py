"""This package contains the tables, the two database engines (SQLite and PostgreSQL), and the SQL statements that differ between
the engines."""
