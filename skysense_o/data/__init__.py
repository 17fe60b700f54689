"""Data sets, class tables, and samples made from them. Importing this package registers all data sets and reads no file."""

from skysense_o.data.catalog import register_all

register_all()
