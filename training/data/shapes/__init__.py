"""`shapes`: a synthetic vision-language data set in the style of CLEVR, from which everything can be learned offline in
minutes.

Scenes of three to six objects, captions, and questions whose answers are balanced so that the text alone gives little
away. It needs only numpy; the same seed always gives the same data.
"""

from simmim_export.training.data.shapes.dataset import Shapes

__all__ = ["Shapes"]
