"""Add rolled-up counts and link sets"""

# Tested by tests/storage/test_migrate.py

import time

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("messages", sa.Column("link_set_id", sa.Integer()))
    op.add_column("links", sa.Column("link_set_id", sa.Integer()))
    op.add_column("tallies", sa.Column("origins", sa.Text()))
    op.add_column("counts", sa.Column("rolled_up", sa.Text()))
    # This index contains the counts that are not rolled up. At first these are all counts. A background job rolls them up.
    not_rolled_up = sa.text("rolled_up IS NULL OR rolled_up <> amount")
    op.create_index(
        "counts_not_rolled_up",
        "counts",
        ["quarter", "cohort_id"],
        sqlite_where=not_rolled_up,
        postgresql_where=not_rolled_up,
    )
    op.create_table(
        "link_sets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("application_id", sa.Integer(), nullable=False),
        sa.Column("campaign", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("links", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("link_sets_pkey")),
        sa.UniqueConstraint("hash", name=op.f("link_sets_hash_key")),
    )
    op.create_index("link_sets_by_campaign", "link_sets", ["application_id", "campaign"])
    op.create_table(
        "count_groups",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("application_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("campaign", sa.Text(), nullable=False),
        sa.Column("country", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("count_groups_pkey")),
    )
    op.create_index("count_groups_by_kind", "count_groups", ["application_id", "kind", "campaign"])
    op.create_table(
        "rollups",
        sa.Column("group_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("series", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("period", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("group_id", "series", "period", name=op.f("rollups_pkey")),
        sqlite_with_rowid=False,
    )
    # Existing messages have no counts with Basis.SENT yet. `shortener verify --repair` creates them.
    op.execute(
        sa.text(
            "INSERT INTO installation (name, value) SELECT 'sent counts since', :slot WHERE EXISTS (SELECT 1 FROM cohorts)"
        ).bindparams(slot=str(int(time.time()) // 900 + 1))
    )
