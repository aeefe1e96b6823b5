"""Add the table of the first conversions of messages"""

# Tested by tests/storage/test_upgrades.py

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "first_conversions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("first_conversions_pkey")),
    )
    # A background job adds the rows for conversions that are already stored (conversions/first_conversions.py). Reports are
    # incomplete until then.
    op.execute(
        "INSERT INTO installation (name, value) SELECT 'first conversions', '0 behind' WHERE EXISTS (SELECT 1 FROM conversions)"
    )
