"""Add columns for delayed deliveries and rate limits of trackers, and a table of processes that deliver"""

# Tested by tests/storage/test_migrate.py

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in ("held_since", "restarted_at", "scheduled_at"):
        op.add_column("deliveries", sa.Column(column, sa.BigInteger(), nullable=True))
    for column in ("max_per_second", "rate", "rate_ceiling"):
        op.add_column("trackers", sa.Column(column, sa.Float(), nullable=True))
    for column in ("rate_lowered_at", "paced_until", "opened_at"):
        op.add_column("trackers", sa.Column(column, sa.BigInteger(), nullable=True))
    op.add_column("links", sa.Column("clicks_numbered", sa.Integer(), nullable=True))
    op.create_table(
        "delivery_processes",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="delivery_processes_pkey"),
    )
    # Rename the queues of callbacks, because each of these queues now belongs to one application. Nodes of the previous version
    # continue to work, because they accept every name of a queue.
    op.execute("UPDATE deliveries SET lane = 'c' || application_id || '/' || substr(lane, 2) WHERE status = 0 AND lane LIKE 'c%'")
