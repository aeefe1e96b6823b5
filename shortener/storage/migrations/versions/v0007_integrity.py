"""Change nothing; this revision number was reserved and not used"""

# Tested by tests/storage/test_migrate.py

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
