"""Add the table of the codes of purged links"""

# Tested by tests/storage/test_upgrades.py

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "purged_codes",
        sa.Column("code", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("code", name=op.f("purged_codes_pkey")),
        sqlite_with_rowid=False,
    )
