"""Reject rows of unknown applications and invalid limits; add the table of messages to erase again"""

# Tested by tests/storage/test_references.py

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# Tables whose column `application_id` must contain the id of an existing application. Their rows change rarely.
_TABLES = ("domains", "api_keys", "tracker_tokens", "postback_keys", "trackers", "link_updates")
# The columns, each with its table, that must contain NULL or a positive number.
_POSITIVE = (
    ("api_keys", "rate_limit"),
    ("trackers", "max_attempts"),
    ("trackers", "concurrency"),
    ("trackers", "max_per_second"),
)


def upgrade() -> None:
    op.create_table(
        "erasure_repeats",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("repeats", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="erasure_repeats_pkey"),
    )
    op.create_index("erasure_repeats_by_due_at", "erasure_repeats", ["due_at"])
    if op.get_context().dialect.name == "postgresql":
        _add_constraints()
    else:
        _create_triggers()


def _add_constraints() -> None:
    for table in _TABLES:
        missing = f"SELECT 1 FROM {table} AS t LEFT JOIN applications AS a ON a.id = t.application_id WHERE a.id IS NULL"
        _add_constraint(
            table,
            f"{table}_application_id_fkey",
            "FOREIGN KEY (application_id) REFERENCES applications (id)",
            missing,
        )
    for table, column in _POSITIVE:
        invalid = f"SELECT 1 FROM {table} WHERE {column} <= 0"
        _add_constraint(table, f"{table}_{column}_is_positive", f"CHECK ({column} > 0)", invalid)


def _add_constraint(table: str, name: str, constraint: str, violations: str) -> None:
    """Add a constraint. If existing rows violate it, the constraint applies only to new rows."""
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {constraint} NOT VALID")
    if op.get_bind().scalar(sa.text(f"{violations} LIMIT 1")) is None:
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def _create_triggers() -> None:
    # To add a foreign key or a check, SQLite would have to copy the whole table.
    for table in _TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_application_id_fkey BEFORE INSERT ON {table} "
            "WHEN NOT EXISTS (SELECT 1 FROM applications WHERE id = NEW.application_id) "
            f"BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed: {table}.application_id'); END"
        )
    for table, column in _POSITIVE:
        for when, event in (("insert", "INSERT"), ("update", f"UPDATE OF {column}")):
            op.execute(
                f"CREATE TRIGGER {table}_{column}_is_positive_{when} BEFORE {event} ON {table} WHEN NEW.{column} <= 0 "
                f"BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: {table}.{column}'); END"
            )
