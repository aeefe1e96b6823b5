"""Add a column that reserves space in a message for its first click"""

# Tested by tests/storage/test_migrate.py

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("messages", sa.Column("room", sa.Text(), nullable=True))
