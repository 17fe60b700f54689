"""The one image reader: a file of any kind, an array or a PIL image -> uint8 RGB, validity, and what was done to it.

Every door of the project reads through `read_image`: data sets, `Predictor`, the page, tasks on whole images, the data
engine. Scenes read part by part through `GDALImage`, which `read_image` stands on as well.
"""

from skysense_o.image_io.files import SUFFIXES, ImageError, find_images, printable
from skysense_o.image_io.gdal_access import WHAT_IS_LOST, gdal_settings, has_geo, is_georeferenced
from skysense_o.image_io.reading import FILL, ReadRecord, RGBImage, as_image, image_size, read_image
from skysense_o.image_io.stretch import STRETCH_PERCENTILES

__all__ = [
    "FILL",
    "STRETCH_PERCENTILES",
    "SUFFIXES",
    "WHAT_IS_LOST",
    "ImageError",
    "RGBImage",
    "ReadRecord",
    "as_image",
    "find_images",
    "gdal_settings",
    "has_geo",
    "image_size",
    "is_georeferenced",
    "printable",
    "read_image",
]
