"""Holds of deliveries, rates of trackers"""

# Tested by tests/storage/test_migrate.py

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
