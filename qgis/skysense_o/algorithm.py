"""The algorithm "Segment by words"."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from qgis.core import (
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
)

from .command import Cancelled, CommandError, run, scene_command
from .style import write_label_style

# QGIS shows each line as a paragraph.
HELP = """Segments a raster of any size: every pixel gets one of the classes that you name.
<b>Classes</b>: separate classes by commas and synonyms by bars: <i>building|house, road, tree</i>. Each pixel gets \
the best class, so name everything that covers much of the image. If you name only one class, pixels that score below \
0.5 get no class.
<b>Background classes</b>: pixels whose best class is one of these get no class.
<b>Threshold</b>: pixels whose best class has a lower probability get no class.
<b>Ground sampling distance</b>: the image is resampled to this number of metres per pixel for the model; 0: not \
resampled.
<b>Smallest region</b>: polygons with a smaller area, in square metres, are left out.
The shipped model was trained on aerial images with 0.1 to 1 m per pixel. Look at the result before you use it.
A cancelled run resumes if you run the algorithm again with the same input and output files."""


class LabelStyle(QgsProcessingLayerPostProcessorInterface):
    """Gives a label map its legend of class names once QGIS has loaded it.

    Args:
        style: the style file (QML).
    """

    kept: dict[Path, LabelStyle] = {}
    """Style file -> object. QGIS needs these objects after the algorithm has ended but holds no reference to them."""

    def __init__(self, style: Path) -> None:
        super().__init__()
        self.style = style
        self.kept[style] = self

    def postProcessLayer(self, layer, context, feedback) -> None:
        layer.loadNamedStyle(str(self.style))
        layer.triggerRepaint()


class SegmentByWords(QgsProcessingAlgorithm):
    """The algorithm that segments a raster layer by free words.

    Args:
        command_line: function that returns the command line of SkySense-O.
    """

    INPUT, CLASSES, BACKGROUND, THRESHOLD = "INPUT", "CLASSES", "BACKGROUND", "THRESHOLD"
    BANDS, GSD, MIN_AREA, WEIGHTS = "BANDS", "GSD", "MIN_AREA", "WEIGHTS"
    LABELS, REGIONS = "LABELS", "REGIONS"

    def __init__(self, command_line: Callable[[], str]) -> None:
        super().__init__()
        self.command_line = command_line

    def createInstance(self) -> SegmentByWords:
        return SegmentByWords(self.command_line)

    def name(self) -> str:
        return "segment_by_words"

    def displayName(self) -> str:
        return "Segment by words"

    def shortHelpString(self) -> str:
        return HELP

    def initAlgorithm(self, configuration=None) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer(self.INPUT, "Image"))
        self.addParameter(QgsProcessingParameterString(self.CLASSES, "Classes", "building|house,road,tree,grass,water"))
        self.addParameter(QgsProcessingParameterString(self.BACKGROUND, "Background classes", "", optional=True))
        self.addParameter(self._number(self.THRESHOLD, "Threshold (0: none)", maximum=1.0))
        for parameter in (
            QgsProcessingParameterString(self.BANDS, "Bands for red, green, blue, such as 4,3,2", "", optional=True),
            self._number(self.GSD, "Ground sampling distance for the model in metres (0: unchanged)"),
            self._number(self.MIN_AREA, "Smallest region in square metres"),
            QgsProcessingParameterString(self.WEIGHTS, "Weights (blank: the shipped model)", "", optional=True),
        ):
            parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
            self.addParameter(parameter)
        self.addParameter(QgsProcessingParameterRasterDestination(self.LABELS, "Label map"))
        self.addParameter(
            QgsProcessingParameterVectorDestination(
                self.REGIONS, "Regions", QgsProcessing.TypeVectorPolygon, optional=True
            )
        )

    def processAlgorithm(self, parameters, context, feedback) -> dict:
        """Run the command, then move its files to where the user wants them.

        Raises:
            QgsProcessingException: the layer is not stored in a file, or the command cannot be started or fails.
        """
        layer = self.parameterAsRasterLayer(parameters, self.INPUT, context)
        source = Path(layer.source().split("|")[0]) if layer is not None else Path()
        if not source.is_file():
            raise QgsProcessingException(f"the image must be a file: {source} is not one; export the layer first")
        labels = self.parameterAsOutputLayer(parameters, self.LABELS, context)
        regions = self.parameterAsOutputLayer(parameters, self.REGIONS, context)
        folder = Path(labels).with_name(Path(labels).stem + "_skysense_o")
        try:
            command = scene_command(
                self.command_line(),
                source,
                folder,
                ["geotiff", "json", "gpkg"] if regions else ["geotiff", "json"],
                classes=self.parameterAsString(parameters, self.CLASSES, context),
                background=self.parameterAsString(parameters, self.BACKGROUND, context),
                threshold=self.parameterAsDouble(parameters, self.THRESHOLD, context),
                bands=self.parameterAsString(parameters, self.BANDS, context),
                gsd=self.parameterAsDouble(parameters, self.GSD, context),
                min_area=self.parameterAsDouble(parameters, self.MIN_AREA, context),
                weights=self.parameterAsString(parameters, self.WEIGHTS, context),
            )
            feedback.pushCommandInfo(" ".join(command))
            run(command, feedback.isCanceled, feedback.setProgress, feedback.pushInfo)
        except Cancelled:
            return {}
        except CommandError as error:
            raise QgsProcessingException(str(error)) from error
        found = {self.LABELS: labels}
        shutil.move(folder / f"{source.stem}_labels.tif", labels)
        style = write_label_style(folder / f"{source.stem}.json", Path(labels))
        if context.willLoadLayerOnCompletion(labels):
            context.layerToLoadOnCompletionDetails(labels).setPostProcessor(LabelStyle(style))
        if regions:
            shutil.move(folder / f"{source.stem}.gpkg", regions)
            found[self.REGIONS] = regions
        (folder / f"{source.stem}.json").unlink()
        with suppress(OSError):  # if the folder has files of another run, it is kept
            folder.rmdir()
        return found

    @staticmethod
    def _number(name: str, text: str, maximum: float = 1e9) -> QgsProcessingParameterNumber:
        kind = QgsProcessingParameterNumber.Double
        return QgsProcessingParameterNumber(name, text, kind, 0.0, optional=True, minValue=0.0, maxValue=maximum)
