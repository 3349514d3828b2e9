"""Columns, in one transaction, as Django makes them."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("django_shop", "0001_initial")]
    operations = [
        migrations.AddField("Customer", "joined", models.DateTimeField(null=True)),
        migrations.AddField("Order", "state", models.TextField(default="new")),
    ]
