"""Data sets, class tables, and the samples made of them. Importing this registers all data sets and reads no file."""

from skysense_o.data.catalog import register_all

register_all()
