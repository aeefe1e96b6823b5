"""Change nothing; the revision is reserved"""

# Tested by tests/storage/test_migrate.py

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
