"""The lint beside NVIDIA's own parser and builder (TensorRT for RTX), on graphs that break rules and on ONNX's tests of operators.

They disagree in places. Each is listed here with its reason, and a new one fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from simmim_export.tensorrt_rules.lint import ADVICE

TRT = Path(__file__).parents[1] / "engines/trt"
sys.path.insert(0, str(TRT))
import bindings  # noqa: E402
