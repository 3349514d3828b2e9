"""A column with data, and an index that no transaction can make."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade():
    op.add_column("driver_entry", sa.Column("note", sa.Text, server_default="none"))
    op.alter_column("driver_entry", "note", nullable=False)
    with op.get_context().autocommit_block():
        op.execute("ALTER TYPE driver_kind ADD VALUE 'gone'")
        op.create_index("driver_entry_amount", "driver_entry", ["amount"], postgresql_concurrently=True)


def downgrade():
    with op.get_context().autocommit_block():
        op.drop_index("driver_entry_amount", postgresql_concurrently=True)
    op.drop_column("driver_entry", "note")
