"""Add columns for callback secrets and client certificates, and tables of expiry notices and early hits"""

# Tested by tests/storage/test_migrate.py

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("applications", sa.Column("callback_secret", sa.Text(), nullable=True))
    op.add_column("applications", sa.Column("previous_callback_secret", sa.Text(), nullable=True))
    op.add_column("applications", sa.Column("previous_callback_secret_until", sa.BigInteger(), nullable=True))
    op.add_column("trackers", sa.Column("client_certificate", sa.Text(), nullable=True))
    op.create_table(
        "expiry_notices",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "key_id", name=op.f("expiry_notices_pkey")),
    )
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "early_hits",
        sa.Column("id", row_id, autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("is_due", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("id", name=op.f("early_hits_pkey")),
    )
    op.create_index("early_hits_by_at", "early_hits", ["at"])
    op.create_index("early_hits_due", "early_hits", ["id"], sqlite_where=sa.text("is_due"), postgresql_where=sa.text("is_due"))
