"""The tables."""

import django.contrib.postgres.fields
from django.db import migrations, models

ID = models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(
            name="Customer",
            fields=[
                ("id", ID.clone()),
                ("name", models.TextField(unique=True)),
                ("tags", django.contrib.postgres.fields.ArrayField(models.TextField(), default=list)),
                ("extra", models.JSONField(default=dict)),
            ],
        ),
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", ID.clone()),
                ("customer", models.ForeignKey("django_shop.Customer", models.CASCADE)),
                ("amount", models.DecimalField(max_digits=20, decimal_places=4)),
            ],
        ),
    ]
