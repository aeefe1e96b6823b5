"""Add the columns with which a tracker filters conversions"""

# Tested by tests/storage/test_upgrades.py

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("trackers", sa.Column("conversion_actions", sa.Text(), nullable=True))
    op.add_column("trackers", sa.Column("conversion_dispositions", sa.Text(), nullable=True))
