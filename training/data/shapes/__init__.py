"""`shapes`: a synthetic vision-language data set in the style of CLEVR, from which everything can be learned offline in
minutes.

Scenes of three to six objects, captions, and questions whose answers are balanced so that the text alone gives little
away. It needs only numpy; the same seed always gives the same data.
"""

from simmim_export.training.data.shapes.dataset import Shapes, ShapesBatch
from simmim_export.training.data.shapes.draw import contact_sheet, draw_scene
from simmim_export.training.data.shapes.questions import ANSWERS, FAMILIES
from simmim_export.training.data.shapes.scene import Scene, Thing
from simmim_export.training.data.shapes.words import vocabulary

__all__ = [
    "ANSWERS",
    "FAMILIES",
    "Scene",
    "Shapes",
    "ShapesBatch",
    "Thing",
    "contact_sheet",
    "draw_scene",
    "vocabulary",
]
