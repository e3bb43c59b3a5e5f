"""How good a model is, and how good it would be without seeing its whole input.

An accuracy without its controls says nothing: questions can often be answered from their text alone, and a model may do
just that. :mod:`simmim_export.training.evaluation.statistics` lists the controls; a checkpoint stores them next to each
accuracy.
"""

from simmim_export.training.evaluation.answers import evaluate_answers
from simmim_export.training.evaluation.classes import evaluate_classes, evaluate_statements
from simmim_export.training.evaluation.retrieval import evaluate_match, evaluate_retrieval
from simmim_export.training.evaluation.statistics import Evaluator

EVALUATORS: dict[str, Evaluator] = {
    "match": evaluate_match,
    "retrieval": evaluate_retrieval,
    "vqa": evaluate_answers,
    "text_class": evaluate_statements,
    "image_class": evaluate_classes,
    "video_class": evaluate_classes,
    "video_qa": evaluate_answers,
}
