"""Rolled-up counts, rows for lists"""

# Tested by tests/storage/test_migrate.py

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
