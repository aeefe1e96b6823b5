"""Details of delivery reports, operations events, callback secrets"""

# Tested by tests/storage/test_migrate.py

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
