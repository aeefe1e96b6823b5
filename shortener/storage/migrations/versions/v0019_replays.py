"""Add background replays of dead deliveries"""

# Tested by tests/storage/test_migrate.py

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "replays",
        sa.Column("id", row_id, autoincrement=False, nullable=False),
        sa.Column("application_id", sa.Integer(), nullable=False),
        sa.Column("tracker_id", sa.Integer(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=True),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("started_by", sa.Text(), nullable=False),
        sa.Column("stopped_by", sa.Text(), nullable=True),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("replayed", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("cursor", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="replays_pkey"),
    )
    op.create_index("replays_by_application", "replays", ["application_id", "id"])
    running = sa.text("state = 'running'")
    op.create_index("replays_running", "replays", ["tracker_id"], unique=True, sqlite_where=running, postgresql_where=running)
    _refer_to_applications()
    op.add_column("deliveries", sa.Column("replay_id", sa.BigInteger(), nullable=True))
    # The index `deliveries_of_replay` is empty at first. PostgreSQL reads the table once to build the index. During this time, it
    # blocks the writes of deliveries, but not clicks.
    replayed = sa.text("replay_id IS NOT NULL")
    op.create_index(
        "deliveries_of_replay",
        "deliveries",
        ["replay_id", "status", "id"],
        sqlite_where=replayed,
        postgresql_where=replayed,
    )


def _refer_to_applications() -> None:
    """Reject replays of unknown applications: by a foreign key on PostgreSQL, by a trigger on SQLite (docs/decisions/0023)."""
    if op.get_context().dialect.name == "postgresql":
        op.create_foreign_key("replays_application_id_fkey", "replays", "applications", ["application_id"], ["id"])
    else:
        op.execute(
            "CREATE TRIGGER replays_application_id_fkey BEFORE INSERT ON replays "
            "WHEN NOT EXISTS (SELECT 1 FROM applications WHERE id = NEW.application_id) "
            "BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed: replays.application_id'); END"
        )
