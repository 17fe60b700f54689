"""Data sets as rows of a table; samples with their words. Importing this registers the rows and reads nothing."""

from skysense_o.data.catalog import register_all

register_all()
