"""Data sets, class tables, and the samples made from them. Importing this registers all data sets; it reads no file."""

from skysense_o.data.catalog import register_all

register_all()
