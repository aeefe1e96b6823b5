"""Add the column that states whether the cost of a send was deducted from a balance"""

# Tested by tests/storage/test_upgrades.py

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sends", sa.Column("deducted", sa.Boolean(), nullable=True))
