"""Revisions of conversions, refused conversions, postback keys"""

# Tested by tests/storage/test_migrate.py

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
