"""The application's tables, as the migrations beside have made them."""

from django.contrib.postgres.fields import ArrayField
from django.db import models


class Customer(models.Model):
    name = models.TextField(unique=True)
    tags = ArrayField(models.TextField(), default=list)
    extra = models.JSONField(default=dict)
    joined = models.DateTimeField(null=True)


class Order(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE)
    amount = models.DecimalField(max_digits=20, decimal_places=4)
    state = models.TextField(default="new", db_index=True)
