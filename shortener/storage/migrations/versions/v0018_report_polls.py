"""Add the table of the positions of clients that poll delivery reports"""

# Tested by tests/storage/test_migrate.py

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "report_polls",
        sa.Column("application_id", sa.Integer(), autoincrement=False, primary_key=True),
        sa.Column("reader", sa.Text(), primary_key=True),
        sa.Column("after_event_id", sa.BigInteger(), nullable=False),
        sa.Column("returned", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
    )
