"""An index that no transaction can make."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("django_shop", "0003_first")]
    operations = [
        migrations.AlterField("Order", "state", models.TextField(default="new", db_index=True)),
        AddIndexConcurrently("Order", models.Index(fields=["amount"], name="driver_order_amount")),
        migrations.RemoveIndex("Order", "driver_order_amount"),
    ]
