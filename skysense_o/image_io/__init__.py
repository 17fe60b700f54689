"""The image reader of the project: a file, an array or a PIL image -> uint8 RGB, valid pixels, and a conversion record.

All parts of the project read images with `read_image`: data sets, `Predictor`, the web page, tasks on whole images and
the data engine. Scenes read windows with `GDALImage`, which `read_image` uses as well.
"""

from skysense_o.image_io.files import SUFFIXES, ImageError, find_images, images_in, printable, stems_of
from skysense_o.image_io.gdal_access import WHAT_IS_LOST, gdal_settings, has_geo, is_georeferenced
from skysense_o.image_io.reading import as_image, image_size, read_image
from skysense_o.image_io.rgb_image import FILL, ReadRecord, RGBImage
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
    "images_in",
    "is_georeferenced",
    "printable",
    "read_image",
    "stems_of",
]
