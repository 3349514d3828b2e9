"""Tables, an enum and a function."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade():
    op.create_table(
        "driver_account",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("kind", sa.Enum("free", "paid", name="driver_kind"), nullable=False),
    )
    op.create_table(
        "driver_entry",
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("account_id", sa.Integer, sa.ForeignKey("driver_account.id"), nullable=False),
        sa.Column("amount", sa.Numeric(20, 4), nullable=False),
    )
    op.execute(
        "CREATE FUNCTION driver_total(account int) RETURNS numeric LANGUAGE sql STABLE AS "
        "'SELECT coalesce(sum(amount), 0) FROM driver_entry WHERE account_id = account'"
    )


def downgrade():
    op.execute("DROP FUNCTION driver_total")
    op.drop_table("driver_entry")
    op.drop_table("driver_account")
    op.execute("DROP TYPE driver_kind")
