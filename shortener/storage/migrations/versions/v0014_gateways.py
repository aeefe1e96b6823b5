"""Change nothing; the revision is reserved"""

# Tested by tests/storage/test_migrate.py

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
