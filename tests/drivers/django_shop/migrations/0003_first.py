"""Data. A migration of its own: PostgreSQL alters no table with pending trigger events."""

from django.db import migrations


def first_customer(apps, _schema_editor):
    apps.get_model("django_shop", "Customer").objects.create(name="first")


def nobody(apps, _schema_editor):
    apps.get_model("django_shop", "Customer").objects.filter(name="first").delete()


class Migration(migrations.Migration):
    dependencies = [("django_shop", "0002_state")]
    operations = [migrations.RunPython(first_customer, nobody)]
