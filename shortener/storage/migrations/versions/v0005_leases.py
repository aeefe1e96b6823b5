"""Add the tables of leases of node numbers and of dead letters"""

# Tested by tests/storage/test_migrate.py

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "node_leases",
        sa.Column("node", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node", name="node_leases_pkey"),
    )
    op.create_table(
        "hits_dead_letter",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("hit", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="hits_dead_letter_pkey"),
    )
    op.create_index("hits_dead_letter_by_code", "hits_dead_letter", ["code"])
    op.create_index("hits_dead_letter_by_at", "hits_dead_letter", ["at"])
