"""Add the column with the track mode with which a message was rewritten"""

# Tested by tests/storage/test_upgrades.py

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("messages", sa.Column("track", sa.SmallInteger(), nullable=True))
