"""Add a column for the device and the browser of a hit, which an erasure does not remove"""

# Tested by tests/storage/test_migrate.py

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hits", sa.Column("device_class", sa.Text(), nullable=True))
